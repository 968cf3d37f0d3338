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
"""Where a picture is placed in the model's frame, and how it is brought back to its own size."""

from dataclasses import dataclass

import numpy as np
import PIL.Image


@dataclass(frozen=True)
class Placement:
    """
    A picture, scaled, in the middle of the model's frame. What it leaves empty is filled by repeating its edge.

    Attributes:
        width, height: size of the model's frame in pixels.
        inner: left, top, right and bottom of the picture in the frame; negative or beyond it where the picture is
            cropped.
    """

    width: int
    height: int
    inner: tuple[int, int, int, int]

    @classmethod
    def of(cls, size: tuple[int, int], width: int, height: int, max_crop: float = 0.0) -> "Placement":
        """Makes a picture of this width and height as large as it can be if at most `max_crop` of it is cropped."""
        scales = (width / size[0], height / size[1])
        scale = min(max(scales), min(scales) / (1 - max_crop))
        inner_width, inner_height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        left, top = (width - inner_width) // 2, (height - inner_height) // 2
        return cls(width, height, (left, top, left + inner_width, top + inner_height))

    @property
    def visible(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the part of the model's frame that shows the picture."""
        left, top, right, bottom = self.inner
        return max(left, 0), max(top, 0), min(right, self.width), min(bottom, self.height)

    @property
    def crops(self) -> bool:
        """Whether a part of the picture lies outside of the model's frame."""
        return self.visible != self.inner

    def place(self, pixels: np.ndarray) -> np.ndarray:
        """Puts a picture, uint8 `[H, W, 3]` or `[H, W]`, into the model's frame, uint8 of its height and width."""
        left, top, right, bottom = self.inner
        image = PIL.Image.fromarray(pixels).resize((right - left, bottom - top), PIL.Image.Resampling.BILINEAR)
        seen = (max(-left, 0), max(-top, 0))
        visible = self.visible
        image = image.crop((*seen, seen[0] + visible[2] - visible[0], seen[1] + visible[3] - visible[1]))
        margins = ((visible[1], self.height - visible[3]), (visible[0], self.width - visible[2]), (0, 0))
        return np.pad(np.asarray(image), margins[: pixels.ndim], mode="edge")

    def restore(self, frame: np.ndarray, background: np.ndarray) -> np.ndarray:
        """
        Scales what the model's frame shows of a picture back, and lays it over a background of the picture's size.

        Both are `[H, W]` of uint8, or `[H, W, 3]` of uint8 or uint16; each has its own size.
        """
        left, top, right, bottom = self.inner
        scale = (background.shape[1] / (right - left), background.shape[0] / (bottom - top))
        visible = self.visible
        place = [
            round((edge - start) * ratio)
            for edge, start, ratio in zip(visible, (left, top, left, top), (*scale, *scale))
        ]
        whole = background.copy()
        part = frame[visible[1] : visible[3], visible[0] : visible[2]]
        whole[place[1] : place[3], place[0] : place[2]] = _resize(part, place[2] - place[0], place[3] - place[1])
        return whole


def _resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return np.asarray(PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.LANCZOS))
    # Pillow has no images of 16-bit colors: each color is resized by itself, in float.
    colors = [PIL.Image.fromarray(pixels[..., index].astype(np.float32)) for index in range(pixels.shape[2])]
    resized = [np.asarray(color.resize((width, height), PIL.Image.Resampling.LANCZOS)) for color in colors]
    return np.stack(resized, axis=-1).round().clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
