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
"""The mask of what an edit changed: how far it reaches beyond a change, how soft it is, and how long it lasts."""

import math

import numpy as np
import PIL.Image
import pytest
from clips import QUICK

from loomvideo_diffusers.footage import plan_edit, read_frames, survey
from loomvideo_diffusers.footage.unchanged import ChangeMask


BLACK = np.zeros((96, 96, 3), np.uint8)


def painted(rows, columns, value=255):
    pixels = BLACK.copy()
    pixels[rows, columns] = value
    return pixels


def edge(distance, margin=9, sigma=4):
    """How much of a straight edge, dilated and blurred by a Gaussian, there is so many pixels outside of it."""
    return 255 * 0.5 * math.erfc((distance - 0.5 - margin) / (sigma * math.sqrt(2)))


def test_margin_and_softness():
    """Half of the edit is left 9 pixels beyond the change, where it falls off as a Gaussian of 4 pixels does."""
    mask = ChangeMask().add(BLACK, painted(slice(None), slice(0, 48))).astype(float)
    assert np.ptp(mask, axis=0).max() == 0
    # The last changed column is 47.
    expected = [edge(column - 47) for column in range(96)]
    assert mask[48, :40] == pytest.approx(255, abs=1)
    assert mask[48] == pytest.approx(expected, abs=5)  # Pillow's Gaussian is made of boxes.


def test_what_counts_as_a_change():
    """More than 24 steps of one color, of more pixels than a single one."""
    assert ChangeMask().add(BLACK, painted(slice(20, 60), slice(20, 60), 24)).max() == 0
    assert ChangeMask().add(BLACK, painted(slice(20, 60), slice(20, 60), (0, 25, 0))).max() == 255
    assert ChangeMask().add(BLACK, painted(48, 48)).max() == 0
    assert ChangeMask().add(BLACK, painted(slice(47, 50), slice(47, 50))).max() > 200


@pytest.mark.parametrize("num_frames", [1, 3])
def test_memory(num_frames):
    """A change is in the mask of its own frame and of those that follow, so many in all."""
    mask = ChangeMask(num_frames)
    frames = [painted(slice(20, 60), slice(20, 60)), *[BLACK] * 5]
    maxima = [mask.add(BLACK, frame).max() for frame in frames]
    assert maxima == [255] * num_frames + [0] * (6 - num_frames)


def test_a_change_stays_for_the_frames_of_one_latent(edit, tmp_path, monkeypatch):
    """Of a gray clip whose third frame becomes white, the third to sixth frame come from the model."""
    for number in range(1, 10):
        PIL.Image.new("RGB", (128, 64), (40, 40, 40)).save(tmp_path / f"in_{number}.png")

    def decoded(pipe, latents, dtype):
        for index in range(9):
            yield np.full((32, 64, 3), 255 if index == 2 else 50, np.uint8)  # 10 steps are no change.

    monkeypatch.setattr("loomvideo_diffusers.footage.run._decode", decoded)
    plan_edit(tmp_path / "in_%d.png", output=tmp_path / "out_%d.png", keep_unchanged=True, **QUICK).run(edit)
    after = read_frames(survey(tmp_path / "out_%d.png"))
    assert [np.unique(frame).tolist() for frame in after] == [[40], [40], [255], [50], [50], [50], [40], [40], [40]]
