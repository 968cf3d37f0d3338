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
"""The page as a Space: what is uploaded, and that it runs there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clips import make_clip
from gradio_client import Client, handle_file
from huggingface_hub import RepoCard, snapshot_download
from PIL import Image

from loomvideo_diffusers.app import gpu_seconds
from loomvideo_diffusers.cli import main
from loomvideo_diffusers.footage import plan_edit, plan_generation


SPACES = Path(__file__).parent.parent / "spaces"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "."], "push it to the Hub, and name its repository"),
        (["--model", "a/b/c"], "neither a folder here nor the name of a repository"),
        (["--model", "nano", "--lora", str(SPACES / "app.py")], "push it to the Hub"),
    ],
)
def test_what_is_refused(options, reason, hub, capsys):
    assert main(["space", "me/page", *options]) == 2
    assert reason in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.slow
def test_a_space_arrives_whole(hub, capsys, tmp_path):
    """The wheel is built from this checkout; what the Space's files say is what was asked for."""
    assert main(["space", "me/page", "--model", "me/loomvideo-5b", "nano", "--lora", "me/style"]) == 0
    assert re.search(r"Pushed: http://[^ ]+/spaces/me/page/tree/\w+\n", capsys.readouterr().out)
    folder = Path(snapshot_download("me/page", repo_type="space", local_dir=tmp_path / "space"))
    (wheel,) = folder.glob("*.whl")
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "app.py", "README.md", "requirements.txt", "settings.json", wheel.name
    }  # fmt: skip
    assert (folder / "requirements.txt").read_text().endswith(f"\n./{wheel.name}[app]\n")
    settings = {"models": ["me/loomvideo-5b", "nano"], "loras": ["me/style"]}
    assert json.loads((folder / "settings.json").read_text()) == settings
    card = RepoCard.load(folder / "README.md").data
    assert (card.sdk, card.models) == ("gradio", ["me/loomvideo-5b", "me/style"])
    assert main(["space", "other/page", "--model", "nano"]) == 2
    assert "rights" in capsys.readouterr().err


@pytest.mark.slow
def test_the_space_runs(tmp_path):
    """As Hugging Face starts it, without a GPU: with its own package `spaces`."""
    environment = os.environ | {"GRADIO_SERVER_PORT": "7999", "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, SPACES / "app.py"], stdout=subprocess.PIPE, env=environment) as server:
        address = server.stdout.readline().decode().split()[-1].replace("0.0.0.0", "127.0.0.1")
        clip = make_clip(tmp_path / "clip.mp4", num_frames=5, size=(96, 96))
        client = Client(address, verbose=False)
        result = client.predict(handle_file(clip), "blue", num_inference_steps=1, api_name="/edit")
        assert Path(result).exists()
        server.terminate()
        server.wait(30)


def test_seconds_that_zerogpu_is_asked_for(tmp_path):
    """They are those of the measurements on an H100, with a margin, and grow with what there is to do."""
    edited = plan_edit(
        make_clip(tmp_path / "97.mp4", num_frames=97), "blue", tmp_path / "out.mp4", width=832, height=480
    )
    measured = 0.25 + 1.0 + 39 + 2.6
    assert measured < gpu_seconds(edited) < 2.2 * measured
    make = lambda **settings: gpu_seconds(plan_generation("blue", tmp_path / "new.mp4", **settings))  # noqa: E731
    assert make(num_frames=81) < make(num_frames=121) < make(num_frames=241)
    assert make(num_inference_steps=10) < make(num_inference_steps=50) / 2
    assert make(height=704, width=1280) > 2 * make()
    image = tmp_path / "image.png"
    Image.new("RGB", (832, 480)).save(image)
    assert gpu_seconds(plan_edit(image, "blue", tmp_path / "out.png")) < gpu_seconds(edited) / 1.5
