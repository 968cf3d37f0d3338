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
"""A pipeline that runs by its folder's own code, in other processes and beside a folder with different code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loomvideo_diffusers import LoomVideoPipeline


# What all of these processes have in common: the package is not there, and the call is the same.
COMMON = """
import multiprocessing
import pickle
import sys
sys.modules["loomvideo_diffusers"] = None
import torch
from diffusers import DiffusionPipeline


# Up to rounding, which depends on where in memory the weights lie
def assert_close(frames, expected):
    torch.testing.assert_close(frames, expected, rtol=0, atol=1e-4)


def run(pipe):
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 2, "output_type": "latent"}
    latents = torch.randn(1, 8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return pipe("a cat", latents=latents, **options).frames
"""

# Loads, and passes what is loaded on to a process and to a file.
PICKLES = (
    COMMON
    + """
if __name__ == "__main__":
    folder, file = sys.argv[1:]
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    edit = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline="pipeline_loomvideo_edit", trust_remote_code=True
    )
    assert type(pipe.transformer) is type(edit.transformer)
    assert type(edit).__name__ == "LoomVideoEditPipeline"
    expected = run(pipe)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert_close(pool.apply(run, [pipe]), expected)
    with open(file, "wb") as opened:
        pickle.dump((pipe, edit, expected), opened)
"""
)

# Needs the HF_HOME of the process that loaded the folder, and the path of the code that is kept there, which
# Diffusers adds itself as soon as any remote code is loaded.
UNPICKLES = (
    COMMON
    + """
from diffusers.utils import HF_MODULES_CACHE
sys.path.append(HF_MODULES_CACHE)
with open(sys.argv[1], "rb") as opened:
    pipe, edit, expected = pickle.load(opened)
assert_close(run(pipe), expected)
# What is loaded is of the same classes.
again = DiffusionPipeline.from_pretrained(sys.argv[2], trust_remote_code=True)
assert type(again) is type(pipe)
assert type(again.transformer) is type(edit.transformer)
again.save_pretrained(sys.argv[3])
"""
)

TWO_FOLDERS = (
    COMMON
    + """
old, new = (DiffusionPipeline.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[1:])
for pipe in (old, new, pickle.loads(pickle.dumps(old)), pickle.loads(pickle.dumps(new))):
    parts = (type(pipe), type(pipe).save_pretrained, type(pipe.transformer), pipe.transformer.from_single_file)
    print(*(hasattr(sys.modules[part.__module__], "IS_NEW") for part in parts))
assert not torch.equal(run(old), run(new))
"""
)


@pytest.fixture
def execute(tmp_path):
    """Runs a script in a Python of its own with a home of the test's."""

    def execute(code: str, *arguments: Path) -> str:
        script = tmp_path / "script.py"
        script.write_text(code)
        environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, script, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return execute


@pytest.mark.slow
def test_other_processes_unpickle_it(model_folder, execute, tmp_path):
    execute(PICKLES, model_folder, tmp_path / "pipe.pickle")
    execute(UNPICKLES, tmp_path / "pipe.pickle", model_folder, tmp_path / "saved")
    code = {path.relative_to(model_folder): path.read_bytes() for path in model_folder.rglob("*.py")}
    assert {
        path.relative_to(tmp_path / "saved"): path.read_bytes() for path in (tmp_path / "saved").rglob("*.py")
    } == code
    assert Path("transformer/transformer_loomvideo_step_caches.py") in code


@pytest.mark.slow
def test_two_folders(model_folder, execute, tmp_path):
    """Each runs its own code, of the entry files and of the files that these import."""
    folder = tmp_path / "new"
    shutil.copytree(model_folder, folder)
    names = ("pipeline_loomvideo", "loomvideo_repository", "transformer/transformer_loomvideo")
    for name in (*names, "transformer/transformer_loomvideo_single_file"):
        file = folder / f"{name}.py"
        file.write_text(file.read_text() + "\n\nIS_NEW = True\n")
    transformer = folder / "transformer" / "transformer_loomvideo.py"
    transformer.write_text(transformer.read_text().replace("theta: float = 10000.0", "theta: float = 100.0"))
    output = execute(TWO_FOLDERS, model_folder, folder)
    kinds = ["False False False False", "True True True True"]
    assert output.splitlines() == 2 * kinds
    # The package goes by its own code.
    assert not hasattr(sys.modules[type(LoomVideoPipeline.from_pretrained(folder)).__module__], "IS_NEW")
