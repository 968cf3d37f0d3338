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
"""Runs that are watched, ended from outside, and looked at while they go on."""

import functools

import numpy as np
import pytest
import torch
from clips import QUICK, make_clip

from loomvideo_diffusers.footage import plan_edit, plan_generation, read_frames, survey
from loomvideo_diffusers.progress import Progress, observed_by, progress_bar


SETTINGS = QUICK | {"num_inference_steps": 3}


class Stopped(Exception):
    """What the observer of a test raises."""


@pytest.fixture
def watched(edit):
    """A pipeline whose steps are told, as those that `load_pipeline` loads are."""
    edit.progress_bar = functools.partial(progress_bar, desc="Denoising")
    return edit


def test_all_of_an_edit_is_told(watched, tmp_path, capsys):
    told = []
    source = make_clip(tmp_path / "source.mp4", num_frames=30)
    with observed_by(told.append):
        plan_edit(source, output=tmp_path / "out.mp4", **SETTINGS).run(watched)
    assert capsys.readouterr().err == ""
    counts = {progress.description: (progress.num_done, progress.total) for progress in told}
    assert counts == {
        "Looking through frames": (30, None),
        "Reading frames": (33, 33),
        "Reading the prompt": (0, None),
        "Denoising": (6, 6),
        "Writing frames": (30, 30),
    }
    assert Progress("Denoising", 3, 6, "step 2/3, window 2/2") in told
    told.clear()
    for _ in progress_bar(range(2), desc="Afterwards"):
        pass
    assert not told


@pytest.mark.parametrize(
    "at",
    [
        Progress("Looking through frames", 3),
        Progress("Reading frames", 3, 33),
        Progress("Reading the prompt"),
        Progress("Denoising", 3, 6, "step 2/3, window 2/2"),
        Progress("Writing frames", 29, 30),
    ],
    ids=lambda progress: progress.description,
)
def test_an_observer_ends_a_run(at, watched, tmp_path):
    """What it raises leaves nothing half-written, and the pipeline as it was: the same run then gives the same."""
    source = make_clip(tmp_path / "source.mp4", num_frames=30)
    names = {"output": tmp_path / "out.mp4", "compare": tmp_path / "both.mp4"}

    def stop(progress):
        if progress == at:
            raise Stopped

    with observed_by(stop), pytest.raises(Stopped):
        plan_edit(source, **names, **SETTINGS).run(watched)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["source.mp4"]
    plan_edit(source, **names, **SETTINGS).run(watched)
    unbroken = {"output": tmp_path / "unbroken.mp4", "compare": tmp_path / "other.mp4"}
    plan_edit(source, **unbroken, **SETTINGS).run(watched)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "unbroken.mp4").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_callbacks_see_and_replace_latents(edit, pipe, tmp_path):
    source, image = make_clip(tmp_path / "source.mp4"), tmp_path / "source.png"
    plan_generation("blue", image, height=32, width=64, num_inference_steps=1).run(pipe)
    seen = []

    def note(pipe, step, timestep, tensors):
        seen.append((step, tuple(tensors["latents"].shape)))
        return {}

    def clear(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])}

    preview = plan_edit(source, preview=tmp_path / "sheet.png", **SETTINGS)
    clip = plan_edit(source, output=tmp_path / "out.mp4", **SETTINGS)
    picture = plan_edit(image, output=tmp_path / "out.png", prompt="blue", num_inference_steps=3)
    for plan, frames in ((preview, 1), (clip, 3), (picture, 1)):
        seen.clear()
        plan.run(edit, callback_on_step_end=note)
        assert [step for step, _ in seen] == [0, 1, 2]
        assert {shape[2] for _, shape in seen} == {frames}
    seen.clear()
    generation = {"num_frames": 5, "height": 32, "width": 64, "num_inference_steps": 2}
    plan_generation("blue", tmp_path / "new.mp4", **generation).run(pipe, callback_on_step_end=note)
    assert [shape[2] for _, shape in seen] == [2, 2]

    clip.run(edit, callback_on_step_end=clear)
    cleared = (tmp_path / "out.mp4").read_bytes()
    plan_edit(source, output=tmp_path / "out.mp4", **SETTINGS | {"prompt": "red"}).run(
        edit, callback_on_step_end=clear
    )
    assert (tmp_path / "out.mp4").read_bytes() == cleared


@pytest.mark.parametrize(("height", "expected"), [(24, (64, 24)), (1000, (128, 48)), (1, (4, 2))])
def test_comparison_for_browsers(height, expected, edit, tmp_path):
    """It is scaled down, never up, to even sides, and has 8 bits of color whatever the clip has."""
    source = make_clip(tmp_path / "source.mp4", codec="libx265", pix_fmt="yuv420p10le")
    names = {"output": tmp_path / "out.mp4", "compare": tmp_path / "both.mp4"}
    plan_edit(source, **names, compare_height=height, **QUICK).run(edit)
    both = survey(names["compare"])
    assert (both.width, both.height) == expected
    assert (both.num_bits, survey(names["output"]).num_bits) == (8, 10)
    if height > 1:
        frames = np.stack(list(read_frames(both))).astype(int)
        before = np.stack(list(read_frames(survey(source)))).astype(int) >> 8
        step = 48 // both.height
        assert np.abs(frames[:, :, : both.width // 2] - before[:, ::step, ::step]).mean() < 6
