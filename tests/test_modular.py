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
"""Blocks for Modular Diffusers: the same latents as the pipelines', and parts that can be exchanged."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import ClassifierFreeGuidance, DiffusionPipeline, ModularPipeline
from diffusers.modular_pipelines import SequentialPipelineBlocks

from loomvideo_diffusers.modular import LoomVideoAutoBlocks, LoomVideoBlock, LoomVideoEditBlocks, LoomVideoGuidance
from loomvideo_diffusers.nano import MODEL


RED = PIL.Image.new("RGB", (64, 64), "red")
CLIP = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
NEW = {"height": 64, "width": 64, "num_frames": 5}
TASKS = {
    "a video": NEW,
    "an image": NEW | {"num_frames": 1},
    "a video from references": NEW | {"reference_images": [RED, RED]},
    "an edit": {"video": CLIP},
    "an edit with a reference": {"video": CLIP, "reference_images": RED},
    "an edit of an image": {"image": CLIP[0]},
    "an edit of a part": {"video": CLIP, "mask": np.tri(64) > 0},
    "an edit that stays close": {"video": CLIP, "strength": 0.5},
    "an edit in windows": {"video": CLIP, "window_frames": 5, "window_overlap": 0},
    "results of one prompt": {"video": CLIP, "num_videos_per_prompt": 2, "mask": np.tri(64) > 0},
    "results of a batch that stay close": {
        "video": CLIP,
        "prompt": ["blue", "a thing that is red"],
        "num_videos_per_prompt": 2,
        "strength": 0.5,
    },
    "a batch": {"video": CLIP, "prompt": ["blue", "a thing that is red"], "negative_prompt": ["gray", "blurry"]},
    "an edit of a size": {"video": CLIP, "height": 32, "width": 96, "num_frames": 5},
}


@pytest.fixture
def modular(pipe):
    """A modular pipeline with a pipeline's components."""
    modular = LoomVideoAutoBlocks().init_pipeline()
    modular.update_components(**pipe.components)
    return modular


def options_of(task):
    count = len(TASKS[task].get("prompt", [""])) * TASKS[task].get("num_videos_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return {"prompt": "blue", "num_inference_steps": 3, "generator": generators} | TASKS[task]


@pytest.mark.parametrize(
    ("task", "scales"),
    [(task, (5.0, 1.5)) for task in TASKS]
    + [("an edit with a reference", scales) for scales in ((2.5, 2.5), (1.0, 1.0))],
    ids=str,
)
def test_as_the_pipelines(task, scales, pipe, edit, modular):
    guidance = dict(zip(("guidance_scale", "guidance_scale_visual"), scales))
    modular.update_components(guider=LoomVideoGuidance(*scales))
    call = edit if {"video", "image"} & set(TASKS[task]) else pipe
    for output_type in ("latent", "np"):
        expected = call(**options_of(task) | guidance, output_type=output_type).frames
        results = modular(**options_of(task), output_type=output_type, output="videos")
        torch.testing.assert_close(torch.as_tensor(results), torch.as_tensor(expected), atol=1e-6, rtol=0)


def test_a_part_of_the_steps(pipe, modular):
    """The guider says where guidance begins and ends."""
    modular.update_components(guider=LoomVideoGuidance(5.0, 1.5, start=0.3, stop=0.7))
    expected = pipe(**options_of("a video"), guidance_interval=(0.3, 0.7), output_type="latent").frames
    results = modular(**options_of("a video"), output_type="latent", output="videos")
    torch.testing.assert_close(results, expected, atol=1e-6, rtol=0)


def branches_of(modular, **options):
    """How often the transformer runs, and how often with visual input."""
    calls = []
    handle = modular.transformer.register_forward_pre_hook(
        lambda module, arguments, inputs: calls.append(inputs["source_hidden_states"] is not None), with_kwargs=True
    )
    modular(**options, output_type="latent", output="videos")
    handle.remove()
    return len(calls), sum(calls)


def test_another_guider(modular):
    """Diffusers' own runs two branches, of which the visual one is none."""
    assert branches_of(modular, **options_of("an edit")) == (9, 6)
    modular.update_components(guider=ClassifierFreeGuidance(guidance_scale=3.0))
    assert branches_of(modular, **options_of("an edit")) == (6, 3)
    modular.update_components(guider=LoomVideoGuidance(enabled=False))
    assert branches_of(modular, **options_of("an edit")) == (3, 3)


class Louder(LoomVideoBlock):
    """Doubles what the words say."""

    takes = gives = ("prompt_embeds",)

    def run(self, steps, values):
        values.prompt_embeds = 2 * values.prompt_embeds


def test_a_block_between_others(pipe, edit):
    """One that is put in after encoding changes what comes after it."""
    blocks = LoomVideoEditBlocks()
    blocks.sub_blocks.insert("louder", Louder(), 2)
    modular = blocks.init_pipeline()
    modular.update_components(**pipe.components, guider=LoomVideoGuidance(2.5, 1.5))
    results = modular(**options_of("an edit"), output_type="latent", output="videos")
    embeds = edit.encode_prompt("blue", video=CLIP)
    names = ("prompt_embeds", "prompt_embeds_mask", "visual_prompt_embeds", "visual_prompt_embeds_mask")
    given = dict(zip((*names, "negative_prompt_embeds", "negative_prompt_embeds_mask"), embeds))
    given["prompt_embeds"] = 2 * given["prompt_embeds"]
    options = {name: value for name, value in options_of("an edit").items() if name != "prompt"}
    expected = edit(**options | given, output_type="latent").frames
    torch.testing.assert_close(results, expected, atol=1e-6, rtol=0)


def test_blocks_alone(pipe, edit, modular):
    """What one block gives is what another takes, in another pipeline and another time."""
    blocks = LoomVideoEditBlocks()

    def alone(*names):
        chosen = SequentialPipelineBlocks.from_blocks_dict({name: blocks.sub_blocks[name] for name in names})
        part = chosen.init_pipeline()
        part.update_components(**{name: pipe.components[name] for name in chosen.component_names if name != "guider"})
        return part

    options = {"prompt": "blue", "video": CLIP}
    embeds = alone("size", "text_encoder")(**options)
    source = alone("size", "source_encoder")(**options, output="source_latents")
    torch.testing.assert_close(source, edit.encode_in_chunks(CLIP), atol=1e-5, rtol=0)
    names = [param.name for param in blocks.sub_blocks["text_encoder"].intermediate_outputs]
    rest = alone("set_timesteps", "prepare_latents", "denoise")
    latents = rest(
        denoiser_input_fields={name: embeds.get(name) for name in names},
        source_latents=source, height=64, width=64, num_frames=9, batch_size=1, num_inference_steps=3,
        generator=torch.Generator().manual_seed(0), output="latents",
    )  # fmt: skip
    expected = modular(**options_of("an edit"), output_type="latent", output="videos")
    torch.testing.assert_close(latents, expected, atol=1e-6, rtol=0)
    video = alone("decode")(latents=latents, output="videos")
    assert video.shape == (1, 9, 64, 64, 3)


def test_from_folders(model_folder, pipe):
    """One that `convert` wrote, by the package; nano's, which has no code; neither runs what a folder holds."""
    modular = LoomVideoAutoBlocks().init_pipeline(str(model_folder))
    modular.load_components()
    assert type(modular.transformer) is type(pipe.transformer)
    expected = pipe(**options_of("a video"), output_type="latent").frames
    results = modular(**options_of("a video"), output_type="latent", output="videos")
    torch.testing.assert_close(results, expected, atol=1e-6, rtol=0)
    nano = LoomVideoAutoBlocks().init_pipeline(str(MODEL))
    nano.load_components("transformer")
    assert type(nano.transformer) is type(pipe.transformer)


@pytest.mark.parametrize("place", ["a folder", pytest.param("a repository", marks=pytest.mark.slow)])
def test_remote_code(place, model_folder, pipe, hub):
    """With the code of a folder or a repository, and diffusers alone; the classic pipeline says nothing new."""
    name = str(model_folder)
    if place == "a repository":
        pipe.push_to_hub("me/modular")
        name = "me/modular"
    modular = ModularPipeline.from_pretrained(name, trust_remote_code=True)
    assert type(modular.blocks).__module__.startswith("diffusers_modules")
    modular.load_components(trust_remote_code=True)
    assert type(modular.transformer).__module__.startswith("diffusers_modules")
    expected = pipe(**options_of("a video"), output_type="latent").frames
    results = modular(**options_of("a video"), output_type="latent", output="videos")
    torch.testing.assert_close(results, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipeline.from_pretrained(name, trust_remote_code=False)


def test_no_new_warnings(model_folder, capfd):
    DiffusionPipeline.from_pretrained(model_folder, trust_remote_code=True)
    assert "auto_map" not in capfd.readouterr().err


def test_files_of_a_folder(model_folder):
    index = json.loads((model_folder / "modular_model_index.json").read_text())
    assert set(index) == {
        "_class_name", "_blocks_class_name", "processor", "scheduler", "text_encoder", "transformer", "vae",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "blank"),
        ({"prompt": "blue", "height": 60, "width": 64}, "multiple of"),
        ({"prompt": "blue", "video": CLIP, "num_frames": 4}, "must be 4k"),
        ({"prompt": "blue", "num_inference_steps": 0, **NEW}, "`num_inference_steps` must be a positive integer"),
        ({"prompt": "blue", "video": CLIP, "mask": np.zeros((4, 64, 64))}, "`mask` has 4 frames, but the clip has 9"),
    ],
)
def test_bad_inputs(options, message, modular):
    with pytest.raises(ValueError, match=message):
        modular(**{"num_inference_steps": 1} | options)


def test_every_input_is_described():
    for block in (LoomVideoAutoBlocks(), LoomVideoEditBlocks()):
        described = [param.description for param in block.inputs]
        assert all(described)
        assert "mask_feather" in block.doc
