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
"""One call that several processes share."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loomvideo_diffusers import cli
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.media import read_comment, read_video
from loomvideo_diffusers.parallel import Division, check_processes


def run(number, *command):
    """Runs so many processes of a command, and returns what came of it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
    return subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize(
    "words",
    [
        ["ulysses=2"],
        pytest.param(["ulysses_anything=2"], marks=pytest.mark.slow),
        pytest.param(["branches=2"], marks=pytest.mark.slow),
        pytest.param(["branches=3"], marks=pytest.mark.slow),
        pytest.param(["branches=2", "ulysses=2"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_as_one(words, model_folder):
    """Batches, references and the recorded velocities are what one process computes; by branches, to the bit."""
    worker = Path(__file__).parent / "parallel_worker.py"
    result = run(Division.parse(words).num_processes, worker, model_folder, *words)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["branches=2", "ulysses=2"])
def test_on_the_command_line(kind, tmp_path, capsys):
    """Two processes write one file, which says by which command it is made again alone."""
    arguments = ["generate", "a red heart", "--steps", "2", "--frames", "5", "--device", "cpu", "--seed", "1"]
    assert cli.main([*arguments, "-o", str(tmp_path / "heart.mp4")]) == 0
    shared = tmp_path / "shared.mp4"
    result = run(2, "-m", "loomvideo_diffusers", *arguments, "-o", shared, "--parallel", kind)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Wrote") == 1
    expected = np.asarray(read_video(tmp_path / "heart.mp4"), np.float32)
    assert np.abs(np.asarray(read_video(shared), np.float32) - expected).max() <= 2
    assert "parallel" not in json.loads(read_comment(shared))["command"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heart.mp4", "shared.mp4"]


@pytest.mark.slow
def test_an_edit_is_resumed(tmp_path):
    """Of an interrupted edit that processes share, all go on where it ended, with its seed."""
    source, output = tmp_path / "heart.mp4", tmp_path / "blue.mp4"
    assert cli.main(["generate", "a red heart", "--steps", "2", "--frames", "9", "-o", str(source)]) == 0
    arguments = ["-m", "loomvideo_diffusers", "edit", source, "make it blue", "-o", output, "--steps", "6"]
    arguments += ["--device", "cpu", "--parallel", "branches=2"]
    # A source that cannot be read a second time leaves what was denoised, as an interruption does.
    script = "import sys; from loomvideo_diffusers.footage import run; from loomvideo_diffusers import cli\n"
    script += "def fail(*arguments): raise OSError('no')\nrun._write_clip = fail\nsys.exit(cli.main(sys.argv[1:]))\n"
    (tmp_path / "broken.py").write_text(script)
    result = run(2, tmp_path / "broken.py", *arguments[2:])
    assert result.returncode != 0
    result = run(2, *arguments)
    assert result.returncode == 0, result.stderr
    assert "Denoising" not in result.stderr
    assert output.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ulysses"], "--parallel takes ulysses=N, ulysses_anything=N, ring=N, ring_anything=N, branches=N, and not"),
        (["tokens=2"], "and not tokens=2."),
        (["branches=2", "branches=3"], "and not branches=3."),
        (["ulysses=1"], "A division needs a number of processes from 2, such as ulysses=2."),
        (["branches=0"], "A division needs a number of processes from 2"),
        (["branches=4"], "Guidance has three branches at most, and not 4: add ulysses=N."),
        (["ulysses_anything=2", "ring=2"], "ulysses_anything cannot be combined with ulysses and ring: choose one."),
        (["ring_anything=2", "ulysses=2"], "ring_anything cannot be combined with ulysses and ring: choose one."),
        (["ulysses=2"], "--parallel needs 2 processes, and there is 1: start them by `torchrun --nproc-per-node 2"),
    ],
)
def test_what_cannot_be(words, message):
    with pytest.raises(LoomVideoError) as error:
        check_processes(Division.parse(words), "cpu")
    assert message in str(error.value)


def test_no_ring_on_cpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LoomVideoError, match=r"^No attention on CPUs says what a ring has to know"):
        check_processes(Division(ring=2), "cpu")


def test_not_for_lists(tmp_path, capsys):
    assert cli.main(["generate", "--jobs", str(tmp_path / "jobs.jsonl"), "--parallel", "ulysses=2"]) == 2
    assert "--parallel is for one run: leave it out with --jobs." in capsys.readouterr().err
