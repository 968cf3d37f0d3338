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
"""Progress bars, as a person sees them on a terminal and finds them in a log."""

import subprocess
import sys

import pytest
from terminal import run_in_terminal

from loomvideo_diffusers.progress import close_bars, progress_bar, stage


NESTED = """
import sys, warnings
from tqdm.auto import tqdm
from loomvideo_diffusers.progress import message, progress_bar, stage
for job in progress_bar(range(2), desc="Jobs"):
    with stage("Reading the prompt"):
        with progress_bar(desc="Denoising", total=3, mininterval=0) as bar:
            for step in range(3):
                bar.update()
                bar.set_postfix(window="1/2")
                if step == 1:
                    warnings.warn("twice")
                    print("no", end=" ")
                    print("news")
                    message("good news")
    for _ in tqdm(range(2), desc="Of a library", mininterval=0, leave=False):
        pass
list(progress_bar(iter("abc"), desc="Reading"))
print("done")
"""


def test_one_line(tmp_path):
    """Bars take turns in one line; what is printed stands above it, once; what is within another leaves nothing."""
    (tmp_path / "script.py").write_text(NESTED)
    status, screen, states = run_in_terminal([sys.executable, str(tmp_path / "script.py")])
    assert status == 0
    assert [line.partition(":")[0] for line in screen] == [
        str(tmp_path / "script.py"), '  warnings.warn("twice")',
        "no news", "good news", "no news", "good news", "Jobs", "Reading", "done",
    ]  # fmt: skip
    for line in screen:
        assert not line.startswith(("Denoising", "Of a library"))
    for start in ("Jobs 0/2, Reading the prompt [", "Jobs 1/2, Denoising: 100%|", "Of a library: 100%|"):
        assert any(line.startswith(start) for line in states), start
    assert any("3/3" in line and "window=1/2" in line for line in states)


@pytest.mark.parametrize("columns", [0, 20])
def test_odd_terminals(columns, tmp_path):
    (tmp_path / "script.py").write_text(NESTED)
    status, screen, _ = run_in_terminal([sys.executable, str(tmp_path / "script.py")], columns)
    assert status == 0
    assert sum(line.startswith("Jobs: 100%") for line in screen) == 1
    assert screen[-1] == "done"


def test_in_a_log(tmp_path):
    """Where nobody watches, a bar is one line."""
    (tmp_path / "script.py").write_text(NESTED.replace("in tqdm(", "in progress_bar("))
    result = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, check=True)
    assert result.stdout.decode().splitlines() == ["no news", "no news", "done"]
    assert b"\r" not in result.stderr
    bars = [line for line in result.stderr.decode().splitlines() if "[" in line]
    assert [line.partition(":")[0] for line in bars] == ["Jobs", "Reading"]


def test_as_tqdm(capsys):
    bar = progress_bar("ab", desc="Letters")
    assert list(bar) == ["a", "b"]
    assert bar.n == 2
    with progress_bar(total=3) as bar:
        bar.update(2)
        assert bar.n == 2
    with progress_bar(total=3, disable=True) as bar:
        bar.update()
    error = capsys.readouterr().err
    assert "Letters: 100%" in error
    assert error.count("\n") == 2


def test_what_an_error_leaves_open(capsys):
    outer = progress_bar(total=3, desc="Training")
    progress_bar(total=3, desc="Sample").update(1)
    close_bars()
    close_bars()
    outer.close()
    assert [line[:14] for line in capsys.readouterr().err.splitlines()] == ["Training:   0%"]


def test_errors_pass_through_a_stage():
    with pytest.raises(ValueError, match="why"), stage("Reading"):
        raise ValueError("why")
