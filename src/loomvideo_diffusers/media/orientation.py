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
Orientation: how the stored pixels of clips and photos are turned and mirrored before they are shown.

There are eight orientations, numbered as in EXIF: 1 as stored, 2 mirrored left to right, 3 turned by 180 degrees,
4 mirrored top to bottom, 5 transposed, 6 turned by 90 degrees clockwise, 7 transposed and turned by 180 degrees,
8 turned by 90 degrees counterclockwise.
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import SideData, Type


UPRIGHT = 1

# Entries (a, b, c, d) of the display matrix of each orientation: the pixel stored in column x and row y is shown in
# column ax + cy and row bx + dy, counted from the far edge if that is negative.
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def from_display_matrix(matrix: Sequence[float]) -> int:
    """
    Returns the orientation that is nearest to a display matrix.

    Args:
        matrix: nine numbers in rows, at any scale; only (a, b) of the first row and (c, d) of the second count.
    """
    shown = (matrix[0], matrix[1], matrix[3], matrix[4])
    return max(MATRICES, key=lambda orientation: np.dot(MATRICES[orientation], shown))


def of_frame(frame: av.VideoFrame) -> int:
    """Returns the orientation of a decoded frame, by the display matrix in its side data."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        matrix = _without_unknown_side_data(frame).side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return UPRIGHT
    assert isinstance(matrix, SideData)
    return from_display_matrix(struct.unpack("=9i", bytes(matrix)))


def _without_unknown_side_data(frame: av.VideoFrame) -> av.VideoFrame:
    """Removes side data that PyAV cannot name, such as the EXIF of Motion JPEG, because it then reads none at all."""
    graph = av.filter.Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    first_unknown = max(cast(int, kind.value) for kind in Type) + 1
    for kind in range(first_unknown, first_unknown + 16):
        drop = graph.add("sidedata", f"mode=delete:type={kind}")
        last.link_to(drop)
        last = drop
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    pulled = graph.pull()
    assert isinstance(pulled, av.VideoFrame)
    return pulled


def swaps_sides(orientation: int) -> bool:
    """Whether pixels of this orientation are shown as wide as they are stored high."""
    return orientation >= 5


def to_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors stored pixels `[H, W, ...]` to be shown: contiguous `[H, W, ...]`, or `[W, H, ...]`."""
    a, b, c, d = MATRICES[orientation]
    if swaps_sides(orientation):
        pixels = pixels.swapaxes(0, 1)
    return np.ascontiguousarray(pixels[:: b + d, :: a + c])
