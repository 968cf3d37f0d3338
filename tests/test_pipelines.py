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
"""The pipelines as users of diffusers know pipelines. What they compute is tested in test_golden.py."""

import re
from functools import partial

import accelerate
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import call_inputs
from diffusers import (
    AutoencoderKLWan,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import PipelineCallback
from diffusers.hooks import apply_group_offloading

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline
from loomvideo_diffusers.pipelines.loomvideo_errors import LoomVideoInputError
from loomvideo_diffusers.pipelines.loomvideo_guidance import guidance_coefficients
from loomvideo_diffusers.pipelines.loomvideo_mllm import DEFAULT_NEGATIVE_PROMPT


SMALL = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_close(actual, expected, atol: float = 1e-4) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), atol=atol, rtol=0)


@pytest.fixture
def references() -> list[PIL.Image.Image]:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(image) for image in pixels]


@pytest.fixture
def record_branches(monkeypatch):
    """Records what the transformer is called with."""

    def record(pipe):
        calls = []
        forward = pipe.transformer.forward
        monkeypatch.setattr(
            pipe.transformer, "forward", lambda **inputs: calls.append(inputs) or forward(**inputs), raising=True
        )
        return calls

    return record


def test_batch_equals_single_calls(pipe, references):
    prompts = ["a red square moves to the right on a very long road", "a cat"]
    negative_prompts = ["blurry", "static, overexposed and quite ugly"]
    inputs = SMALL | {"num_frames": 5}
    batch = pipe(
        prompts,
        negative_prompts,
        reference_images=[[references[0]], [references[1]]],
        generator=[generator(0), generator(1)],
        **inputs,
    ).frames
    for index in range(2):
        single = pipe(
            prompts[index],
            negative_prompts[index],
            reference_images=references[index],
            generator=generator(index),
            **inputs,
        ).frames
        assert_close(batch[index : index + 1], single)


def test_batch_of_edits_equals_single_calls(edit, clip, references):
    prompts = ["make the square in the middle blue", "make it night"]
    clips = [clip, clip[::-1].copy()]
    batch = edit(
        prompts,
        video=clips,
        reference_images=[references, references[::-1]],
        generator=[generator(0), generator(1)],
        **SMALL,
    ).frames
    for index in range(2):
        single = edit(
            prompts[index],
            video=clips[index],
            reference_images=[references, references[::-1]][index],
            generator=generator(index),
            **SMALL,
        ).frames
        assert_close(batch[index : index + 1], single)
    shared = edit(
        prompts, video=clip, reference_images=references, generator=[generator(0), generator(1)], **SMALL
    ).frames
    assert_close(shared[0], batch[0])


def test_num_videos_per_prompt(edit, clip):
    prompts = ["make it blue", "make it a rainy night"]
    generators = [generator(seed) for seed in range(4)]
    frames = edit(prompts, video=clip, num_videos_per_prompt=2, generator=generators, **SMALL).frames
    assert frames.shape == (4, 9, 3, 64, 64)
    for index in range(4):
        single = edit(prompts[index // 2], video=clip, generator=generator(index), **SMALL).frames
        assert_close(frames[index : index + 1], single)


def test_generators(pipe):
    inputs = SMALL | {"num_frames": 5, "output_type": "latent", "guidance_scale": 1, "guidance_scale_visual": 1}
    first, same, other = (pipe("a cat", generator=generator(seed), **inputs).frames for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    latents = torch.randn(first.shape, generator=generator(0))
    assert torch.equal(pipe("a cat", latents=latents, **inputs).frames, first)


def test_output_types(edit, clip):
    inputs = SMALL | {"prompt": "make it blue", "video": clip}
    frames = {
        kind: edit(**(inputs | {"output_type": kind}), generator=generator()).frames
        for kind in ("np", "pt", "pil", "latent")
    }
    assert frames["np"].shape == (1, 9, 64, 64, 3)
    assert frames["np"].dtype == np.float32
    assert 0 <= frames["np"].min() < frames["np"].max() <= 1
    assert frames["pt"].shape == (1, 9, 3, 64, 64)
    assert_close(frames["pt"].movedim(2, 4), frames["np"], atol=1e-6)
    assert len(frames["pil"]) == 1
    assert len(frames["pil"][0]) == 9
    assert_close(np.stack(frames["pil"][0]) / 255.0, frames["np"][0].astype(np.float64), atol=0.51 / 255)
    assert frames["latent"].shape == (1, 8, 3, 4, 4)
    assert_close(edit.decode_latents(frames["latent"], "pt").detach(), frames["pt"], atol=1e-5)

    (frames_of_tuple,) = edit(**inputs, generator=generator(), return_dict=False)
    assert torch.equal(frames_of_tuple, frames["pt"])


def test_inputs_of_all_kinds_are_equal(edit, clip, references):
    reference = np.asarray(references[0])
    inputs = SMALL | {"prompt": "use the image", "output_type": "latent"}
    floats = clip.astype(np.float32) / 255
    videos = [
        clip,
        [PIL.Image.fromarray(frame) for frame in clip],
        list(clip),
        floats,
        clip.transpose(0, 3, 1, 2),
        torch.from_numpy(clip),
        torch.from_numpy(clip).permute(0, 3, 1, 2),
        torch.from_numpy(floats).permute(0, 3, 1, 2),
        clip[None],
        [clip],
    ]
    images = [references[0], [reference], [[references[0]]], reference.transpose(2, 0, 1), torch.tensor(reference)]
    expected = edit(video=clip, reference_images=references[0], generator=generator(), **inputs).frames
    for video in videos:
        frames = edit(video=video, reference_images=references[0], generator=generator(), **inputs).frames
        assert torch.equal(frames, expected)
    for image in images:
        frames = edit(video=clip, reference_images=image, generator=generator(), **inputs).frames
        assert torch.equal(frames, expected)

    expected = edit(image=references[0], generator=generator(), **inputs).frames
    for image in (reference, torch.tensor(reference).permute(2, 0, 1), reference[None], [references[0]]):
        assert torch.equal(edit(image=image, generator=generator(), **inputs).frames, expected)


def test_sizes(pipe, edit, references):
    source = np.zeros((11, 70, 100, 3), np.uint8)
    inputs = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 1, "guidance_scale_visual": 1}
    # An edit keeps the size, rounded down to what latents can have, and the length, 4k + 1.
    assert edit("blue", video=source, **inputs).frames.shape == (1, 8, 3, 4, 6)
    assert edit("blue", video=source, num_frames=5, height=32, width=64, **inputs).frames.shape == (1, 8, 2, 2, 4)
    assert edit("blue", video=source[:1], **inputs).frames.shape == (1, 8, 1, 4, 6)
    assert edit("blue", image=source[0], **inputs).frames.shape == (1, 8, 1, 4, 6)
    # 480 x 832 by default; with references the trained size of their proportions.
    assert pipe("a cat", num_frames=1, **inputs).frames.shape == (1, 8, 1, 30, 52)
    for size, latent_size in (
        ((832, 480), (30, 52)),
        ((400, 300), (34, 44)),
        ((300, 400), (44, 34)),
        ((70, 70), (40, 40)),
        ((96, 60), (32, 48)),
        ((90, 20), (26, 60)),
    ):
        frames = pipe("a cat", num_frames=1, reference_images=PIL.Image.new("RGB", size), **inputs).frames
        assert frames.shape[3:] == latent_size


def test_long_and_short_clips(edit):
    """Sources of 16 to 29 frames leave the MLLM a single frame; longer ones than a window have several windows."""
    inputs = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale_visual": 1}
    for length, latent_length in ((1, 1), (2, 1), (16, 4), (17, 5), (29, 8), (30, 8), (125, 32)):
        clip = np.random.default_rng(length).integers(0, 256, (length, 32, 32, 3), dtype=np.uint8)
        assert edit("make it blue", video=clip, **inputs).frames.shape == (1, 8, latent_length, 2, 2)


@pytest.mark.parametrize(
    ("guidance_scale", "guidance_scale_visual", "branches"),
    [
        (2.5, 1.5, ["cond", "visual", "uncond"]),
        (2.5, 1.0, ["cond", "visual"]),
        (1.5, 1.5, ["cond", "uncond"]),
        (1.0, 1.0, ["cond"]),
        (0.0, 1.5, ["visual", "uncond"]),
    ],
)
def test_branches_that_do_not_count_do_not_run(
    guidance_scale, guidance_scale_visual, branches, edit, clip, record_branches
):
    assert list(guidance_coefficients(guidance_scale, guidance_scale_visual, True)) == branches
    inputs = SMALL | {"output_type": "latent", "num_inference_steps": 1}
    scales = {"guidance_scale": guidance_scale, "guidance_scale_visual": guidance_scale_visual}
    calls = record_branches(edit)
    skipped = edit("make it blue", video=clip, generator=generator(), **scales, **inputs).frames
    assert len(calls) == len(branches)
    assert [call["source_hidden_states"] is None for call in calls] == [branch == "uncond" for branch in branches]

    # A millionth more or less makes all branches run, and hardly changes the result.
    if len(branches) > 1:
        nearly = {"guidance_scale": guidance_scale + 1e-6, "guidance_scale_visual": guidance_scale_visual + 2e-6}
        complete = edit("make it blue", video=clip, generator=generator(), **nearly, **inputs).frames
        assert len(calls) == len(branches) + 3
        assert_close(skipped, complete)


def test_guidance_without_visual_input(pipe, record_branches):
    calls = record_branches(pipe)
    inputs = SMALL | {"num_frames": 1, "num_inference_steps": 1}
    pipe("a cat", guidance_scale=1.0, **inputs)
    assert len(calls) == 1
    pipe("a cat", guidance_scale=5.0, **inputs)
    assert len(calls) == 3
    # No source, no references, and yet the scale of a source, by which its bias is added
    for call in calls:
        assert call["source_hidden_states"] is None
        assert call["source_scale"].tolist() == pytest.approx([0.999])


def test_prompt_embeds(edit, pipe, clip, references):
    names = ["prompt_embeds", "visual_prompt_embeds", "negative_prompt_embeds"]
    names = [name for embeds in names for name in (embeds, f"{embeds}_mask")]
    inputs = SMALL | {"video": clip, "reference_images": references}
    prompts, negative_prompts = ["make it blue", "replace the square by the one shown"], ["blurry", "static and grey"]
    expected = edit(prompts, negative_prompts, generator=[generator(0), generator(1)], **inputs).frames

    with torch.no_grad():
        embeds = edit.encode_prompt(prompts, negative_prompts, video=clip, reference_images=references)[:6]
    assert [None if tensor is None else tensor.ndim for tensor in embeds] == [4, 2, 4, None, 4, 2]
    actual = edit(**dict(zip(names, embeds)), generator=[generator(0), generator(1)], **inputs).frames
    assert_close(actual, expected, atol=1e-6)

    # Where some are given, the rest is encoded.
    given = dict(zip(names, embeds))
    actual = edit(
        negative_prompt=negative_prompts,
        prompt_embeds=given["prompt_embeds"],
        prompt_embeds_mask=given["prompt_embeds_mask"],
        generator=[generator(0), generator(1)],
        **inputs,
    ).frames
    assert_close(actual, expected)

    # On a machine without the transformer, all layers are encoded; a call takes those that it needs.
    inputs = SMALL | {"num_frames": 5}
    expected = pipe("a cat", generator=generator(), **inputs).frames
    parts = LoomVideoPipeline(pipe.text_encoder, pipe.processor, None, None, None)
    with torch.no_grad():
        embeds = parts.encode_prompt("a cat", num_frames=5)
    assert embeds[0].shape[1] == 7
    rest = LoomVideoPipeline(None, None, pipe.vae, pipe.transformer, pipe.scheduler)
    rest.set_progress_bar_config(disable=True)
    given = {name: tensor for name, tensor in zip(names, embeds) if tensor is not None}
    assert_close(rest(**given, generator=generator(), **inputs).frames, expected, atol=1e-6)
    with pytest.raises(ValueError, match="This pipeline has no MLLM: pass `prompt_embeds`"):
        rest(prompt_embeds=given["prompt_embeds"], **inputs)


def test_default_negative_prompt(pipe):
    inputs = SMALL | {"num_frames": 1}
    default = pipe("a cat", generator=generator(), **inputs).frames
    named = pipe("a cat", DEFAULT_NEGATIVE_PROMPT, generator=generator(), **inputs).frames
    empty = pipe("a cat", "", generator=generator(), **inputs).frames
    assert torch.equal(default, named)
    assert not torch.equal(default, empty)


def test_callback_sees_and_changes_tensors(edit, clip):
    inputs = SMALL | {"video": clip, "output_type": "latent", "num_inference_steps": 3}
    seen = []

    def record(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), sorted(tensors), pipe.num_timesteps, int(pipe.current_timestep)))
        return tensors

    expected = edit(
        "make it blue",
        generator=generator(),
        callback_on_step_end=record,
        callback_on_step_end_tensor_inputs=edit._callback_tensor_inputs,
        **inputs,
    ).frames
    names = [
        f"{name}_embeds{mask}" for name in ("negative_prompt", "prompt", "visual_prompt") for mask in ("", "_mask")
    ]
    names = ["latents", *names]
    assert seen == [(0, 999, names, 3, 999), (1, 909, names, 3, 909), (2, 714, names, 3, 714)]

    def zero(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else tensors

    assert not edit("make it blue", generator=generator(), callback_on_step_end=zero, **inputs).frames.any()

    # Prompt embeds of another length: the rest of the call is a call with those
    with torch.no_grad():
        other = edit.encode_prompt("make the whole picture look like a rainy night", video=clip)[0]

    def replace(pipe, step, timestep, tensors):
        return {"prompt_embeds": other} if step == 0 else {}

    changed = edit("make it blue", generator=generator(), callback_on_step_end=replace, **inputs).frames
    assert (changed - expected).abs().max() > 1e-3
    late = edit(
        "make it blue",
        generator=generator(),
        callback_on_step_end=lambda pipe, step, timestep, tensors: {"prompt_embeds": other} if step == 2 else {},
        **inputs,
    ).frames
    assert torch.equal(late, expected)


def test_callback_replaces_embeds_of_a_padded_batch(pipe):
    short, long, longer = (
        "a cat",
        "a cat that sits on a red carpet",
        "a dog that sits on a very long yellow sofa at night",
    )
    inputs = SMALL | {"num_frames": 5, "output_type": "latent"}
    generators = [generator(0), generator(1)]
    latents = torch.cat([torch.randn(1, 8, 2, 4, 4, generator=generator) for generator in generators])
    with torch.no_grad():
        embeds, mask = pipe.encode_prompt([long, longer])[:2]
        bare = [pipe.encode_prompt(prompt)[0] for prompt in (long, longer)]

    def replace(new):
        return lambda pipe, step, timestep, tensors: dict(new)

    with_mask = {"prompt_embeds": embeds.double(), "prompt_embeds_mask": mask}
    batch = pipe([short, long], latents=latents, callback_on_step_end=replace(with_mask), **inputs).frames
    for index, prompt in enumerate((short, long)):
        single = {"prompt_embeds": bare[index]}
        expected = pipe(prompt, latents=latents[index : index + 1], callback_on_step_end=replace(single), **inputs)
        assert_close(batch[index : index + 1], expected.frames, atol=1e-4)
    with pytest.raises(ValueError, match="must return their mask too"):
        pipe([short, long], callback_on_step_end=replace({"prompt_embeds": embeds}), **inputs)


def test_seed_of_a_stochastic_scheduler(pipe):
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    inputs = SMALL | {"num_frames": 1, "output_type": "latent"}
    first, second = (pipe("a cat", generator=generator(), **inputs).frames for _ in range(2))
    assert torch.equal(first, second)


def test_compiled_text_encoder(pipe):
    inputs = SMALL | {"num_frames": 1}
    expected = pipe("a cat", generator=generator(), **inputs).frames
    pipe.text_encoder = torch.compile(pipe.text_encoder, backend="eager")
    assert_close(pipe("a cat", generator=generator(), **inputs).frames, expected)


def test_callback_changes_guidance(edit, clip, record_branches):
    class TurnOffGuidance(PipelineCallback):
        tensor_inputs = ["latents"]

        def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
            if step_index == 0:
                pipeline._guidance_scale = pipeline._guidance_scale_visual = 1.0
            return callback_kwargs

    calls = record_branches(edit)
    callback = TurnOffGuidance(cutoff_step_ratio=None, cutoff_step_index=1)
    edit("make it blue", video=clip, callback_on_step_end=callback, **(SMALL | {"num_inference_steps": 3}))
    assert len(calls) == 3 + 1 + 1

    def turn_on(pipe, step, timestep, tensors):
        pipe._guidance_scale += 1.0
        return tensors

    edit("make it blue", video=clip, guidance_scale=2.0, callback_on_step_end=turn_on, **SMALL)
    assert edit.guidance_scale == 4.0
    with pytest.raises(ValueError, match="guidance was off when the call began"):
        edit(
            "make it blue",
            video=clip,
            guidance_scale=1.0,
            guidance_scale_visual=1.0,
            callback_on_step_end=turn_on,
            **SMALL,
        )


def test_interrupt(pipe, record_branches):
    calls = record_branches(pipe)

    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return tensors

    inputs = SMALL | {"num_frames": 1, "num_inference_steps": 5}
    assert pipe("a cat", callback_on_step_end=interrupt, **inputs).frames.shape == (1, 1, 3, 64, 64)
    assert len(calls) == 4
    pipe("a cat", **inputs)
    assert len(calls) == 14


def test_examples_of_the_docstrings(model_folder, tmp_path, monkeypatch):
    """They run as they are, but for the model, the device and the size."""
    monkeypatch.chdir(tmp_path)
    for pipeline_class in (LoomVideoPipeline, LoomVideoEditPipeline):
        code = "\n".join(re.findall(r"^\s*>>> (.*)$", pipeline_class.__call__.__doc__, re.MULTILINE))
        code = code.replace('"path-or-repo"', repr(str(model_folder))).replace('.to("cuda")', "")
        small = "num_frames=5, height=64, width=64, num_inference_steps=1"
        code = code.replace("num_frames=81", small).replace("video=video", f"video=video, {small}")
        exec(code, {})
    assert {path.name for path in tmp_path.iterdir()} == {"fox.mp4", "leaves.mp4"}


def test_progress_bar(pipe, capsys):
    inputs = SMALL | {"num_frames": 1, "num_inference_steps": 3}
    pipe("a cat", **inputs)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    pipe("a cat", **inputs)
    assert "3/3" in capsys.readouterr().err
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=5.0)
    pipe("a cat", **inputs)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=5.0),
        FlowMatchHeunDiscreteScheduler(shift=5.0),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers(scheduler, pipe):
    """Whatever solves the same flow arrives at about the same place."""
    inputs = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 60, "output_type": "latent"}
    inputs |= {"guidance_scale": 1, "guidance_scale_visual": 1}
    expected = pipe("a cat", generator=generator(), **inputs).frames
    pipe.scheduler = scheduler
    actual = pipe("a cat", generator=generator(), **inputs).frames
    assert (actual - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_sigmas(pipe, edit, clip):
    """Those that the scheduler would choose itself give the same result, others another, in their number of steps."""
    inputs = SMALL | {"num_frames": 5, "num_inference_steps": 4, "output_type": "latent"}
    own = np.linspace(1, 1 / 1000, 5)[:-1].tolist()
    for call in (partial(pipe, "a cat"), partial(edit, "make it blue", video=clip[:5])):
        expected = call(generator=generator(), **inputs).frames
        assert torch.equal(
            call(generator=generator(), **inputs | {"num_inference_steps": 50}, sigmas=own).frames, expected
        )
        assert not torch.equal(call(generator=generator(), **inputs, sigmas=[1.0, 0.5]).frames, expected)
    assert pipe.num_timesteps == 2
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe("a cat", generator=generator(), **inputs, sigmas=[1.0, 0.8, 0.1])
    assert torch.allclose(pipe.scheduler.sigmas, torch.tensor([1.0, 0.8, 0.1, 0.0]))


@pytest.mark.parametrize("sigmas", [[], [0.5, 1.0], [1.0, 1.0], [1.5, 1.0], [1.0, 0.0], ["1"], 0.5, [float("nan")]])
def test_wrong_sigmas(sigmas, pipe):
    with pytest.raises(LoomVideoInputError, match="`sigmas` must be a list of falling numbers above 0 and at most 1"):
        pipe("a cat", **SMALL, sigmas=sigmas)


def test_schedulers_without_sigmas(pipe):
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=5.0)
    with pytest.raises(LoomVideoInputError, match="FlowMatchHeunDiscreteScheduler takes no `sigmas`: choose another"):
        pipe("a cat", **SMALL, sigmas=[1.0, 0.5])


def test_from_pipe_shares_weights_as_they_are(model_folder, clip):
    pipe = LoomVideoPipeline.from_pretrained(model_folder, dtype=torch.bfloat16)
    edit = LoomVideoEditPipeline.from_pipe(pipe)
    back = LoomVideoPipeline.from_pipe(edit)
    for other in (edit, back):
        assert all(other.components[name] is component for name, component in pipe.components.items())
    assert pipe.transformer.dtype == pipe.text_encoder.dtype == torch.bfloat16
    assert pipe.transformer.scale_shift_table.dtype == torch.float32
    frames = edit("make it blue", video=clip, **SMALL).frames
    assert frames.isfinite().all()

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    assert LoomVideoEditPipeline.from_pipe(pipe, scheduler=scheduler).scheduler is scheduler
    assert LoomVideoEditPipeline.from_pipe(pipe, dtype=torch.float32).transformer.dtype == torch.float32


def test_vae_slicing_and_tiling(edit, clip):
    prompts = ["make it blue", "make it night"]
    inputs = SMALL | {"height": 96, "width": 128}
    latents = torch.randn(2, 8, 3, 6, 8, generator=generator())
    expected = edit(prompts, video=clip, latents=latents, **inputs).frames
    edit.vae.enable_slicing()
    assert_close(edit(prompts, video=clip, latents=latents, **inputs).frames, expected, atol=1e-5)
    edit.vae.enable_tiling(
        tile_sample_min_height=64, tile_sample_min_width=64, tile_sample_stride_height=48, tile_sample_stride_width=48
    )
    tiled = edit(prompts, video=clip, latents=latents, **inputs).frames
    assert tiled.shape == expected.shape
    assert tiled.isfinite().all()
    assert not torch.equal(tiled, expected)


def test_chunks_are_tiled_too(edit):
    """Encoding and decoding in chunks takes the tiles that the VAE was told to take."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 96, 128, 3), dtype=np.uint8)
    sides = ("height", "width")
    tiles = {f"tile_sample_{size}_{side}": pixels for size, pixels in (("min", 64), ("stride", 48)) for side in sides}
    clip = [PIL.Image.fromarray(frame) for frame in frames]
    whole = edit.encode_in_chunks(frames)
    edit.vae.enable_tiling(**tiles)
    with torch.no_grad():
        encoded = edit.prepare_clip_latents([clip], 1)
        decoded = edit.decode_latents(encoded, "pt")
    assert torch.equal(edit.encode_in_chunks(frames), encoded)
    assert not torch.equal(encoded, whole)
    video = torch.cat(list(edit.decode_in_chunks(encoded)), dim=2)
    assert torch.equal(edit.video_processor.postprocess_video(video, output_type="pt"), decoded)


def test_components_are_as_they_were_after_a_call(edit, clip):
    states = {
        name: {key: value.clone() for key, value in getattr(edit, name).state_dict().items()}
        for name in ("text_encoder", "transformer", "vae")
    }
    configs = {
        name: str(component.config) for name, component in edit.components.items() if hasattr(component, "config")
    }
    edit("make it blue", video=clip, **SMALL)
    for name, state in states.items():
        after = getattr(edit, name).state_dict()
        assert all(torch.equal(after[key], value) for key, value in state.items())
    assert configs == {
        name: str(component.config) for name, component in edit.components.items() if hasattr(component, "config")
    }
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in edit.text_encoder.modules())


@pytest.mark.parametrize("name", ["pipeline_ref_edit", "pipeline_mi2v"])
def test_save_and_load(name, pipe, edit, tmp_path):
    pipe = edit if "edit" in name else pipe
    inputs = call_inputs(name)
    expected = pipe(**inputs).frames
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(loaded(**inputs).frames, expected)
    assert set(loaded.components) == {"text_encoder", "processor", "vae", "transformer", "scheduler"}

    mixed = type(pipe).from_pretrained(tmp_path, dtype={"transformer": torch.bfloat16, "default": torch.float16})
    assert mixed.transformer.dtype == torch.bfloat16
    assert mixed.vae.dtype == mixed.text_encoder.dtype == torch.float16


def test_components_made_by_hand(pipe, clip):
    """An 8x8 VAE and another number of layers and channels: nothing of the released sizes is taken for granted."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    config = dict(pipe.transformer.config) | {"in_channels": 16, "out_channels": 16, "num_layers": 2}
    transformer = type(pipe.transformer).from_config(config)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    components = pipe.components | {"vae": vae, "transformer": transformer, "scheduler": scheduler}
    pipe, edit = LoomVideoPipeline(**components), LoomVideoEditPipeline(**components)
    frames = pipe("a cat", height=48, width=80, num_frames=5, num_inference_steps=1, output_type="pt").frames
    assert frames.shape == (1, 5, 3, 48, 80)
    assert edit("blue", video=clip[:, :48, :40], num_inference_steps=1, output_type="pt").frames.shape == (
        1,
        9,
        3,
        48,
        32,
    )


def test_mllm_with_too_few_layers(pipe):
    config = dict(pipe.transformer.config) | {"num_layers": 8}
    pipe.transformer = type(pipe.transformer).from_config(config)
    with pytest.raises(ValueError, match="reads 8 layers of the MLLM, but this one has 7: use the MLLM"):
        pipe("a cat", **SMALL)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_from_cuda(offload, edit):
    inputs = call_inputs("pipeline_ref_edit")
    expected = edit.to("cuda")(**inputs).frames
    edit.to("cpu")
    getattr(edit, offload)()
    assert_close(edit(**inputs).frames, expected)
    assert_close(edit(**inputs).frames, expected)


def offload_models(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def offload_layers(pipe):
    """What sequential offload does, to the CPU: weights are on no device but while their layer runs."""
    for model in (pipe.text_encoder, pipe.transformer, pipe.vae):
        accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=True)
        assert model.device.type == "meta"


def offload_blocks(pipe):
    options = {"onload_device": torch.device("cpu"), "offload_type": "block_level", "num_blocks_per_group": 1}
    pipe.transformer.enable_group_offload(**options)
    apply_group_offloading(pipe.text_encoder, **options)


def offload_leaves(pipe):
    for model in (pipe.text_encoder, pipe.transformer, pipe.vae):
        apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize("offload", [offload_models, offload_layers, offload_blocks, offload_leaves])
@pytest.mark.parametrize("name", ["pipeline_ref_edit", "pipeline_mi2v", "pipeline_t2v"])
def test_offload(offload, name, pipe, edit):
    pipe = edit if "edit" in name else pipe
    inputs = call_inputs(name)
    expected = pipe(**inputs).frames
    offload(pipe)
    assert_close(pipe(**inputs).frames, expected, atol=1e-5)
    assert_close(pipe(**inputs).frames, expected, atol=1e-5)


def test_offload_order(edit, clip):
    """The models come into use in the order of the offload sequence."""
    order = []
    for name in ("text_encoder", "transformer", "vae"):
        part = {
            "text_encoder": edit.text_encoder.language_model,
            "transformer": edit.transformer,
            "vae": edit.vae.decoder,
        }
        part[name].register_forward_pre_hook(lambda module, args, name=name: order.append(name))
    edit("make it blue", video=clip, **SMALL)
    seen = list(dict.fromkeys(order))
    assert "->".join(seen) == edit.model_cpu_offload_seq
