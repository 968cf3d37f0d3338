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
"""What a model's folder says of how it is best called, and who goes by it."""

import json
import shutil
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, cli, nano
from loomvideo_diffusers.defaults import read_default_options
from loomvideo_diffusers.media import read_comment, read_video


STATED = {"height": 32, "width": 64, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1.0}
STATED |= {"guidance_scale_visual": 1, "window_frames": 9, "window_overlap": 4}


def state(folder: Path, options) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"default_options": options}))


@pytest.fixture(scope="module")
def small_model(model_folder, tmp_path_factory) -> Path:
    """The miniature checkpoint, which says that it is best called with little."""
    folder = tmp_path_factory.mktemp("small") / "model"
    shutil.copytree(model_folder, folder)
    state(folder, STATED)
    return folder


def test_of_nano_and_of_the_released_model(model_folder):
    assert read_default_options(str(nano.MODEL)) == nano.DEFAULT_OPTIONS
    assert read_default_options(str(model_folder)) == {}


def test_they_stay_with_the_pipeline(small_model, hub, tmp_path):
    """Saved, loaded, made of another pipeline, as remote code and from the Hub."""
    pipe = LoomVideoPipeline.from_pretrained(small_model)
    edit = LoomVideoEditPipeline.from_pipe(pipe)
    assert pipe.config.default_options == edit.config.default_options == STATED
    edit.save_pretrained(tmp_path / "saved")
    assert read_default_options(str(tmp_path / "saved")) == STATED
    remote = DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    remote.save_pretrained(tmp_path / "again")
    assert read_default_options(str(tmp_path / "again")) == STATED
    pipe.push_to_hub("me/small")
    assert read_default_options("me/small") == STATED
    assert LoomVideoPipeline.from_pretrained("me/small").config.default_options == STATED
    other = LoomVideoPipeline.from_pipe(pipe, default_options=None)
    assert other.config.default_options is None


def test_commands_go_by_them(small_model, tmp_path):
    made, edited = tmp_path / "made.mp4", tmp_path / "edited.mp4"
    model = ["--model", str(small_model), "--seed", "0"]
    assert cli.main(["generate", "a cat", "-o", str(made), *model]) == 0
    assert read_video(made).shape == (5, 32, 64, 3)
    description = json.loads(read_comment(made))
    assert (description["num_inference_steps"], description["guidance_scale"]) == (1, 1.0)
    assert cli.main(["edit", str(made), "a dog", "-o", str(edited), *model]) == 0
    assert json.loads(read_comment(edited))["num_inference_steps"] == 1
    # What is said on the command line goes before.
    size = ["--height", "64", "--width", "32", "--frames", "1", "--steps", "2"]
    assert cli.main(["generate", "a cat", "-o", str(tmp_path / "made.png"), *model, *size]) == 0
    assert json.loads(read_comment(tmp_path / "made.png"))["num_inference_steps"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([480], "must be an object"),
        ({"height": 32}, "only one of height and width"),
        ({"num_frames": "many"}, 'say num_frames = "many"'),
        ({"num_inference_steps": True}, "say num_inference_steps = true"),
        ({"guidance_scale": 0.5}, "say guidance_scale = 0.5"),
        ({"num_steps": 5}, "say num_steps = 5"),
    ],
)
def test_wrong_ones(model_folder, tmp_path, options, message, capsys):
    shutil.copy(model_folder / "model_index.json", tmp_path)
    state(tmp_path, options)
    with pytest.raises(ValueError, match=r"model_index\.json") as error:
        read_default_options(str(tmp_path))
    assert message in str(error.value)
    assert cli.main(["generate", "a cat", "-o", str(tmp_path / "a.mp4"), "--model", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json cannot be read"):
        read_default_options(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json cannot be read"):
        read_default_options(str(tmp_path))
