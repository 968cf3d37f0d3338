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
"""Masks of edits: which pixels may change, in the latents while denoising and in the pixels at the end."""

from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F

from .loomvideo_errors import LoomVideoInputError
from .loomvideo_frames import Image, Video, fit


Mask = Image | Video | list[Video]


def to_masks(mask: Any, sizes: list[tuple[int, int]], num_frames: int, height: int, width: int) -> torch.Tensor:
    """
    Reads the masks of a batch and fits them as its clips are fitted.

    Args:
        mask: white, 1 or True where something may change: a PIL image, or an array or tensor `[H, W]` of floats in
            [0, 1], of bool or of uint8, for all frames; one for each frame as a list of them or an array `[F, H, W]`;
            or, as a list of these or an array `[B, F, H, W]`, one for each clip. In a list, clips of one frame have a
            mask each.
        sizes: width and height of each clip of the batch, before it was fitted.
        num_frames: of a clip.
        height, width: of the result.

    Returns:
        float32 `[B, 1, F, height, width]` in [0, 1].

    Raises:
        TypeError, LoomVideoInputError: if it is none of these, or fits neither the clips nor their frames.
    """
    fitted = []
    for frames, size in zip(_masks_of_clips(mask, len(sizes), num_frames), sizes):
        if len(frames) not in (1, num_frames):
            raise LoomVideoInputError(
                f"`mask` has {len(frames)} frames, but the clip has {num_frames}: pass one for all, or one for each."
            )
        fitted.append(torch.stack([_fit_mask(frame, size, height, width) for frame in frames]))
    return torch.stack([masks.expand(num_frames, -1, -1) for masks in fitted])[:, None]


def _masks_of_clips(mask: Any, num_clips: int, num_frames: int) -> list[list[np.ndarray]]:
    """For each clip its masks, one or more, float32 `[H, W]`."""
    is_array = isinstance(mask, (np.ndarray, torch.Tensor))
    if isinstance(mask, PIL.Image.Image) or (is_array and mask.ndim == 2):
        return [[to_mask(mask)]] * num_clips
    if not is_array and not isinstance(mask, (list, tuple)):
        raise TypeError(f"`mask` must be a PIL image, an array, a tensor or a list of them, but is a {type(mask)}.")
    if is_array and mask.ndim not in (3, 4):
        raise LoomVideoInputError(f"`mask` must be [H, W], [F, H, W] or [B, F, H, W], but has {tuple(mask.shape)}.")
    if len(mask) == 0:
        raise LoomVideoInputError("`mask` is empty: pass at least one.")
    first = mask[0]
    has_clips = isinstance(first, (list, tuple)) or getattr(first, "ndim", 2) == 3
    if not has_clips and (num_frames > 1 or num_clips == 1):
        return [[to_mask(frame) for frame in mask]] * num_clips
    if len(mask) != num_clips:
        raise LoomVideoInputError(
            f"`mask` holds {len(mask)} masks for {num_clips} prompts: pass one for each, or one for all."
        )
    return [[to_mask(frame) for frame in one] if has_clips else [to_mask(one)] for one in mask]


def to_mask(mask: Any) -> np.ndarray:
    """
    Reads one mask: a PIL image, whose opacity it is if something is transparent, or else its lightness; or an array or
    tensor `[H, W]` of floats in [0, 1], of bool or of uint8.

    Returns:
        float32 `[H, W]` in [0, 1].

    Raises:
        TypeError, LoomVideoInputError: if it is none of these.
    """
    if isinstance(mask, PIL.Image.Image):
        mask = _opacity_or_lightness(mask)
    if isinstance(mask, torch.Tensor):
        mask = (mask.detach().cpu().float() if mask.is_floating_point() else mask.detach().cpu()).numpy()
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"`mask` must hold PIL images, NumPy arrays or torch tensors, but holds a {type(mask)}.")
    if mask.ndim != 2 or 0 in mask.shape:
        raise LoomVideoInputError(f"`mask` must hold masks [H, W] that have pixels, but holds {tuple(mask.shape)}.")
    if mask.dtype == np.uint8:
        return mask.astype(np.float32) / 255
    if mask.dtype != np.bool_ and not np.issubdtype(mask.dtype, np.floating):
        raise TypeError(f"`mask` must be bool, floating point or uint8, but is {mask.dtype}.")
    if not (np.min(mask) >= 0 and np.max(mask) <= 1):  # false for NaN too
        raise LoomVideoInputError("`mask` has values outside of [0, 1], or NaN: scale it, or pass bool.")
    return mask.astype(np.float32)


def _opacity_or_lightness(mask: PIL.Image.Image) -> np.ndarray:
    """How opaque each pixel is, or how light it is if all are opaque."""
    if mask.has_transparency_data:
        alpha = np.asarray(mask.convert("RGBA").getchannel("A"))
        if alpha.min() < 255:
            return alpha
    return np.asarray(mask.convert("L"))


def _fit_mask(mask: np.ndarray, size: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """Stretches a mask to the size (width, height) of its clip, and fits it as the clip's pictures are fitted."""
    picture = PIL.Image.fromarray(mask)
    if picture.size != size:
        picture = picture.resize(size, PIL.Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fit(picture, height, width)))


def to_latent_mask(masks: torch.Tensor, scale_factor_spatial: int, scale_factor_temporal: int) -> torch.Tensor:
    """
    Which latents may change: all of which some pixel may.

    Args:
        masks: `[B, 1, F, H, W]`, F being 4k + 1.
        scale_factor_spatial, scale_factor_temporal: pixels and frames of one latent.

    Returns:
        0 or 1, float32 `[B, 1, T, h, w]`.
    """
    # The first latent frame stands for one frame.
    masks = torch.cat([masks[:, :, :1].expand(-1, -1, scale_factor_temporal - 1, -1, -1), masks], dim=2)
    factors = (scale_factor_temporal, scale_factor_spatial, scale_factor_spatial)
    return (F.max_pool3d(masks, factors) > 0).float()


def feather(masks: torch.Tensor, num_pixels: int) -> torch.Tensor:
    """
    Lets masks rise from their borders over so many pixels, within them: what is outside stays 0.

    The edges of the picture are no borders.
    """
    eroded = masks
    total = masks.clone()
    for remaining in range(num_pixels - 1, 0, -1):
        before, eroded = eroded, -F.max_pool3d(-eroded, (1, 3, 3), stride=1, padding=(0, 1, 1))
        if torch.equal(eroded, before):  # What is left has no borders.
            total += remaining * eroded
            break
        total += eroded
    return total / max(num_pixels, 1)


def keep_latents(
    latents: torch.Tensor,
    latent_mask: torch.Tensor,
    kept_latents: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor | float,
) -> torch.Tensor:
    """Takes what may not change from clean latents, at a noise level: `(1 - sigma) * kept_latents + sigma * noise`."""
    return torch.lerp((1 - sigma) * kept_latents + sigma * noise, latents, latent_mask)
