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
"""What calls do when nothing else is said, and how often models run: values that are written down here."""

import inspect

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from test_savings import counted

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline
from loomvideo_diffusers.pipelines.loomvideo_frames import cut_frames, gray_to_8_bits


SMALL = {"height": 32, "width": 32, "output_type": "latent"}
UNGUIDED = {"guidance_scale": 1, "guidance_scale_visual": 1}


@pytest.mark.parametrize(
    ("pipeline", "defaults"),
    [
        (LoomVideoPipeline, {"num_frames": 81, "guidance_scale": 5.0}),
        (LoomVideoEditPipeline, {"num_frames": None, "guidance_scale": 2.5}),
    ],
)
def test_defaults(pipeline, defaults):
    """The published ones; a size that is not given is decided in the call."""
    defaults = defaults | {
        "height": None, "width": None, "num_inference_steps": 50, "guidance_scale_visual": 1.5,
        "num_videos_per_prompt": 1, "guidance_interval": (0.0, 1.0), "window_frames": 121, "window_overlap": None,
        "use_kv_cache": True, "output_type": "np", "return_dict": True,
    }  # fmt: skip
    parameters = inspect.signature(pipeline.__call__).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


def test_default_length_and_steps(pipe, edit):
    """81 frames are 21 of the latents, whose noise is removed in 50 steps."""
    with counted(transformer=pipe.transformer) as counts:
        assert pipe("a cat", **SMALL, **UNGUIDED).frames.shape == (1, 8, 21, 2, 2)
    assert counts["transformer"] == 50
    with counted(transformer=edit.transformer) as counts:
        edit("blue", image=PIL.Image.new("RGB", (32, 32)), **SMALL, **UNGUIDED)
    assert counts["transformer"] == 50


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([0.0, 2.0**31, 2.0**33], [0, 128, 255]),
    ],
)
def test_white_of_gray_images(values, expected):
    assert gray_to_8_bits(np.array([values]), "image").tolist() == [expected]


def test_frames_that_are_left_out(caplog):
    frame = PIL.Image.new("RGB", (8, 8))
    assert [len(clip) for clip in cut_frames([[frame] * 9, [frame] * 9], None, 4)] == [9, 9]
    assert not caplog.records
    assert [len(clip) for clip in cut_frames([[frame] * 10, [frame] * 11], None, 4)] == [9, 9]
    assert [record.getMessage() for record in caplog.records] == ["Using the first 9 of 11 frames."]
    assert [len(clip) for clip in cut_frames([[frame] * 10, [frame] * 17], 5, 4)] == [5, 5]
    with pytest.raises(ValueError, match=r"have \[9, 13\] frames: pass the `num_frames`"):
        cut_frames([[frame] * 9, [frame] * 13], None, 4)


@pytest.mark.parametrize("given", [{}, {"guidance_scale": 4.0, "guidance_scale_visual": 3.0}])
@pytest.mark.parametrize("kind", ["text", "references", "edit"])
def test_guidance(kind, given, pipe, edit):
    """One step from noise to nothing subtracts the guided velocity: here it is put together from the branches'."""
    pipe = edit if kind == "edit" else pipe
    pipe.register_modules(scheduler=FlowMatchEulerDiscreteScheduler())
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    inputs = {
        "text": {"num_frames": 1},
        "references": {"num_frames": 1, "reference_images": picture},
        "edit": {"image": picture},
    }[kind]
    noise, velocities = torch.randn(1, 8, 1, 2, 2), []
    hook = pipe.transformer.register_forward_hook(lambda module, inputs, output: velocities.append(output[0]))
    result = pipe("blue", latents=noise, num_inference_steps=1, **inputs, **SMALL, **given).frames
    hook.remove()
    words = given.get("guidance_scale", 2.5 if kind == "edit" else 5.0)
    pixels = given.get("guidance_scale_visual", 1.5)
    if kind == "text":
        cond, uncond = velocities
        velocity = uncond + words * (cond - uncond)
    else:
        cond, visual, uncond = velocities
        velocity = uncond + pixels * (visual - uncond) + words * (cond - visual)
        assert (visual - uncond).abs().max() > 1e-2
    assert (cond - uncond).abs().max() > 1e-2
    torch.testing.assert_close(result, noise - velocity, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("num_steps", "interval", "guided"),
    [
        (5, (0.25, 0.75), [1, 2, 3]),
        (5, (0.35, 0.65), [2]),
        (5, (0.0, 0.45), [0, 1]),
        (5, (0.55, 1.0), [3, 4]),
        (3, (0.0, 1.0), [0, 1, 2]),
    ],
)
def test_which_steps_are_guided(num_steps, interval, guided, pipe):
    """From the step nearest to the first share to that nearest to the second; the others run one branch of two."""
    options = {"num_frames": 1, "num_inference_steps": num_steps, "guidance_interval": interval}
    with counted(transformer=pipe.transformer) as counts:
        totals = [0]
        pipe("a cat", callback_on_step_end=lambda *_: totals.append(counts["transformer"]) or {}, **options, **SMALL)
    assert np.diff(totals).tolist() == [2 if step in guided else 1 for step in range(num_steps)]


@pytest.mark.parametrize(
    ("num_frames", "window", "lengths"),
    [
        (121, {}, [31]),
        (125, {}, [31, 31]),
        # Windows of 9 latent frames that share two: not one or none, of which two windows would be enough for 17, and
        # not three or four, of which 23 would need four.
        (65, {"window_frames": 33}, [9, 9, 9]),
        (89, {"window_frames": 33}, [9, 9, 9]),
        (89, {"window_frames": 33, "window_overlap": 16}, [9, 9, 9, 9]),
        (65, {"window_frames": 33, "window_overlap": 4}, [9, 9]),
    ],
)
def test_windows(num_frames, window, lengths, pipe):
    """By default of 121 frames, and by a quarter over each other."""
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, arguments, inputs: seen.append(inputs["hidden_states"].shape[2]), with_kwargs=True
    )
    pipe("a cat", num_frames=num_frames, num_inference_steps=1, **window, **SMALL, **UNGUIDED)
    hook.remove()
    assert seen == lengths


def test_pixels_are_encoded_once(edit, clip):
    """However many samples are made of them."""
    reference = PIL.Image.new("RGB", (40, 40), "red")
    options = {"num_videos_per_prompt": 2, "num_inference_steps": 1} | SMALL | UNGUIDED
    with counted(encodes=edit.vae.quant_conv) as counts:
        edit(["blue", "red"], video=clip, reference_images=[reference], **options)
    assert counts["encodes"] == 2
    with counted(encodes=edit.vae.quant_conv) as counts:
        edit(["blue", "red"], video=[clip, clip[::-1]], **options)
    assert counts["encodes"] == 2
