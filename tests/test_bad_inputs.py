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
"""Wrong arguments: one sentence that says what is wrong and what to do, before any model runs."""

import re

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler

from loomvideo_diffusers.pipelines.loomvideo_errors import LoomVideoInputError


VIDEO = np.zeros((5, 64, 64, 3), np.uint8)
IMAGE = np.zeros((64, 64, 3), np.uint8)
EMBEDS = torch.zeros(1, 4, 6, 48)
NAN = EMBEDS / 0


def check(pipe, message, wrong=(), **inputs):
    """
    A call is refused before any model runs, in one line that names a wrong argument, or what it stands for, and says
    what to do. It is a TypeError, or an error of the caller's that a program may show.
    """

    def run(*_):
        raise AssertionError("a model ran")

    for model in (pipe.text_encoder, pipe.transformer, pipe.vae, pipe.text_encoder.visual):
        model.register_forward_pre_hook(run)
    pipe.vae.encode = pipe.vae.decode = run
    with pytest.raises((LoomVideoInputError, TypeError), match=message) as error:
        pipe(**inputs)
    assert not wrong or any(name in str(error.value) for name in wrong)
    assert "\n" not in str(error.value)
    assert re.search(r"[:,] (pass|use|encode|scale)|must", str(error.value)) or "Pass" in str(error.value)


COMMON = [
    ({"prompt": None}, "Pass either `prompt` or `prompt_embeds`"),
    ({"prompt_embeds": EMBEDS}, "Pass either `prompt` or `prompt_embeds`"),
    ({"prompt": []}, "`prompt` is an empty list"),
    ({"prompt": 3}, "`prompt` must be a string"),
    ({"prompt": ["a", None]}, "`prompt` must be a string"),
    ({"negative_prompt": 3}, "`negative_prompt` must be a string"),
    ({"negative_prompt": ["a", "b"]}, "`negative_prompt` has 2 entries, but there are 1 prompts"),
    ({"negative_prompt": "a", "negative_prompt_embeds": EMBEDS}, "Pass either `negative_prompt`"),
    ({"prompt": None, "prompt_embeds": NAN}, "`prompt_embeds` holds NaN"),
    ({"negative_prompt_embeds": NAN}, "`negative_prompt_embeds` holds NaN"),
    ({"visual_prompt_embeds": NAN}, "`visual_prompt_embeds` holds NaN"),
    ({"prompt": None, "prompt_embeds": EMBEDS[0]}, r"`prompt_embeds` must be \[4, 4 or more layers"),
    ({"prompt": None, "prompt_embeds": EMBEDS[:, 1:]}, r"`prompt_embeds` must be \[1, 4 or more layers, tokens, 48\]"),
    ({"prompt": None, "prompt_embeds": EMBEDS[..., 1:]}, r"`prompt_embeds` must be \[1, 4 or more"),
    ({"prompt": "the cat of <|image_pad|>"}, "must not hold the MLLM's markers"),
    (
        {"prompt": ["a", "b"], "negative_prompt_embeds": EMBEDS},
        r"`negative_prompt_embeds` must be \[2, 4 or more layers",
    ),
    (
        {"prompt": None, "prompt_embeds": EMBEDS, "prompt_embeds_mask": torch.ones(1, 5).bool()},
        r"`prompt_embeds_mask` must be \[batch, tokens\]",
    ),
    ({"height": 60, "width": 64}, "`height` must be a positive multiple of 32, but is 60"),
    ({"height": 64, "width": 0}, "`width` must be a positive multiple of 32, but is 0"),
    ({"height": -64, "width": 64}, "`height` must be a positive multiple of 32, but is -64"),
    ({"height": 64.0, "width": 64}, r"`height` must be a positive multiple of 32, but is 64\.0"),
    ({"height": 64}, "Pass both `height` and `width`"),
    ({"num_frames": 4}, r"`num_frames` must be 4k \+ 1"),
    ({"num_frames": 0}, r"`num_frames` must be 4k \+ 1"),
    ({"num_frames": -3}, r"`num_frames` must be 4k \+ 1"),
    ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer"),
    ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` must be a positive integer"),
    ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number"),
    ({"guidance_scale_visual": float("inf")}, "`guidance_scale_visual` must be a finite number"),
    ({"generator": [torch.Generator()] * 2}, "2 generators for 1 videos"),
    ({"output_type": "mp4"}, "`output_type` must be one of np, pt, pil, latent"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "but holds noise"),
    ({"latents": torch.zeros(1, 8, 9, 4, 4)}, r"`latents` must have shape \(1, 8, 2, 4, 4\)"),
    ({"latents": torch.full((1, 8, 2, 4, 4), torch.nan)}, "`latents` holds NaN"),
    ({"latents": np.zeros((1, 8, 2, 4, 4))}, "`latents` must be a torch tensor"),
    ({"prompt": None, "prompt_embeds": [1]}, "`prompt_embeds` must be a torch tensor"),
    ({"generator": 3}, "`generator` must be a torch.Generator"),
    ({"guidance_scale": None}, "`guidance_scale` must be a finite number"),
    ({"reference_images": PIL.Image.new("RGB", (0, 5))}, "pass one that has pixels"),
    ({"reference_images": PIL.Image.new("F", (5, 5), 1.5)}, r"values from 1.5 to 1.5: scale them to \[0, 1\]"),
    ({"reference_images": IMAGE[..., 0]}, "must hold images of 3 dimensions"),
    ({"reference_images": []}, "`reference_images` is an empty list"),
    ({"reference_images": [[]]}, "`reference_images` must hold as many images"),
    ({"reference_images": [[IMAGE], [IMAGE]]}, "`reference_images` holds 2 lists for 1 prompts"),
    (
        {"prompt": ["a", "b"], "reference_images": [[IMAGE], [IMAGE, IMAGE]]},
        "`reference_images` must hold as many images",
    ),
    ({"reference_images": ["face.png"]}, "`reference_images` must hold PIL images"),
    ({"reference_images": [IMAGE[0]]}, "must hold images of 3 dimensions"),
    ({"reference_images": [IMAGE[..., :2]]}, "3 color channels"),
    ({"reference_images": [IMAGE.astype(np.float32) + 7]}, r"outside of \[0, 1\]"),
    ({"reference_images": [IMAGE.astype(np.float32) * np.nan]}, r"outside of \[0, 1\]"),
    ({"reference_images": [IMAGE.astype(np.int64)]}, "must be uint8 or floating point"),
]


@pytest.mark.parametrize(("inputs", "message"), COMMON)
def test_both_pipelines(inputs, message, pipe, edit):
    size = {} if "height" in inputs else {"height": 64, "width": 64}
    check(pipe, message, inputs, **({"prompt": "a cat", "num_frames": 5} | size | inputs))
    check(edit, message, inputs, **({"prompt": "make it blue", "video": VIDEO} | size | inputs))


def test_encode_prompt(pipe, edit):
    with pytest.raises(ValueError, match="Pass either `prompt` or `prompt_embeds`"):
        pipe.encode_prompt()
    with pytest.raises(ValueError, match="Pass either `video` or `image`"):
        edit.encode_prompt("make it blue")


def test_generate(pipe):
    for size in ({"num_frames": 257, "window_frames": 257}, {"height": 2080}, {"width": 2080}):
        inputs = {"prompt": "a cat", "num_frames": 5, "height": 64, "width": 64} | size
        check(pipe, "use no more than 253 frames in a window, and 2048 pixels", **inputs)
    check(pipe, "`num_frames` is None: pass 1", prompt="a cat", num_frames=None)
    pipe.scheduler = DDIMScheduler()
    check(pipe, "`prediction_type` is 'epsilon'", prompt="a cat")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Pass either `video` or `image`"),
        ({"video": VIDEO, "image": IMAGE}, "Pass either `video` or `image`"),
        ({"video": []}, "`video` has no frames"),
        ({"video": VIDEO[:0]}, "pass at least one frame that has pixels"),
        ({"video": [[]]}, "`video` has no frames"),
        ({"video": IMAGE}, "`video` must have 4 dimensions"),
        ({"video": VIDEO[..., 0]}, "`video` must have 4 dimensions"),
        ({"video": VIDEO[..., :1]}, "`video` must have 3 color channels"),
        ({"video": "clip.mp4"}, "`video` must be a list of frames"),
        ({"video": ["frame.png"]}, "`video` must hold PIL images"),
        ({"video": [IMAGE, IMAGE[:32]]}, "must all have one size"),
        ({"video": [PIL.Image.new("RGB", (64, 64)), PIL.Image.new("RGB", (32, 64))]}, "must all have one size"),
        ({"video": torch.full((5, 3, 64, 64), -0.5)}, r"outside of \[0, 1\]"),
        ({"video": [VIDEO, VIDEO]}, "`video` holds 2 clips for 1 prompts"),
        ({"video": np.stack([VIDEO] * 3), "prompt": ["a", "b"]}, "`video` holds 3 clips for 2 prompts"),
        ({"video": [VIDEO, VIDEO[:1]], "prompt": ["a", "b"]}, r"\[5, 1\] frames: pass the `num_frames`"),
        ({"video": [VIDEO, VIDEO[:, :32]], "prompt": ["a", "b"]}, "pass a common `height` and `width`"),
        ({"video": VIDEO, "num_frames": 9}, "`num_frames` is 9, but a video has 5 frames"),
        ({"video": VIDEO[:, :31]}, "smaller than 32 x 32 needs a `height`"),
        ({"image": IMAGE[0]}, "must hold images of 3 dimensions"),
        ({"image": [IMAGE, IMAGE]}, "`image` holds 2 images for 1 prompts"),
        ({"image": IMAGE, "num_frames": 5}, "an image has one frame"),
        ({"image": "photo.jpg"}, "`image` must hold PIL images"),
    ],
)
def test_edit(inputs, message, edit):
    check(edit, message, inputs, **({"prompt": "make it blue"} | inputs))


def test_weights_that_are_damaged(pipe):
    """What is no number is noticed at the first step, not when all is done."""
    with torch.no_grad():
        pipe.transformer.proj_out.weight[0, 0] = float("nan")
    steps = []
    with pytest.raises(ValueError, match=r"latents of step 1 hold NaN or infinite values: see that the weights"):
        pipe(
            "a",
            height=32,
            width=32,
            num_frames=1,
            num_inference_steps=5,
            callback_on_step_end=lambda *_: steps.append(1),
        )
    assert not steps
