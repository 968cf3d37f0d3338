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
"""What is longer than the transformer can see at once: windows that are denoised together."""

from itertools import pairwise

import numpy as np
import PIL.Image
import pytest
import torch
from test_savings import counted

from loomvideo_diffusers.pipelines.loomvideo_errors import LoomVideoInputError
from loomvideo_diffusers.pipelines.loomvideo_frames import mllm_frame_indices
from loomvideo_diffusers.pipelines.loomvideo_guidance import divide_into_windows


@pytest.fixture
def long_clip():
    """41 frames, in which every pixel and frame differs."""
    return np.random.default_rng(0).integers(0, 256, (41, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("num_frames", "window", "overlap", "starts"),
    [
        (17, 121, 28, [0]),
        (121, 121, 28, [0]),
        (125, 121, 28, [0, 1]),
        (125, 121, None, [0, 1]),
        (237, 17, 8, [round(55 * index / 19) for index in range(20)]),
        (241, 121, 32, [0, 15, 30]),
        (37, 17, 0, [0, 5]),
        (9, 1, 0, [0, 1, 2]),
        (1, 17, 4, [0]),
    ],
)
def test_division(num_frames, window, overlap, starts):
    """Windows cover everything, overlap enough, and the weights of each latent frame sum to 1."""
    windows = divide_into_windows(num_frames, window, overlap)
    length, window_length = (num_frames + 3) // 4, (window + 3) // 4
    assert [frames.start for frames, _ in windows] == starts
    total = torch.zeros(length)
    for frames, weights in windows:
        assert len(weights) == frames.stop - frames.start == min(window_length, length)
        assert weights.min() > 0
        total[frames] += weights
    assert torch.allclose(total, torch.ones(length))
    for (left, _), (right, _) in pairwise(windows):
        assert left.stop - right.start >= (window_length // 4 if overlap is None else overlap // 4)


def test_weights():
    """They rise from the ends of a window to the overlap, and where two windows meet they share a frame by that."""
    (first, first_weights), (last, last_weights) = divide_into_windows(29, 17, 8)
    assert (first, last) == (slice(0, 5), slice(3, 8))
    assert first_weights.tolist() == pytest.approx([1, 1, 1, 2 / 3, 1 / 3])
    assert last_weights.tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


def test_predictions_are_blended(edit, long_clip):
    """A step moves each frame by the mean of what its windows predict, each of which sees its own frames alone."""
    options = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 1, "guidance_scale_visual": 1}
    noise = torch.randn(1, 8, 11, 2, 2)
    # Embeds that are the same for all, so that only the windows differ
    embeds = edit.encode_prompt("blue", video=long_clip, window_frames=17, do_classifier_free_guidance=False)[0]
    whole = edit(video=long_clip, prompt_embeds=embeds, latents=noise, window_frames=17, window_overlap=8, **options)
    source = edit.prepare_clip_latents([edit.prepare_sources(long_clip, None, None, 1, None, None, None)[0][0]], 1)
    expected = torch.zeros_like(noise)
    # Of 11 latent frames, windows of 5 begin at 0, 3 and 6; a frame counts more in the window whose middle is nearer.
    for start, weights in (
        (0, [1, 1, 1, 2 / 3, 1 / 3]),
        (3, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]),
        (6, [1 / 3, 2 / 3, 1, 1, 1]),
    ):
        frames = slice(start, start + 5)
        with edit.denoising():
            moved = edit.denoise(
                latents=noise[:, :, frames],
                timesteps=edit.prepare_timesteps(1),
                embeds=(embeds, None, None, None, None, None),
                source_latents=source[:, :, frames],
                reference_latents=[],
                windows=[(slice(0, 5), torch.ones(5))],
            )
        expected[:, :, frames] += torch.tensor(weights).view(-1, 1, 1) * moved
    assert torch.allclose(whole.frames, expected, atol=1e-5)


@pytest.mark.parametrize("use_kv_cache", [False, True])
def test_windows_of_a_call(use_kv_cache, edit, pipe, long_clip):
    """All branches run in each window; the prompt's keys are computed once for all; one window is no window."""
    options = {"num_inference_steps": 2, "output_type": "latent", "use_kv_cache": use_kv_cache}
    options |= {"latents": torch.randn(1, 8, 11, 2, 2), "reference_images": PIL.Image.new("RGB", (32, 32), "red")}
    windows = {"window_frames": 17, "window_overlap": 8}
    parts = {"transformer": edit.transformer, "keys": edit.transformer.blocks[0].attn2.norm_k}
    with counted(**parts) as counts:
        result = edit("blue", video=long_clip, **windows, **options).frames
    assert counts["transformer"] == 2 * 3 * 3
    assert counts["keys"] == (3 if use_kv_cache else 2 * 3 * 3)
    if use_kv_cache:
        other = edit("blue", video=long_clip, **windows, **options | {"use_kv_cache": False}).frames
        assert torch.allclose(result, other, atol=1e-5)
    one = edit("blue", video=long_clip, **options).frames
    assert torch.equal(one, edit("blue", video=long_clip, window_frames=41, **options).frames)
    assert not torch.allclose(one, result, atol=1e-3)
    with counted(transformer=pipe.transformer) as counts:
        pipe("a cat", num_frames=41, height=32, width=32, **windows, **options)
    assert counts["transformer"] == 2 * 3 * 3


def test_the_mllm_sees_as_many_frames_as_of_one_window():
    assert len(mllm_frame_indices(960)) == len(mllm_frame_indices(121)) == 8
    assert mllm_frame_indices(960)[-1] == 959
    assert mllm_frame_indices(240, 17) == [0]


def test_errors(edit, long_clip):
    for wrong, name in (
        ({"window_frames": 16}, "window_frames"),
        ({"window_frames": 0}, "window_frames"),
        ({"window_overlap": 3}, "window_overlap"),
        ({"window_frames": 17, "window_overlap": 20}, "window_overlap"),
        ({"window_overlap": -4}, "window_overlap"),
    ):
        with pytest.raises(LoomVideoInputError, match=f"^`{name}` must"):
            edit("blue", video=long_clip, num_inference_steps=1, **wrong)
