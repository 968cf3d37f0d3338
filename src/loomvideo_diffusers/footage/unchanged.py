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
"""What an edit leaves unchanged: told from what it changed by comparing the frames before and after."""

from collections import deque

import numpy as np
import PIL.Image
import PIL.ImageFilter


# A difference of at most so many of 255 steps of color comes from the VAE, not from the edit.
SMALLEST_CHANGE = 24

# What lies so close to a change, in pixels of the model's frame, may have changed too.
CHANGE_MARGIN = 9

# Standard deviation of the blur that softens the mask's edge, in pixels of the model's frame.
CHANGE_SOFTNESS = 4


class ChangeMask:
    """
    Masks of what was changed, frame after frame.

    Args:
        num_frames: how many frames a change stays in the mask, so that it does not flicker. The VAE compresses four
            frames into one.
    """

    def __init__(self, num_frames: int = 1):
        self._changes: deque[np.ndarray] = deque(maxlen=num_frames)

    def add(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """
        Compares the next frame, uint8 `[H, W, 3]`, before and after the edit.

        Returns:
            How much of each pixel to take from the edit, uint8 `[H, W]`, 255 for all of it.
        """
        difference = np.abs(before.astype(np.int16) - after).max(axis=2) > SMALLEST_CHANGE
        change = PIL.Image.fromarray(difference.astype(np.uint8) * 255)
        change = change.filter(PIL.ImageFilter.MedianFilter(3))  # A single pixel that differs is noise.
        change = change.filter(PIL.ImageFilter.MaxFilter(2 * CHANGE_MARGIN + 1))
        self._changes.append(np.asarray(change))
        recent = PIL.Image.fromarray(np.max(self._changes, axis=0))
        return np.asarray(recent.filter(PIL.ImageFilter.GaussianBlur(CHANGE_SOFTNESS)))
