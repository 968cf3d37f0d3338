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
"""Whole files, leftovers of killed runs, locks, and disks that are full."""

import os
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.media import write_video
from loomvideo_diffusers.media.files import DiskFullError, lock_beside, lock_folder, remove_leftovers_in, write_whole


# Writes a file slowly, in a process of its own, and says when it has begun.
SLOW_WRITER = """
import sys, time
from pathlib import Path
from loomvideo_diffusers.media.files import write_whole

def write(file):
    Path(file).write_text("half")
    print("begun", flush=True)
    time.sleep(60)

write_whole(sys.argv[1], write)
"""
HOLDER = """
import sys, time
from loomvideo_diffusers.media import files

with getattr(files, sys.argv[1])(sys.argv[2]):
    print("begun", flush=True)
    time.sleep(60)
"""
PARENT = """
import os, sys, time
from loomvideo_diffusers.media.files import lock_folder

with lock_folder(sys.argv[1]):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def start(code: str, *arguments) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    process.first_line = process.stdout.readline().strip()
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def text_writer(text: str):
    return lambda file: Path(file).write_text(text)


# A name may hold what patterns are made of, begin like another's leftover, or have no room for more characters.
@pytest.mark.parametrize("name", ["a.mp4", "clip [1]*.mp4", ".unfinished-a.safetensors", "ä" * 120 + ".safetensors"])
def test_leftovers_of_a_killed_run(tmp_path, name):
    path = tmp_path / name
    process = start(SLOW_WRITER, path)
    kill(process)
    assert not path.exists()
    (leftover,) = tmp_path.iterdir()
    # Another file's run leaves it alone.
    write_whole(tmp_path / "b.mp4", text_writer("b"))
    assert leftover.exists()
    write_whole(path, text_writer("whole"))
    assert path.stat().st_mode & 0o777 == 0o644
    assert {file.name for file in tmp_path.iterdir()} == {name, "b.mp4"}
    assert path.read_text() == "whole"


def test_what_another_run_is_writing_is_left_alone(tmp_path):
    path = tmp_path / "a.mp4"
    process = start(SLOW_WRITER, path)
    write_whole(path, text_writer("whole"))
    (running,) = tmp_path.glob(".unfinished-*")
    assert (running / "a.mp4").read_text() == "half"
    kill(process)
    write_whole(path, text_writer("again"))
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_one_file(tmp_path):
    path, errors = tmp_path / "a.txt", []

    def write_often(text: str) -> None:
        try:
            for _ in range(100):
                write_whole(path, text_writer(text * 1000))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write_often, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert path.read_text() in [letter * 1000 for letter in "abcd"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["lock_folder", "lock_beside"])
def test_locks(tmp_path, kind):
    """A second run is refused while the first is there, and not when it was killed. In the end there is no trace."""
    place = tmp_path / "new" / "run"
    lock = {"lock_folder": lock_folder, "lock_beside": lock_beside}[kind]
    process = start(HOLDER, kind, place)
    with pytest.raises(LoomVideoError, match=f"Another run is writing to {place}: "), lock(place):
        pass
    kill(process)
    with lock(place):
        with pytest.raises(LoomVideoError, match="Another run is writing"), lock(place):
            pass
        with lock(tmp_path / "other"):
            pass
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed on Linux alone")
def test_locks_leave_no_file_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with lock_folder(tmp_path / "folder"):
            pass
    assert os.listdir("/proc/self/fd") == before


def test_a_folder_that_was_made_to_be_locked_and_is_empty_is_removed(tmp_path):
    with lock_folder(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with lock_folder(tmp_path / "there"):
        pass
    with lock_folder(tmp_path / "filled"):
        (tmp_path / "filled" / "result").write_text("result")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "filled"}
    with pytest.raises(LoomVideoError, match="/proc/run"), lock_folder("/proc/run"):
        pass


def test_a_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    """Processes that read data ahead live on for some seconds."""
    process = start(PARENT, tmp_path)
    kill(process)
    os.kill(int(process.first_line), 0)  # it is still there
    try:
        with lock_folder(tmp_path):
            pass
    finally:
        os.kill(int(process.first_line), 9)


def test_leftovers_of_all_kinds(tmp_path):
    (tmp_path / ".unfinished-000010").mkdir()
    (tmp_path / ".unfinished-000010" / "model").write_text("half")
    (tmp_path / ".removed-step-000005").mkdir()
    (tmp_path / ".unfinished-file").write_text("half")
    (tmp_path / "step-000005").mkdir()
    (tmp_path / ".gitignore").write_text("*")
    remove_leftovers_in(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000005", ".gitignore"}


NOISE = np.random.default_rng(0).integers(0, 256, (16, 256, 256, 3), dtype=np.uint8)
PICTURE = PIL.Image.fromarray(NOISE.reshape(1024, 1024, 3))
TENSORS = {"tensor": torch.zeros(1_000_000)}
WRITERS = {
    "text": lambda file: Path(file).write_text("x" * 1_000_000),
    "safetensors": lambda file: save_file(TENSORS, file),
    "torch": lambda file: torch.save(TENSORS, file),
    "png": lambda file: PICTURE.save(file, format="PNG"),
    "jpeg": lambda file: PICTURE.save(file, format="JPEG", quality=95),
    "webp": lambda file: PICTURE.save(file, format="WEBP", lossless=True),
}


@pytest.fixture
def little_room():
    """No file may become larger than 200,000 bytes: what a system says then, libraries report as a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", WRITERS)
def test_no_room(little_room, tmp_path, kind):
    """Whatever library writes, the file is named, what was there before stays, and nothing is left behind."""
    (tmp_path / "file").write_text("before")
    with pytest.raises(DiskFullError) as error:
        write_whole(tmp_path / "file", WRITERS[kind])
    message = f"{tmp_path / 'file'} could not be written (File too large): make room, or choose another disk."
    assert str(error.value) == message
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_no_room_for_a_video(little_room, tmp_path, suffix):
    with pytest.raises(DiskFullError, match=rf"video\.{suffix} could not be written \(File too large\)"):
        write_video(tmp_path / f"video.{suffix}", NOISE[:8])
    assert list(tmp_path.iterdir()) == []


def test_the_file_that_did_not_fit_is_named(little_room, tmp_path):
    """Where one file is written within another."""
    with pytest.raises(DiskFullError, match="inner could not be written"):
        write_whole(tmp_path / "outer", lambda _: write_whole(tmp_path / "inner", WRITERS["text"]))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path):
    def fail(file: str) -> None:
        Path(file).write_text("half")
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        write_whole(tmp_path / "file", fail)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("a file")
    with pytest.raises(LoomVideoError, match="within cannot be written"):
        write_whole(tmp_path / "file" / "within", text_writer("text"))


KILLED_WRITER = """
import sys
from pathlib import Path
from loomvideo_diffusers.media.files import write_whole

print("begun", flush=True)
while True:
    write_whole(sys.argv[1], lambda file: Path(file).write_text("whole" * 10_000))
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "a.txt"
    for _ in range(30):
        process = start(KILLED_WRITER, path)
        time.sleep(rng.uniform(0, 0.02))
        kill(process)
        assert not path.exists() or path.read_text() == "whole" * 10_000
        write_whole(path, text_writer("whole" * 10_000))
        assert list(tmp_path.iterdir()) == [path]
