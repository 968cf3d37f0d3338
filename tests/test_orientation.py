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
"""All eight orientations, in clips and in photos."""

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from conftest import FIXTURES
from oriented import (
    make_oriented_clip,
    make_oriented_photo,
    set_display_matrix,
    stored_picture,
    upright_picture,
)

from loomvideo_diffusers.media import orientation as orientations
from loomvideo_diffusers.media import write_video


ALL = range(1, 9)


def first_frame(path):
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


@pytest.mark.parametrize("orientation", ALL)
def test_arrays(orientation, tmp_path):
    upright = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    stored = stored_picture(upright, orientation)
    assert orientations.swaps_sides(orientation) == (stored.shape != upright.shape)
    shown = orientations.to_upright(stored, orientation)
    assert np.array_equal(shown, upright)
    assert shown.flags.c_contiguous
    # Any number of axes, as of masks
    assert np.array_equal(orientations.to_upright(stored[..., 0], orientation), upright[..., 0])
    # Pillow's reading of the standard is this one.
    make_oriented_photo(tmp_path / "photo.png", orientation, 4, 6)
    with PIL.Image.open(tmp_path / "photo.png") as image:
        assert np.array_equal(np.asarray(PIL.ImageOps.exif_transpose(image)), upright_picture(4, 6))


@pytest.mark.parametrize("orientation", ALL)
def test_frames(orientation, tmp_path):
    path = make_oriented_clip(tmp_path / "clip.mp4", orientation)
    frame = first_frame(path)
    assert orientations.of_frame(frame) == orientation
    shown = orientations.to_upright(frame.to_ndarray(format="rgb24"), orientation)
    assert np.abs(shown.astype(int) - upright_picture()).mean() < 3


@pytest.mark.parametrize("orientation", ALL)
def test_exif_of_motion_jpeg(orientation, tmp_path):
    """PyAV has no name for the side data of such frames, and then lists none of it, the matrix neither."""
    photo = make_oriented_photo(tmp_path / "photo.jpg", orientation)
    with av.open(str(photo)) as source, av.open(str(tmp_path / "clip.avi"), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    frame = first_frame(tmp_path / "clip.avi")
    assert orientations.of_frame(frame) == orientation
    shown = orientations.to_upright(frame.to_ndarray(format="rgb24"), orientation)
    assert np.abs(shown.astype(int) - upright_picture()).mean() < 3


def test_other_matrices(tmp_path):
    """Scaled, sheared and tilted ones, and those that move the picture out of sight."""
    write_video(tmp_path / "clip.mp4", np.zeros((1, 48, 64, 3), np.uint8))
    data = (tmp_path / "clip.mp4").read_bytes()
    matrices = [
        [0, 1 << 17, 0, -1 << 17, 0, 0, 0, 0, 1 << 30],
        [9, 3 << 15, 0, -1 << 17, -9, 0, 0, 0, 1 << 30],
        [-6553, 65208, 0, -65208, -6553, 0, 1 << 30, 7, 1 << 30],
    ]
    for number, matrix in enumerate(matrices):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(data)
        set_display_matrix(path, matrix)
        assert orientations.of_frame(first_frame(path)) == 6
    assert orientations.from_display_matrix([0] * 9) == orientations.UPRIGHT


def test_nearest_angle():
    for degrees in range(-360, 361, 20):
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        clockwise = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 1]
        nearest = (1, 6, 3, 8)[(degrees + 45) // 90 % 4]
        assert orientations.from_display_matrix(clockwise) == nearest


def test_no_matrix():
    assert orientations.of_frame(first_frame(FIXTURES / "cat.mp4")) == orientations.UPRIGHT
    assert orientations.of_frame(av.VideoFrame(64, 48, "rgb24")) == orientations.UPRIGHT


def test_mirrored_clip():
    """As cameras for selfies write: mirrored left to right, not upside down."""
    frame = first_frame(FIXTURES / "field" / "mirrored.mp4")
    pixels = frame.to_ndarray(format="rgb24")
    assert np.array_equal(orientations.to_upright(pixels, orientations.of_frame(frame)), pixels[:, ::-1])
