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
"""Masks: what may change in an edit, and what may not."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from loomvideo_diffusers.pipelines.loomvideo_masks import feather, to_latent_mask, to_masks


STEPS = {"num_inference_steps": 3, "output_type": "np"}


@pytest.fixture
def change(edit, clip):
    """Edits the clip; returns its frames as uint8."""

    def change(**options):
        options = {"video": clip, "prompt": "blue", "generator": torch.Generator().manual_seed(0)} | STEPS | options
        return (edit(**options).frames * 255).round().astype(np.uint8)

    return change


def make_mask(height=64, width=64):
    mask = np.zeros((height, width), np.float32)
    mask[16:40, 24:50] = 1
    return mask


FORMS = {
    "floats": lambda mask: mask,
    "bool": lambda mask: mask > 0,
    "uint8": lambda mask: (mask * 255).astype(np.uint8),
    "tensor": torch.from_numpy,
    "half": lambda mask: torch.from_numpy(mask).half(),
    "PIL": lambda mask: PIL.Image.fromarray((mask * 255).astype(np.uint8)),
    "PIL, 1 bit": lambda mask: PIL.Image.fromarray(mask > 0),
    "clip": lambda mask: np.stack([mask] * 9),
    "list": lambda mask: [PIL.Image.fromarray((mask * 255).astype(np.uint8))] * 9,
    "one a sample": lambda mask: [np.stack([mask] * 9)],
    "of another size": lambda mask: np.repeat(np.repeat(mask, 2, 0), 3, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    """All forms say the same."""
    masks = to_masks(FORMS[form](make_mask()), [(64, 64)], 9, 64, 64)
    assert masks.shape == (1, 1, 9, 64, 64)
    tolerance = 0.51 if form == "of another size" else 0  # at the border
    assert (masks - torch.from_numpy(make_mask())).abs().max() <= tolerance


def test_outside_is_the_source(change, clip):
    """Pixel for pixel; inside is something else."""
    mask = make_mask()
    frames, outside = change(mask=mask)[0], mask == 0
    assert np.array_equal(frames[:, outside], clip[:, outside])
    inside = np.zeros_like(outside)
    inside[22:34, 30:44] = True
    assert np.abs(frames[:, inside].astype(int) - clip[:, inside]).mean() > 5


def test_all_and_nothing(change, clip):
    """A mask of everything is as none, and with one of nothing the source comes back."""
    assert np.array_equal(change(mask=np.ones((64, 64), bool)), change())
    assert np.array_equal(change(mask=np.zeros((64, 64), bool))[0], clip)


def test_one_pixel(change, clip):
    mask = np.zeros((64, 64), bool)
    mask[20, 30] = True
    frames = change(mask=mask)[0]
    assert np.array_equal(frames[:, ~mask], clip[:, ~mask])
    assert not np.array_equal(frames[:, mask], clip[:, mask])


def test_moving(change, clip):
    mask = np.stack([np.roll(make_mask(), 2 * frame, axis=1) for frame in range(9)])
    frames = change(mask=mask)[0]
    assert np.array_equal(frames[mask == 0], clip[mask == 0])


@pytest.mark.parametrize(
    "options",
    [
        {"window_frames": 5, "window_overlap": 0},
        {"reference_images": [PIL.Image.new("RGB", (64, 64), "red")]},
        {"num_inference_steps": 1},
        {"num_videos_per_prompt": 2},
        {"guidance_scale": 1, "guidance_scale_visual": 1},
        {"strength": 0.5},
        {"strength": 0},
        {"mask_feather": 0},
        {"mask_feather": 60},
        {"output_type": "pt"},
    ],
    ids=" ".join,
)
def test_with_everything(options, edit, clip):
    mask = make_mask()
    frames = edit("blue", video=clip, mask=mask, **STEPS | options).frames
    if options.get("output_type") == "pt":
        frames = frames.permute(0, 1, 3, 4, 2).numpy()
    frames = (frames * 255).round().astype(np.uint8)
    for video in frames:
        assert np.array_equal(video[:, mask == 0], clip[:, mask == 0])


@pytest.mark.parametrize("scheduler_class", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_schedulers(scheduler_class, edit, clip):
    """Latents outside end as the source's, whatever the solver."""
    edit.register_modules(scheduler=scheduler_class(shift=3.0))
    latents = edit("blue", video=clip, mask=make_mask(), **STEPS | {"output_type": "latent"}).frames
    source = edit.encode_in_chunks(clip)
    latent_mask = to_latent_mask(to_masks(make_mask(), [(64, 64)], 9, 64, 64), 16, 4)
    outside = (latent_mask == 0).expand_as(latents)
    torch.testing.assert_close(latents[outside], source[outside], atol=1e-4, rtol=0)
    assert not torch.allclose(latents[~outside], source[~outside], atol=1e-2)


def test_batches(edit, clip):
    """One mask a sample, of images too; each is what it is alone."""
    masks = [make_mask(), np.roll(make_mask(), 8, axis=0)]
    generators = lambda: [torch.Generator().manual_seed(seed) for seed in range(2)]  # noqa: E731
    options = {"image": [clip[0], clip[4]], "num_inference_steps": 2}
    both = edit(["one", "two"], mask=masks, generator=generators(), **options).frames
    for index, (mask, generator) in enumerate(zip(masks, generators())):
        single = options | {"image": options["image"][index]}
        alone = edit(["one", "two"][index], mask=mask, generator=generator, **single).frames
        np.testing.assert_allclose(both[index], alone[0], atol=1e-4)


def test_fitted_like_the_source(edit):
    """A source that is cropped to the size has its mask cropped too."""
    source = np.random.default_rng(0).integers(0, 256, (1, 64, 128, 3), np.uint8)
    mask = np.zeros((64, 128), bool)
    mask[:, 64:] = True
    frame = edit("blue", image=source[0], mask=mask, height=64, width=64, num_inference_steps=1).frames[0, 0]
    assert np.array_equal((frame[:, :32] * 255).round(), source[0, :, 32:64])


def test_strength(edit, clip):
    """It is the share of the steps that are run, from the noised source on."""
    steps = []
    for strength, expected in ((1.0, 8), (0.5, 4), (0.1, 1), (0.0, 0)):
        steps.clear()
        edit(
            "blue",
            video=clip,
            num_inference_steps=8,
            output_type="latent",
            strength=strength,
            callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(step) or {},
        )
        assert len(steps) == expected
    latents = edit("blue", video=clip, num_inference_steps=8, output_type="latent", strength=0).frames
    torch.testing.assert_close(latents, edit.encode_in_chunks(clip), atol=1e-5, rtol=0)


def test_feather():
    """It rises within the mask alone, and not at the edges of the picture."""
    mask = torch.zeros(1, 1, 1, 10, 10)
    mask[..., 2:9, :] = 1
    soft = feather(mask, 3)[0, 0, 0, :, 0]
    torch.testing.assert_close(soft, torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1, 1, 2 / 3, 1 / 3, 0]))
    assert torch.equal(feather(mask, 0), mask)
    assert torch.equal(feather(mask, 1), mask)
    assert torch.equal(feather(torch.ones_like(mask), 5), torch.ones_like(mask))


def test_latent_mask():
    """A latent may change if any of its pixels may; the first stands for one frame, the others for four."""
    masks = torch.zeros(1, 1, 9, 32, 32)
    masks[0, 0, 0, 0, 0] = masks[0, 0, 8, 31, 17] = 1e-3
    latent_mask = to_latent_mask(masks, 16, 4)
    assert latent_mask.shape == (1, 1, 3, 2, 2)
    assert latent_mask.nonzero()[:, 2:].tolist() == [[0, 0, 0], [2, 1, 1]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": "white"}, TypeError, "`mask` must be a PIL image, an array, a tensor or a list of them"),
        (
            {"mask": np.zeros(64)},
            ValueError,
            r"`mask` must be \[H, W\], .* but has \(64,\)",
        ),
        ({"mask": np.zeros((1, 1, 1, 9, 9))}, ValueError, "`mask` must be"),
        ({"mask": []}, ValueError, "`mask` is empty: pass at least one."),
        ({"mask": np.zeros((0, 64, 64))}, ValueError, "`mask` is empty"),
        ({"mask": np.zeros((64, 0))}, ValueError, r"`mask` must hold masks \[H, W\] that have pixels"),
        ({"mask": np.zeros((5, 64, 64))}, ValueError, "`mask` has 5 frames, but the clip has 9: pass one for all"),
        ({"mask": np.full((64, 64), np.nan)}, ValueError, r"`mask` has values outside of \[0, 1\], or NaN"),
        ({"mask": np.full((64, 64), 2.0)}, ValueError, r"`mask` has values outside of \[0, 1\]"),
        ({"mask": np.zeros((64, 64), np.int64)}, TypeError, "`mask` must be bool, floating point or uint8"),
        ({"mask": [np.zeros((9, 64, 64))] * 2}, ValueError, "`mask` holds 2 masks for 1 prompts"),
        ({"mask": [object()]}, TypeError, "`mask` must hold PIL images, NumPy arrays or torch tensors"),
        ({"mask_feather": -1}, ValueError, "`mask_feather` must be a whole number from 0, but is -1."),
        ({"mask_feather": 1.5}, ValueError, "`mask_feather` must be a whole number from 0, but is 1.5."),
        ({"strength": 1.1}, ValueError, "`strength` must be from 0 to 1, but is 1.1."),
        ({"strength": float("nan")}, ValueError, "`strength` must be from 0 to 1, but is nan."),
        ({"strength": "half"}, ValueError, "`strength` must be from 0 to 1, but is half."),
    ],
)
def test_bad_input(options, error, message, edit, clip):
    """It is refused before any model runs."""
    for model in (edit.text_encoder, edit.vae.encoder, edit.transformer):
        model.register_forward_pre_hook(lambda *arguments: pytest.fail("a model ran"))
    with pytest.raises(error, match=message):
        edit("blue", video=clip, num_inference_steps=1, **options)
