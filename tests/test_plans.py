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
"""Plans: what can be called from Python, and what is imported and checked when."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from clips import QUICK, make_clip
from conftest import FIXTURES
from PIL import Image

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline
from loomvideo_diffusers.errors import LoomVideoError, one_line
from loomvideo_diffusers.footage import EditSettings, plan_edit, plan_generation, survey
from loomvideo_diffusers.loading import load_pipeline
from loomvideo_diffusers.media import read_image, read_video
from loomvideo_diffusers.pipelines.loomvideo_errors import LoomVideoInputError


def test_generation(model_folder, tmp_path):
    """A plan's result is that of a call, and its report names it."""
    settings = {"height": 64, "width": 96, "num_inference_steps": 1, "seed": 2}
    plan = plan_generation("a cat", tmp_path / "cat.png", references=[FIXTURES / "coffee.jpg"], **settings)
    assert plan.settings.num_frames == 1
    pipe = load_pipeline(LoomVideoPipeline, str(model_folder), device="cpu")
    report = plan.run(pipe)
    assert report.files == {tmp_path / "cat.png": "1 image, 96 x 64, seed 2"}
    assert set(report.seconds) == {"denoise", "decode", "write"}
    report = plan_generation("a cat", tmp_path / "cat.mp4", num_frames=5, **settings).run(pipe)
    assert report.files == {tmp_path / "cat.mp4": "5 frames at 24 a second, 96 x 64, seed 2"}
    assert read_video(tmp_path / "cat.mp4").shape == (5, 64, 96, 3)
    assert plan_generation("a cat", "cat.mp4").settings.num_frames == 81


def test_edit_of_an_image(model_folder, tmp_path):
    photo, output = FIXTURES / "coffee.jpg", tmp_path / "out.png"
    plan = plan_edit(photo, "blue", output, contact_sheet=tmp_path / "sheet.png", num_inference_steps=1)
    report = plan.run(load_pipeline(LoomVideoEditPipeline, str(model_folder), device="cpu"))
    width, height = (side // 32 * 32 for side in read_image(photo).size)
    assert report.files == {
        output: f"1 image, {width} x {height}, seed 0",
        tmp_path / "sheet.png": "the source above the result",
    }
    assert read_image(output).size == (width, height)


def test_plans_are_frozen_and_settings_checked(tmp_path):
    plan = plan_edit(make_clip(tmp_path / "clip.mp4"), output=tmp_path / "out.mp4", **QUICK)
    with pytest.raises(FrozenInstanceError):
        plan.comment = ""
    with pytest.raises(FrozenInstanceError):
        plan.settings.seed = 1
    for settings, named in (
        ({"height": 64}, "`height` and `width`"),
        ({"height": 0, "width": 64}, "`height`"),
        ({"num_inference_steps": 1.5}, "`num_inference_steps`"),
        ({"guidance_scale": float("nan")}, "`guidance_scale`"),
        ({"lora_scale": float("inf")}, "`lora_scale`"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 2**63}, "`seed`"),
        ({"window_frames": 8}, "`window_frames`"),
        ({"window_overlap": 6}, "`window_overlap`"),
        ({"window_frames": 5, "window_overlap": 8}, "`window_overlap`"),
        ({"max_crop": 1.0}, "`max_crop`"),
    ):
        with pytest.raises(LoomVideoError, match=named):
            EditSettings("blue", **settings)
    with pytest.raises(LoomVideoError, match="`output` or `preview`"):
        plan_edit(tmp_path / "clip.mp4", "blue")
    with pytest.raises(LoomVideoError, match="surveyed already"):
        plan_edit(survey(tmp_path / "clip.mp4"), "blue", tmp_path / "out.mp4", num_frames=5)
    with pytest.raises(TypeError, match="num_steps"):
        plan_edit(tmp_path / "clip.mp4", "blue", tmp_path / "out.mp4", num_steps=3)


FOR_CLIPS = {
    "preview": "a.png", "compare": "a.mp4", "num_frames": 5, "audio": "drop", "rate": 24, "max_crop": 0.1,
    "keep_unchanged": True,
}  # fmt: skip


@pytest.mark.parametrize("name", FOR_CLIPS)
def test_an_image_is_no_clip(name, tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    with pytest.raises(LoomVideoError, match=f"red.png is an image: leave out `{name}`, which is for videos"):
        plan_edit(path, "blue", tmp_path / "blue.png", **{name: FOR_CLIPS[name]})


def test_errors_that_a_user_can_fix():
    """They are one line; those of the code are none."""
    for error in (LoomVideoError("a\nb"), LoomVideoInputError("a b"), FileNotFoundError("a b")):
        assert one_line(error) == "a b"
    for error in (MemoryError(), RuntimeError("CUDA out of memory.")):
        assert "the memory is not enough" in one_line(error)
    for error in (ValueError("a"), TypeError("a"), RuntimeError("a"), KeyError("a")):
        assert one_line(error) is None


def test_former_names(edit, tmp_path):
    """They work as before, and say what to use."""
    from loomvideo_diffusers import editing

    with pytest.warns(FutureWarning, match=r"Edit` is deprecated: use loomvideo_diffusers.footage.EditSettings"):
        settings = editing.Edit(**QUICK)
    with pytest.warns(FutureWarning, match="plan_edit"):
        edit_footage = editing.edit_footage
    edit_footage(edit, survey(make_clip(tmp_path / "clip.mp4")), settings, tmp_path / "old.gif")
    plan_edit(tmp_path / "clip.mp4", output=tmp_path / "new.gif", **QUICK).run(edit)
    assert (tmp_path / "old.gif").read_bytes() == (tmp_path / "new.gif").read_bytes()
    with pytest.raises(AttributeError):
        _ = editing.Fit


def test_imports_are_lazy():
    """The package of footage itself imports nothing, and a plan of the command line no torch before it is needed."""
    code = "import sys, loomvideo_diffusers.footage, loomvideo_diffusers.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("negative_prompt", ["", " "])
def test_a_negative_prompt_may_be_blank(negative_prompt, tmp_path):
    options = {"negative_prompt": negative_prompt}
    assert plan_generation("a cat", tmp_path / "a.png", **options).settings.negative_prompt == negative_prompt
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "red.png")
    edited = plan_edit(tmp_path / "red.png", "blue", tmp_path / "b.png", **options)
    assert edited.settings.negative_prompt == negative_prompt


def test_references_are_files_or_images(tmp_path):
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "red.png")
    plan = plan_generation("@Image 1 and @Image 2", tmp_path / "a.png", references=[image, tmp_path / "red.png"])
    assert all(np.array_equal(reference, image) for reference in plan.settings.references)
    assert len(plan.settings.references) == 2
