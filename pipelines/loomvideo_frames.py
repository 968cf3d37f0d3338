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
"""Pixels: reading what users pass as videos and images, and fitting it to the size of the result."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.utils import logging

from .loomvideo_errors import LoomVideoInputError


logger = logging.get_logger(__name__)

# The sizes (width, height) that LoomVideo was trained on; their transposes were trained on too.
TRAINED_SIZES_480P = [(640, 640), (704, 544), (768, 512), (832, 480), (960, 416)]
TRAINED_SIZES_720P = [(960, 960), (1088, 864), (1152, 800), (1280, 704), (960, 704), (1472, 608)]

# A video longer than this goes to the MLLM as one frame in this many.
MLLM_FRAME_STRIDE = 15

# The longest video of the training data, 5 seconds.
MAX_SOURCE_FRAMES = 121

Image = PIL.Image.Image | np.ndarray | torch.Tensor
Video = Sequence[Image] | np.ndarray | torch.Tensor


def to_image(image: Image, name: str) -> PIL.Image.Image:
    """
    Reads a PIL image, or an array `[H, W, 3]` or `[3, H, W]` of uint8 or of floats in [0, 1], as an RGB image.

    What is transparent in a PIL image is laid on white. Gray of 16 or 32 bits is scaled to 8.
    """
    if isinstance(image, PIL.Image.Image):
        if 0 in image.size:
            raise LoomVideoInputError(f"`{name}` holds an image of size {image.size}: pass one that has pixels.")
        return _to_rgb(image, name)
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise TypeError(f"`{name}` must hold PIL images, NumPy arrays or torch tensors, but holds a {type(image)}.")
    if image.ndim != 3:
        raise LoomVideoInputError(
            f"`{name}` must hold images of 3 dimensions, [H, W, 3] or [3, H, W], not {tuple(image.shape)}."
        )
    return _array_to_images(image[None], name)[0]


def _to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
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
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image)
        return image.convert("RGB")
    except ValueError as error:
        raise LoomVideoInputError(f"`{name}` holds an image of mode {image.mode}: pass one of mode RGB.") from error


def gray_to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    """
    Scales the pixels `[H, W]` of a gray image, integers or floats, to uint8. White is 1 if floats do not exceed that,
    255 or 65535 if whole numbers do not, or else the largest number of 32 bits.

    Raises:
        LoomVideoInputError: if it is not clear what is white.
    """
    lowest, highest = values.min(), values.max()
    is_whole = not np.issubdtype(values.dtype, np.floating) or (highest > 1 and np.array_equal(values, values // 1))
    if lowest < 0 or not np.isfinite(highest) or (highest > 1 and not is_whole):
        raise LoomVideoInputError(
            f"`{name}` holds a gray image with values from {lowest} to {highest}: scale them to [0, 1], or to 8 bits."
        )
    whites = [255, 65535, np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 2**32 - 1] if is_whole else [1]
    white = next((white for white in whites if highest <= white), whites[-1])
    return (values * (255 / white)).round().clip(0, 255).astype(np.uint8)


def to_frames(video: Video, name: str = "video") -> list[PIL.Image.Image]:
    """
    Reads one clip as RGB images: a list of what `to_image` reads, or an array `[F, H, W, 3]` or `[F, 3, H, W]`.

    Raises:
        TypeError: if it is something else.
        LoomVideoInputError: if the clip is empty, its frames differ in size, or the array has wrong dimensions or
            values.
    """
    if isinstance(video, (np.ndarray, torch.Tensor)):
        if video.ndim != 4:
            raise LoomVideoInputError(
                f"`{name}` must have 4 dimensions, [F, H, W, 3] or [F, 3, H, W], but has shape {tuple(video.shape)}."
            )
        frames = _array_to_images(video, name)
    elif isinstance(video, (list, tuple)):
        frames = [to_image(frame, name) for frame in video]
    else:
        raise TypeError(f"`{name}` must be a list of frames, a NumPy array or a torch tensor, but is a {type(video)}.")
    if not frames:
        raise LoomVideoInputError(f"`{name}` has no frames: pass at least one.")
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        raise LoomVideoInputError(
            f"The frames of `{name}` must all have one size, but some are {sizes[0]} and some {sizes[1]}."
        )
    return frames


def _array_to_images(array: np.ndarray | torch.Tensor, name: str) -> list[PIL.Image.Image]:
    channel_axes = [3, 1] if isinstance(array, np.ndarray) else [1, 3]
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if 0 in array.shape:
        raise LoomVideoInputError(f"`{name}` has the shape {array.shape}: pass at least one frame that has pixels.")
    channel_axis = next((axis for axis in channel_axes if array.shape[axis] == 3), None)
    if channel_axis is None:
        raise LoomVideoInputError(
            f"`{name}` must have 3 color channels, last or before the rows, but has shape {array.shape}."
        )
    array = np.moveaxis(array, channel_axis, 3)
    if np.issubdtype(array.dtype, np.floating):
        if not (np.min(array) >= 0 and np.max(array) <= 1):  # false for NaN too
            raise LoomVideoInputError(
                f"`{name}` has floating point values outside of [0, 1]: scale it, or pass uint8."
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise TypeError(f"`{name}` must be uint8 or floating point, but is {array.dtype}.")
    return [PIL.Image.fromarray(np.ascontiguousarray(frame)) for frame in array]


def to_clips(video: Video | list[Video], batch_size: int) -> list[list[PIL.Image.Image]]:
    """Reads one clip for all samples, or a list (or 5-dimensional array) with one for each."""
    clips: Any = video
    is_batch = getattr(clips, "ndim", 4) == 5
    if isinstance(clips, (list, tuple)) and len(clips) > 0:
        is_batch = isinstance(clips[0], (list, tuple)) or getattr(clips[0], "ndim", 3) == 4
    if not is_batch:
        return [to_frames(clips)] * batch_size
    if len(clips) != batch_size:
        raise LoomVideoInputError(
            f"`video` holds {len(clips)} clips for {batch_size} prompts: pass one for each, or one for all."
        )
    return [to_frames(clip) for clip in clips]


def to_single_frame_clips(image: Image | list[Image], batch_size: int) -> list[list[PIL.Image.Image]]:
    """Reads one image for all samples, or a list (or 4-dimensional array) with one for each, as clips of one frame."""
    images: Any = image
    is_batch = isinstance(images, (list, tuple)) or getattr(images, "ndim", 3) == 4
    if not is_batch:
        return [[to_image(images, "image")]] * batch_size
    if len(images) != batch_size:
        raise LoomVideoInputError(
            f"`image` holds {len(images)} images for {batch_size} prompts: pass one for each, or one for all."
        )
    return [[to_image(picture, "image")] for picture in images]


def to_references(
    reference_images: Image | list[Image] | list[list[Image]] | None, batch_size: int
) -> list[list[PIL.Image.Image]]:
    """Reads an image or a list of images as the references of all samples, or a list with one list for each."""
    if reference_images is None:
        return [[]] * batch_size
    name = "reference_images"
    references: Any = reference_images
    if not isinstance(references, (list, tuple)) and getattr(references, "ndim", 3) != 4:
        references = [references]
    if len(references) == 0:
        raise LoomVideoInputError("`reference_images` is an empty list: pass at least one image, or None.")
    if not isinstance(references[0], (list, tuple)):
        return [[to_image(image, name) for image in references]] * batch_size
    if len(references) != batch_size:
        raise LoomVideoInputError(
            f"`reference_images` holds {len(references)} lists for {batch_size} prompts: pass one list for each."
        )
    counts = [len(images) for images in references]
    if 0 in counts or len(set(counts)) > 1:
        raise LoomVideoInputError(
            f"`reference_images` must hold as many images for each prompt, at least one, but holds {counts}."
        )
    return [[to_image(image, name) for image in images] for images in references]


def fit(image: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    """Scales an image until it covers the size, bilinear with antialias, and crops it (architecture: Frames)."""
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), PIL.Image.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def fit_all(clips: list[list[PIL.Image.Image]], height: int, width: int) -> list[list[PIL.Image.Image]]:
    """Fits all clips of a batch; a clip that stands for several samples stays one object."""
    fitted = {id(clip): [fit(frame, height, width) for frame in clip] for clip in clips}
    return [fitted[id(clip)] for clip in clips]


def nearest_trained_size(image: PIL.Image.Image) -> tuple[int, int]:
    """The trained 480p size, as (height, width), whose proportions are nearest to the image's."""
    sizes = TRAINED_SIZES_480P + [(height, width) for width, height in TRAINED_SIZES_480P]
    width, height = nearest_size(image.width, image.height, sizes)
    return height, width


def nearest_size(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Of sizes (width, height), the one whose proportions are nearest to the given ones."""
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * height / width)))


def mllm_frame_indices(num_frames: int, window_frames: int = MAX_SOURCE_FRAMES) -> list[int]:
    """Which frames of a clip the MLLM sees (architecture: Frames): of a longer one, as many as of a window."""
    if num_frames <= MLLM_FRAME_STRIDE:
        return list(range(num_frames))
    count = max(min(num_frames, window_frames) // MLLM_FRAME_STRIDE, 1)
    return np.linspace(0, num_frames - 1, count).astype(int).tolist()


def mllm_frames(frames: list[PIL.Image.Image], window_frames: int = MAX_SOURCE_FRAMES) -> np.ndarray:
    """The frames of a clip that the MLLM sees, uint8 `[F, H, W, 3]`; a lone one twice, as patches span two."""
    seen = [frames[index] for index in mllm_frame_indices(len(frames), window_frames)]
    return np.stack([np.asarray(frame) for frame in (seen * 2 if len(seen) == 1 else seen)])


def cut_frames(clips: list[list[PIL.Image.Image]], num_frames: int | None, step: int) -> list[list[PIL.Image.Image]]:
    """
    Cuts all clips of a batch to `num_frames`, by default to as many as fit `step * k + 1`.

    Raises:
        LoomVideoInputError: if a clip is shorter than `num_frames`, or the clips would differ in length.
    """
    lengths = [len(clip) for clip in clips]
    if num_frames is None:
        cut_lengths = {(length - 1) // step * step + 1 for length in lengths}
        if len(cut_lengths) > 1:
            raise LoomVideoInputError(
                f"The videos of a batch have {lengths} frames: pass the `num_frames` to use of each."
            )
        num_frames = cut_lengths.pop()
        if max(lengths) > num_frames:
            logger.warning(f"Using the first {num_frames} of {max(lengths)} frames.")
    elif num_frames > min(lengths):
        raise LoomVideoInputError(
            f"`num_frames` is {num_frames}, but a video has {min(lengths)} frames: pass no more than that."
        )
    cut = {id(clip): clip[:num_frames] for clip in clips}
    return [cut[id(clip)] for clip in clips]
