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
"""Clips and photos that are stored in each of the eight orientations, after the words of the EXIF standard."""

import struct

import numpy as np
import PIL.Image

from loomvideo_diffusers.media import write_video


# EXIF 2.32, tag 274: "The 0th row is at the visual ... of the image, and the 0th column is the visual ..."
FIRST_ROW_AND_COLUMN = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}

# Which way across and down the picture one goes, from one stored row or column to the next, if the first is there
DIRECTIONS = {"left": (1, 0), "right": (-1, 0), "top": (0, 1), "bottom": (0, -1)}

IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def upright_picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Four quarters, each of another gray: uint8 `[H, W, 3]`."""
    quarters = np.array([[20, 90], [160, 230]], np.uint8)
    return np.kron(quarters, np.ones((height // 2, width // 2), np.uint8))[..., None].repeat(3, axis=2)


def stored_picture(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a file of this orientation holds for a picture `[H, W, ...]`."""
    first_row, first_column = FIRST_ROW_AND_COLUMN[orientation]
    height, width = upright.shape[:2]
    if first_row in ("left", "right"):
        height, width = width, height
    stored = np.empty((height, width, *upright.shape[2:]), upright.dtype)
    (right_by_row, down_by_row), (right_by_column, down_by_column) = DIRECTIONS[first_row], DIRECTIONS[first_column]
    for row in range(height):
        for column in range(width):
            # An index below zero counts from the far edge, as does a direction; both begin one pixel into the picture.
            x = right_by_row * row + right_by_column * column - (-1 in (right_by_row, right_by_column))
            y = down_by_row * row + down_by_column * column - (-1 in (down_by_row, down_by_column))
            stored[row, column] = upright[y, x]
    return stored


def display_matrix(orientation: int, width: int, height: int) -> list[int]:
    """The matrix of a track, as integers, whose stored pictures are `width` x `height`."""
    first_row, first_column = FIRST_ROW_AND_COLUMN[orientation]
    (a, b), (c, d) = DIRECTIONS[first_column], DIRECTIONS[first_row]
    # What is turned or mirrored is brought back into sight.
    x, y = -min(a * width + c * height, 0), -min(b * width + d * height, 0)
    return [a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 1 << 30]


def make_oriented_clip(path, orientation: int, num_frames: int = 9, height: int = 48, width: int = 64):
    """Writes an mp4 of still frames, which is `upright_picture(height, width)` as players show it."""
    stored = stored_picture(upright_picture(height, width), orientation)
    write_video(path, [PIL.Image.fromarray(stored)] * num_frames)
    return set_display_matrix(path, display_matrix(orientation, *stored.shape[1::-1]))


def set_display_matrix(path, matrix: list[int]):
    """Changes the matrix of the first track of an mp4 or mov, which must be the identity."""
    data = path.read_bytes()
    place = data.index(IDENTITY, data.index(b"tkhd"))
    path.write_bytes(data[:place] + struct.pack(">9i", *matrix) + data[place + len(IDENTITY) :])
    return path


def make_oriented_photo(path, orientation: int, height: int = 48, width: int = 64, **options):
    """Writes a photo, `upright_picture(height, width)` as viewers show it. Options are Pillow's."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = stored_picture(upright_picture(height, width), orientation)
    PIL.Image.fromarray(stored).save(path, exif=exif, **options)
    return path
