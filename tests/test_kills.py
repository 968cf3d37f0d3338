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

import random
import signal
import subprocess
import sys
import time

import pytest
from clips import make_clip


def run(command, **options):
    return subprocess.run([sys.executable, "-m", "loomvideo_diffusers", *command], check=True, **options)


def run_until(command, moment=None):
    """
    Runs a command, and kills it so many seconds after its first words. Returns whether it was still running, and how
    long it ran from then on.
    """
    process = subprocess.Popen([sys.executable, "-u", "-m", "loomvideo_diffusers", *command], stderr=subprocess.PIPE)
    process.stderr.read(1)
    start = time.monotonic()
    if moment is not None:
        time.sleep(moment)
        process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL, time.monotonic() - start


@pytest.mark.slow
def test_edits(model_folder, tmp_path):
    """15 kills, from the first words on."""
    source = make_clip(tmp_path / "source.mp4", num_frames=49, size=(128, 96))
    options = ["--model", str(model_folder), "--height", "64", "--width", "96", "--steps", "12", "--window", "25"]

    def command(name):
        results = ["-o", str(tmp_path / name), "--compare", str(tmp_path / f"both-{name}")]
        return ["edit", str(source), "blue", *results, *options, "--seed", "0"]

    _, seconds = run_until(command("one.mp4"))
    whole = {name: (tmp_path / name).read_bytes() for name in ("one.mp4", "both-one.mp4")}

    def check(name):
        # Each says with which command it was made.
        assert (tmp_path / name).read_bytes().replace(b"two.mp4", b"one.mp4") == whole[name.replace("two", "one")]

    rng, num_killed = random.Random(0), 0
    for attempt in range(15):
        num_killed += run_until(command("two.mp4"), rng.uniform(0, seconds))[0]
        for name in ("two.mp4", "both-two.mp4"):
            if (tmp_path / name).exists():
                check(name)
        if attempt % 3 == 2:
            run_until(command("two.mp4"))
            hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
            assert not hidden
            for name in ("two.mp4", "both-two.mp4"):
                check(name)
                (tmp_path / name).unlink()
    assert num_killed >= 10


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
