# Copyright 2026 The LoomVideo for Diffusers authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The numbers: everything that the published implementation recorded, computed by this one."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import GOLDEN, call_inputs, case_names, load_case, references_of, transformer_inputs

from loomvideo_diffusers import LoomVideoEditPipeline
from loomvideo_diffusers.media import sample_frame_indices
from loomvideo_diffusers.pipelines.loomvideo_frames import fit, mllm_frame_indices, to_frames, to_image
from loomvideo_diffusers.training.objective import TrainingSample, dynamic_shift, group_by_shape, squared_error


TABLES = json.loads((GOLDEN / "cases" / "tables.json").read_text())


def max_difference(actual, expected) -> float:
    return float(np.abs(np.asarray(actual, dtype=np.float64) - np.asarray(expected, dtype=np.float64)).max())


@pytest.mark.parametrize("name", case_names("transformer"))
@torch.no_grad()
def test_transformer(name, transformer):
    velocity = transformer(**transformer_inputs(name)).sample
    assert max_difference(velocity, load_case(name)[0]["output"]) < 1e-4


@pytest.mark.parametrize("name", case_names("pipeline"))
def test_pipeline(name, pipe):
    case, _ = load_case(name)
    inputs = call_inputs(name)
    if "image" in inputs or "video" in inputs:
        pipe = LoomVideoEditPipeline.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)

    # What enters the MLLM, and what leaves it
    tokenized, hidden_states = [], []
    pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: tokenized.append(kwargs), with_kwargs=True
    )

    latents, predictions = [], []
    step = pipe.scheduler.step

    def record_step(prediction, *arguments, **options):
        predictions.append(prediction)
        output = step(prediction, *arguments, **options)
        latents.append(output[0])
        return output

    def record_embeds(pipe, step, timestep, tensors):
        hidden_states.append(tensors["prompt_embeds"])
        return {}

    pipe.scheduler.step = record_step
    frames = pipe(
        **inputs, callback_on_step_end=record_embeds, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    ).frames

    expected_ids = ["input_ids", "visual_only_input_ids", "negative_input_ids"]
    expected_ids = [key for key in expected_ids if key in case]
    assert len(tokenized) == len(expected_ids)
    for actual, key in zip(tokenized, expected_ids):
        assert torch.equal(actual["input_ids"], case[key])
    for key in ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw"):
        if key in case:
            assert torch.equal(tokenized[0][key], case[key])

    assert max_difference(hidden_states[0], case["mllm_hidden_states"].transpose(0, 1)[:, -4:]) < 1e-4
    assert pipe.scheduler.timesteps.tolist() == case["timesteps"].tolist()
    assert max_difference(torch.stack(predictions), case["guided_prediction"]) < 1e-4
    assert max_difference(torch.stack(latents), case["latents_after_step"]) < 1e-4
    assert max_difference(frames[0], case["output_video"]) < 2e-3


@pytest.mark.parametrize("name", case_names("pipeline"))
@torch.no_grad()
def test_all_mllm_layers(name, pipe):
    """Without a transformer to say how many layers it reads, all of them come back, and all are the published ones."""
    case, _ = load_case(name)
    inputs = call_inputs(name)
    if "image" in inputs or "video" in inputs:
        pipe = LoomVideoEditPipeline.from_pipe(pipe)
    pipe.transformer = None
    names = ("prompt", "negative_prompt", "video", "image", "reference_images", "height", "width", "num_frames")
    prompt_embeds, mask, *_ = pipe.encode_prompt(**{key: inputs[key] for key in names if key in inputs})
    assert mask is None
    assert max_difference(prompt_embeds, case["mllm_hidden_states"].transpose(0, 1)) < 1e-4


@pytest.mark.parametrize("name", [name for name in case_names("pipeline") if "t2" not in name])
@torch.no_grad()
def test_pixels_and_latents(name, edit):
    case, metadata = load_case(name)
    inputs = call_inputs(name)
    if "video" in inputs or "image" in inputs:
        frames = to_frames(inputs["video"])[: metadata["num_frames"]] if "video" in inputs else [inputs["image"]]
        frames = [fit(to_image(frame, "frame"), metadata["height"], metadata["width"]) for frame in frames]
        assert np.array_equal(np.stack(frames).transpose(3, 0, 1, 2).squeeze(), case["source_pixel_values"].squeeze())
        assert max_difference(edit.prepare_clip_latents([frames], 1), case["source_latents"]) < 1e-4
    for index, reference in enumerate(inputs.get("reference_images", [])):
        image = fit(to_image(reference, "reference"), metadata["height"], metadata["width"])
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), case[f"reference_pixel_values.{index}"])
        latents = edit.prepare_reference_latents([[image]], 1)[0]
        assert max_difference(latents, case[f"reference_latents.{index}"]) < 1e-4


@pytest.mark.parametrize(("num_tokens", "shift"), TABLES["dynamic_shift"])
def test_dynamic_shift(num_tokens, shift):
    assert dynamic_shift(num_tokens) == pytest.approx(shift, abs=1e-12)


@pytest.mark.parametrize("row", TABLES["frame_sampling"])
def test_frame_sampling(row):
    indices = sample_frame_indices(row["num_source_frames"], row["source_fps"], row["target_fps"], row["max_frames"])
    assert indices == row["indices"]


@pytest.mark.parametrize(("num_frames", "indices"), TABLES["vlm_frame_indices"])
def test_mllm_frame_indices(num_frames, indices):
    assert mllm_frame_indices(num_frames) == indices


@pytest.mark.parametrize("num_steps", TABLES["sigmas"])
def test_sigmas(num_steps, pipe):
    pipe.scheduler.set_timesteps(int(num_steps))
    assert pipe.scheduler.timesteps.tolist() == TABLES["sigmas"][num_steps]["timesteps"]
    assert max_difference(pipe.scheduler.sigmas, TABLES["sigmas"][num_steps]["sigmas"]) < 1e-6


def training_samples(pipe) -> list[TrainingSample]:
    """The two samples of the recorded loss: an edit of a video, and an image from a reference."""
    case, _ = load_case("training_loss")

    @torch.no_grad()
    def encode(pixels):
        return pipe.encode_pixels(pixels[None] if pixels.ndim == 4 else pixels[None, :, None])[0]

    samples = []
    for index in range(2):
        input_ids = case[f"input_ids.{index}"]
        with torch.no_grad():
            embeds, _ = pipe.get_mllm_hidden_states(
                {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
            )
        source = case.get(f"source_pixel_values.{index}")
        samples.append(
            TrainingSample(
                latents=encode(case[f"target_pixel_values.{index}"]),
                prompt={"prompt_embeds": embeds[0]},
                noise=case[f"noise.{index}"][0],
                timestep=case["t_step"][index].item(),
                source_latents=None if source is None else encode(source),
                reference_latents=[encode(image) for image in references_of(case, f"reference_pixel_values.{index}")],
            )
        )
    return samples


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("division", ["packed", "single"])
def test_training_loss(gradient_checkpointing, division, pipe):
    case, metadata = load_case("training_loss")
    if gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    pipe.transformer.train()
    samples = training_samples(pipe)
    groups = group_by_shape(samples) if division == "packed" else [[sample] for sample in samples]
    assert len(groups) == 2
    loss = sum(squared_error(pipe.transformer, group) for group in groups)
    loss = loss / sum(sample.latents.numel() for sample in samples)
    loss.backward()

    assert loss.item() == pytest.approx(case["loss"].item(), rel=1e-4)
    parameters = dict(pipe.transformer.named_parameters())
    norms = metadata["grad_norms"]
    assert set(norms) == set(parameters)
    for name, norm in norms.items():
        assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7), name


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_padded_batches(gradient_checkpointing, pipe):
    """Samples of one shape with prompts of several lengths, with and without a source, train as they do alone."""
    if gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    edited, _ = training_samples(pipe)
    embeds = edited.prompt["prompt_embeds"]
    shorter = replace(edited, prompt={"prompt_embeds": embeds[:, :11]}, timestep=0.7, source_latents=None)
    samples = [edited, shorter, replace(edited, prompt={"prompt_embeds": embeds[:, 3:]})]
    losses, gradients = [], []
    for groups in (group_by_shape(samples), [[sample] for sample in samples]):
        losses.append(sum(squared_error(pipe.transformer, group) for group in groups))
        gradients.append(torch.autograd.grad(losses[-1], list(pipe.transformer.parameters())))
    assert len(group_by_shape(samples)) == 1
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    for padded, single in zip(*gradients):
        assert padded.norm().item() == pytest.approx(single.norm().item(), rel=1e-4, abs=1e-4)
        assert max_difference(padded, single) < 1e-4 * max(single.abs().max().item(), 1)
