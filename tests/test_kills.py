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
"""Commands that are killed at random moments: nothing wrong under a final name, and the same result after all."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from clips import make_clip


def run(command, **options):
    return subprocess.run([sys.executable, "-m", "loomvideo_diffusers", *command], check=True, **options)


def kill_once(command, moment, **options):
    """Runs a command, kills it so many seconds after its first sign of life, and says whether it was still running."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "loomvideo_diffusers", *command], stderr=subprocess.PIPE, **options
    )
    os.set_blocking(process.stderr.fileno(), True)
    process.stderr.read(1)
    time.sleep(moment)
    process.kill()
    process.stderr.read()
    process.stderr.close()
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_edits(model_folder, tmp_path):
    """15 kills, between the first frame that is read and the last that is written."""
    source = make_clip(tmp_path / "source.mp4", num_frames=49, size=(128, 96))
    options = ["--model", str(model_folder), "--height", "64", "--width", "96", "--steps", "12", "--window", "25"]

    def command(name):
        return ["edit", str(source), "blue", "-o", str(tmp_path / name), "--compare", str(tmp_path / f"both-{name}")]

    run([*command("whole.mp4"), *options, "--seed", "0"])
    whole = {name: (tmp_path / name).read_bytes() for name in ("whole.mp4", "both-whole.mp4")}
    start = time.monotonic()
    run([*command("again.mp4"), *options, "--seed", "0"])
    seconds = time.monotonic() - start

    rng, num_killed = random.Random(0), 0
    for attempt in range(15):
        num_killed += kill_once([*command("out.mp4"), *options, "--seed", "0"], rng.uniform(0, seconds))
        for name in ("out.mp4", "both-out.mp4"):
            if (tmp_path / name).exists():
                assert same(tmp_path / name, whole[name.replace("out", "whole")])
        if attempt % 3 == 2:
            run([*command("out.mp4"), *options, "--seed", "0"])
            hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
            assert not hidden
            for name in ("out.mp4", "both-out.mp4"):
                assert same(tmp_path / name, whole[name.replace("out", "whole")])
                (tmp_path / name).unlink()
    assert num_killed >= 8


def same(path, whole: bytes) -> bool:
    """Whether a result is that of a run without kills, but for the name in the command that it says made it."""
    return path.read_bytes().replace(b"out.mp4", b"whole.mp4") == whole


@pytest.mark.slow
def test_uploads(hub, model_folder):
    """10 kills: the Hub has all of a folder or nothing, the folder is as before, and the next upload completes it."""
    before = {path: path.stat().st_mtime_ns for path in model_folder.rglob("*")}
    command = ["push", str(model_folder), "me/killed", "--license", "apache-2.0"]
    start = time.monotonic()
    run(["push", str(model_folder), "me/whole", "--license", "apache-2.0"])
    seconds = time.monotonic() - start
    rng, num_killed = random.Random(0), 0
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-m", "loomvideo_diffusers", *command], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.4 * seconds, seconds))
        process.kill()
        num_killed += process.wait() == -signal.SIGKILL
        if "me/killed" in hub.repositories:
            assert hub.files("me/killed") in (set(), {".gitattributes"}, hub.files("me/whole"))
    run(command)
    assert hub.files("me/killed") == hub.files("me/whole")
    for name in hub.files("me/whole"):
        assert hub.read("me/killed", name).replace(b"me/killed", b"me/whole") == hub.read("me/whole", name)
    assert {path: path.stat().st_mtime_ns for path in model_folder.rglob("*")} == before
    assert num_killed >= 5
