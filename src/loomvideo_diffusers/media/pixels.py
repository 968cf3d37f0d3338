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
"""
Pixels that image files hold or callers pass, as RGB images of 8 bits.

The pipelines do the same with what they are passed (`loomvideo_frames.to_image`), but need PyTorch for it, and import
nothing of this package, because they are published with each model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import PIL.Image

from ..errors import LoomVideoError


if TYPE_CHECKING:
    import torch

Picture: TypeAlias = "PIL.Image.Image | np.ndarray | torch.Tensor"
Frames: TypeAlias = "Sequence[Picture] | np.ndarray | torch.Tensor"


def to_images(frames: Frames, name: str = "frames") -> list[PIL.Image.Image]:
    """
    Converts the frames of a clip to RGB images of one size.

    Args:
        frames: a list of what `to_image` takes, or one array or tensor `[F, H, W, 3]` or `[F, 3, H, W]`.
        name: what errors call them.

    Raises:
        LoomVideoError: if there are none, their sizes differ, or shapes or values are wrong.
        TypeError: if they are something else.
    """
    images = [to_image(frame, name) for frame in frames]
    if not images:
        raise LoomVideoError(f"`{name}` has no frames: pass at least one.")
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise LoomVideoError(f"`{name}` has frames of sizes {sizes[0]} and {sizes[1]}: scale them to one size.")
    return images


def to_image(picture: Picture, name: str = "image") -> PIL.Image.Image:
    """
    Converts a picture to an RGB image.

    Args:
        picture: a PIL image of any mode; or an array or tensor `[H, W, 3]` or `[3, H, W]` of uint8, or of floats in
            [0, 1].
        name: what errors call it.

    Raises:
        LoomVideoError: if its shape or its values are wrong.
        TypeError: if it is something else.
    """
    if isinstance(picture, PIL.Image.Image):
        return to_rgb(picture, name)
    pixels, is_tensor = _to_array(picture, name)
    if pixels.ndim != 3 or 0 in pixels.shape or 3 not in (pixels.shape[0], pixels.shape[2]):
        raise LoomVideoError(f"`{name}` has pictures of shape {pixels.shape}: pass [H, W, 3] or [3, H, W].")
    is_channels_first = pixels.shape[0] == 3 and (is_tensor or pixels.shape[2] != 3)
    pixels = np.moveaxis(pixels, 0, 2) if is_channels_first else pixels
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # of NaN too
            raise LoomVideoError(f"`{name}` has floats outside of [0, 1]: scale them, or pass uint8.")
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise TypeError(f"`{name}` must be uint8 or floating point, but is {pixels.dtype}.")
    return PIL.Image.fromarray(np.ascontiguousarray(pixels))


def _to_array(picture: Any, name: str) -> tuple[np.ndarray, bool]:
    """A picture as an array, and whether it is a tensor of PyTorch."""
    if isinstance(picture, np.ndarray):
        return picture, False
    if not hasattr(picture, "detach"):
        raise TypeError(f"`{name}` must hold PIL images, NumPy arrays or torch tensors, but holds a {type(picture)}.")
    tensor = picture.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy(), True


def to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """
    Converts a PIL image to RGB. Transparent pixels are laid on white; gray of 16 or 32 bits is scaled to 8.

    Raises:
        LoomVideoError: if it has no pixels, is of a mode without colors, or is gray and it is not clear what is white.
    """
    if 0 in image.size:
        raise LoomVideoError(f"`{name}` holds an image of size {image.size}: pass one that has pixels.")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.asarray(image)
        is_16_bits = image.mode.startswith("I;16")
        gray = (values / 257).round().astype(np.uint8) if is_16_bits else gray_to_8_bits(values, name)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            gray = np.where(values == transparent, np.uint8(255), gray)
        image = PIL.Image.fromarray(gray)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except ValueError as error:
        raise LoomVideoError(f"`{name}` holds an image of mode {image.mode}: pass one of mode RGB.") from error


def gray_to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    """
    Scales the pixels `[H, W]` of a gray image, integers or floats, to uint8.

    White is 1 if there are floats and none exceeds it. Otherwise it is the first of 255, 65535 and the largest number
    of 32 bits that none exceeds.

    Raises:
        LoomVideoError: if values are negative or not finite, or exceed 1 and are not whole.
    """
    lowest, highest = values.min(), values.max()
    is_whole = not np.issubdtype(values.dtype, np.floating) or (highest > 1 and np.array_equal(values, values // 1))
    if lowest < 0 or not np.isfinite(highest) or (highest > 1 and not is_whole):
        raise LoomVideoError(
            f"`{name}` holds a gray image with values from {lowest} to {highest}: scale them to [0, 1], or to 8 bits."
        )
    whites = [255, 65535, np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 2**32 - 1] if is_whole else [1]
    white = next((white for white in whites if highest <= white), whites[-1])
    return (values * (255 / white)).round().clip(0, 255).astype(np.uint8)
