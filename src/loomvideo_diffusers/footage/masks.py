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
"""Which pixels of a clip may change: boxes, images, clips, arrays or what a tracker finds, frame by frame."""

import hashlib
import os
import re
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image

from ..errors import LoomVideoError
from ..media.decoding import PIXEL_FORMATS, convert_pixels
from ..media.images import is_image, read_mask_image
from ..media.sequences import is_sequence
from ..progress import progress_bar
from .geometry import Placement
from .surveying import Footage, read_frames, survey


if TYPE_CHECKING:
    import torch

# What finds a mask for each frame of a clip: it is given the frames, uint8 [H, W, 3], one after the other.
Tracker = Callable[[Iterator[np.ndarray]], Iterable[Any]]
MaskSource = str | os.PathLike | PIL.Image.Image | np.ndarray | Sequence[Any] | Tracker

BOX = re.compile(r"(-?\d+),(-?\d+),(-?\d+),(-?\d+)(?:@(\d+(?:\.\d*)?|\.\d+))?")

# Of the overlay in which a mask is looked at
OVERLAY_COLOR = (255, 0, 64)
OVERLAY_SHARE = 0.5


class Box(NamedTuple):
    """A box in pixels of a clip; with a time in seconds if it moves."""

    x: int
    y: int
    width: int
    height: int
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Box":
        """Reads `X,Y,W,H` or `X,Y,W,H@SECONDS`; raises a LoomVideoError if it is neither."""
        match = BOX.fullmatch(text.replace(" ", ""))
        if match is None:
            raise LoomVideoError(f"A box must be X,Y,W,H or X,Y,W,H@SECONDS, but is {text!r}.")
        x, y, width, height = map(int, match.groups()[:4])
        return cls(x, y, width, height, None if match[5] is None else float(match[5]))

    def __str__(self) -> str:
        sides = f"{self.x},{self.y},{self.width},{self.height}"
        return sides if self.seconds is None else f"{sides}@{_plain(self.seconds)}"


def _plain(seconds: float) -> str:
    """A time without an exponent, as `BOX` reads it."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


BoxLike = Box | Sequence[float] | str


@dataclass(frozen=True)
class ClipMask:
    """
    How much of each pixel of a clip, or of an image, may change; made by `read_mask`.

    Attributes:
        width, height: of the clip in pixels.
        frames: for each frame of the clip, or once for all, its mask `[H, W]` of uint8, compressed by zlib.
    """

    width: int
    height: int
    frames: tuple[bytes, ...]

    def __getitem__(self, index: int) -> np.ndarray:
        """The mask of a frame, uint8 `[H, W]`, 255 where all may change."""
        return _decompress(self.data(index), self.width, self.height)

    def data(self, index: int) -> bytes:
        """The mask of a frame as it is kept, the same object for frames that share it."""
        return self.frames[min(index, len(self.frames) - 1)]

    def feathered(self, index: int, num_pixels: int) -> np.ndarray:
        """
        How much of each pixel of a frame is taken from an edit, float32 `[H, W, 1]` in [0, 1].

        Args:
            index: of the frame.
            num_pixels: over which the share rises, within the mask.
        """
        return _feathered(self.data(index), self.width, self.height, num_pixels)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(b"".join(hashlib.sha256(frame).digest() for frame in self.frames)).hexdigest()

    @property
    def is_empty(self) -> bool:
        """Whether nothing may change."""
        return not any(self[index].any() for index in range(len(self.frames)))


def read_mask(
    source: Footage | PIL.Image.Image,
    mask: MaskSource | None = None,
    boxes: Iterable[BoxLike] = (),
    invert: bool = False,
) -> ClipMask | None:
    """
    Reads what may change of a clip or of an image.

    Args:
        source: the clip or the image.
        mask: white is what may change, or what is opaque if something is transparent: an image, a video or the
            pattern of an image sequence, or a PIL image, or an array `[H, W]` or `[F, H, W]`, or a list; or what finds
            masks for the frames of the clip. It may have any size, to which the clip's is stretched. A video of as
            many frames goes with the clip frame by frame, another one by its times, and its last frame stays.
        boxes: in place of a mask, x, y, width and height in pixels of the source; several, with a time in seconds as
            the fifth number, are a box that moves evenly from one to the next.
        invert: whether what is white or in the box is what may not change.

    Returns:
        The mask, or None if neither a mask nor a box is given.

    Raises:
        LoomVideoError: if a file cannot be read, or a mask or a box does not fit.
    """
    read_boxes = [_to_box(box) for box in boxes]
    if mask is None and not read_boxes:
        if invert:
            raise LoomVideoError("There is no mask to invert: give `mask` or a box.")
        return None
    if mask is not None and read_boxes:
        raise LoomVideoError("Both `mask` and a box are given: give one of them.")
    size = (source.width, source.height)
    frames: Iterable[np.ndarray]
    if read_boxes:
        frames = _boxes_of(read_boxes, source, *size)
    elif isinstance(mask, (str, os.PathLike)):
        frames = _read_file(mask, source)
    else:
        frames = _read_values(mask, source)
    kept: list[bytes] = []
    for frame in frames:
        if frame.shape[::-1] != size:
            frame = np.asarray(PIL.Image.fromarray(frame).resize(size, PIL.Image.Resampling.BILINEAR))
        data = zlib.compress((255 - frame if invert else frame).tobytes(), 1)
        # Masks that stand still take memory once.
        kept.append(kept[-1] if kept and kept[-1] == data else data)
    return ClipMask(*size, tuple(kept))


@lru_cache(maxsize=1)  # Masks that stand still are feathered once.
def _feathered(data: bytes, width: int, height: int, num_pixels: int) -> np.ndarray:
    import torch

    from ..pipelines.loomvideo_masks import feather

    share = torch.from_numpy(_decompress(data, width, height).astype(np.float32) / 255)
    return feather(share[None, None, None], num_pixels)[0, 0, 0, :, :, None].numpy()


def _decompress(data: bytes, width: int, height: int) -> np.ndarray:
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, width)


def latent_mask_of(
    mask: ClipMask, footage: Footage, placement: Placement, scale_factor_spatial: int, scale_factor_temporal: int
) -> "torch.Tensor":
    """Which latents of a clip may change: 0 or 1, float32 `[1, 1, T, h, w]`."""
    import torch

    from ..pipelines.loomvideo_masks import to_latent_mask

    model_frames: list[torch.Tensor] = []
    kept, current = b"", torch.empty(0)
    for index, count in enumerate(footage.counts):
        if mask.data(index) is not kept:
            kept, placed = mask.data(index), torch.from_numpy(placement.place(mask[index])).float()
            current = to_latent_mask(placed[None, None, None], scale_factor_spatial, 1)
        if count == 0:  # It shows the edit of the one before it.
            model_frames[-1] = torch.maximum(model_frames[-1], current)
        model_frames += [current] * count
    model_frames += [current] * (footage.num_model_frames - len(model_frames))
    return to_latent_mask(torch.cat(model_frames, dim=2), 1, scale_factor_temporal)


def seconds_of(footage: Footage) -> list[float]:
    """When each frame is shown, from where a player begins."""
    return [float(time * footage.time_base) for time in footage.times]


def overlay(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colors what may change in a picture, uint8 `[H, W, 3]`, by a mask, uint8 `[H, W]`."""
    share = OVERLAY_SHARE * mask[..., None].astype(np.float32) / 255
    return (pixels + share * (np.array(OVERLAY_COLOR, np.float32) - pixels)).round().astype(np.uint8)


def _to_box(box: BoxLike) -> Box:
    if isinstance(box, Box):
        return box
    if isinstance(box, str):
        return Box.parse(box)
    try:
        return Box.parse(
            ",".join(str(int(side)) for side in box[:4]) + "".join(f"@{_plain(float(time))}" for time in box[4:])
        )
    except (TypeError, ValueError, OverflowError, LoomVideoError) as error:
        raise LoomVideoError(f"A box must be x, y, width and height, and maybe seconds, but is {box}.") from error


def _boxes_of(boxes: list[Box], source: Footage | PIL.Image.Image, width: int, height: int) -> Iterator[np.ndarray]:
    """Yields the masks of boxes: one of a box that stands still, else one for each frame."""
    for box in boxes:
        is_inside = 0 <= box.x < box.x + box.width <= width and 0 <= box.y < box.y + box.height <= height
        if not is_inside:
            raise LoomVideoError(f"The box {box} does not lie within the {width} x {height} pixels of the source.")
    if len(boxes) == 1:
        yield _draw_box(np.array(boxes[0][:4]), width, height)
        return
    if isinstance(source, PIL.Image.Image):
        raise LoomVideoError("An image has one box: several are for a box that moves in a video.")
    at = {box.seconds: box[:4] for box in boxes if box.seconds is not None}
    if len(at) < len(boxes):
        raise LoomVideoError("Several boxes are one that moves: give each a time of its own, as in X,Y,W,H@SECONDS.")
    moments = sorted(at)
    sides = np.array([at[moment] for moment in moments])
    for seconds in seconds_of(source):
        yield _draw_box(np.array([np.interp(seconds, moments, side) for side in sides.T]), width, height)


def _draw_box(sides: np.ndarray, width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    left, top = sides[:2].round().astype(int)
    right, bottom = (sides[:2] + sides[2:]).round().astype(int)
    mask[top:bottom, left:right] = 255
    return mask


def _read_file(path: str | os.PathLike, source: Footage | PIL.Image.Image) -> Iterator[np.ndarray]:
    """Yields the masks of an image, or of a video at the times of the source's frames."""
    if not is_sequence(path) and is_image(path):
        yield read_mask_image(path)
        return
    if isinstance(source, PIL.Image.Image):
        raise LoomVideoError(f"{path} is no image, but the mask of an image must be one.")
    footage = survey(path, show_progress=True, rate=source.rate if is_sequence(path) else None)
    wanted: Sequence[int] = range(len(source.times))
    if len(footage.times) != len(source.times):
        # Times are rounded to the units of the files.
        starts = [seconds - 0.5 * float(min(footage.time_base, 1 / footage.rate)) for seconds in seconds_of(footage)]
        wanted = [max(0, bisect_right(starts, seconds) - 1) for seconds in seconds_of(source)]
    place = 0
    for index, frame in enumerate(read_frames(footage)):
        mask = None
        while place < len(wanted) and wanted[place] == index:
            mask = _mask_of(frame, footage) if mask is None else mask
            yield mask
            place += 1


def _mask_of(pixels: np.ndarray, footage: Footage) -> np.ndarray:
    has_alpha = footage.pixel_format in (PIXEL_FORMATS[False, True], PIXEL_FORMATS[True, True])
    if not has_alpha:
        return np.asarray(PIL.Image.fromarray(convert_pixels(pixels, "rgb24")).convert("L"))
    alpha = pixels[..., 3]
    return (alpha // 257).astype(np.uint8) if alpha.dtype == np.uint16 else alpha


def _read_values(mask: Any, source: Footage | PIL.Image.Image) -> Iterator[np.ndarray]:
    """Yields masks that are passed or found: one for all frames, or one for each."""
    from ..pipelines.loomvideo_masks import to_mask

    num_frames = 1 if isinstance(source, PIL.Image.Image) else len(source.times)
    if callable(mask):
        masks: Iterable[Any] = progress_bar(mask(_frames_of(source)), desc="Finding masks", total=num_frames)
    elif isinstance(mask, PIL.Image.Image) or (hasattr(mask, "ndim") and mask.ndim == 2):
        masks = [mask]
    elif isinstance(mask, (list, tuple)) or (hasattr(mask, "ndim") and mask.ndim == 3):
        masks = mask
    else:
        raise LoomVideoError("`mask` must be a file, an image, an array [H, W] or [F, H, W], or what finds masks.")
    count = 0
    for one in masks:
        count += 1
        if count > num_frames:
            break
        yield (to_mask(one) * 255).round().astype(np.uint8)
    if count not in (num_frames, 1) or (callable(mask) and count != num_frames):
        more = "more" if count > num_frames else count
        raise LoomVideoError(f"`mask` has {more} frames, but the clip has {num_frames}: give one for each.")


def _frames_of(source: Footage | PIL.Image.Image) -> Iterator[np.ndarray]:
    if isinstance(source, PIL.Image.Image):
        yield np.asarray(source.convert("RGB"))
        return
    for pixels in read_frames(source):
        yield convert_pixels(pixels, "rgb24")
