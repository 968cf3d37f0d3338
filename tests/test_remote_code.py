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
"""A folder's own code: with nothing but diffusers, transformers and torch, and saved and loaded in every way."""

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from conftest import call_inputs
from diffusers import DiffusionPipeline

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.nano import MODEL
from loomvideo_diffusers.pipelines.loomvideo_versions import NEWEST, OLDEST, check_diffusers


ROOT = Path(__file__).parent.parent

# Runs where neither the package nor what it needs besides can be imported.
WITHOUT_PACKAGE = """
import sys
folder, inputs, output, saved, lora = sys.argv[1:]
absent = ["loomvideo_diffusers", "av", "datasets", "pydantic", "torchao"] + ([] if lora else ["accelerate", "peft"])
sys.modules |= dict.fromkeys(absent)
import numpy as np
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
edit = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline_loomvideo_edit", trust_remote_code=True)
inputs = np.load(inputs)
latents = torch.from_numpy(inputs["latents"])
if lora:
    edit.load_lora_weights(lora)
frames = edit("make it blue", video=inputs["video"], latents=latents, num_inference_steps=3).frames
np.save(output, frames)
assert type(edit).from_pipe(pipe).transformer is pipe.transformer
half = DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16, trust_remote_code=True).transformer.state_dict()
for name, tensor in pipe.transformer.state_dict().items():
    is_kept = "scale_shift_table" in name or "norm2" in name or "time_embedder" in name
    assert torch.equal(half[name], tensor if is_kept else tensor.to(torch.bfloat16)), name
print(type(pipe).__name__, type(edit).__name__)
pipe.save_pretrained(saved)
"""


def run_without_package(
    folder: Path, inputs: dict[str, np.ndarray], tmp_path: Path, lora: Path | str = ""
) -> tuple[np.ndarray, str, Path]:
    """Edits a clip by the folder's own code; returns the frames, the names of the pipelines, and where it is saved."""
    output, saved = tmp_path / "output.npy", tmp_path / f"{folder.name}-saved"
    np.savez(tmp_path / "inputs.npz", **inputs)
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PACKAGE, folder, tmp_path / "inputs.npz", output, saved, lora],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "cache")},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return np.load(output), result.stdout.strip(), saved


def test_with_and_without_the_package(edit, model_folder, clip, tmp_path):
    inputs = {"video": clip, "latents": np.random.default_rng(0).standard_normal((1, 8, 3, 4, 4), dtype=np.float32)}
    call = {"prompt": "make it blue", "video": clip, "num_inference_steps": 3}
    call["latents"] = torch.from_numpy(inputs["latents"])
    expected = edit(**call).frames

    # As converted; saved by the folder's code; loaded by the package and saved again; and by the folder's code again.
    # Without Accelerate the same weights lie at other addresses, where sums are rounded otherwise.
    frames, names, saved = run_without_package(model_folder, inputs, tmp_path)
    assert names == "LoomVideoPipeline LoomVideoEditPipeline"
    assert np.abs(frames - expected).max() < 1e-5
    loaded = LoomVideoEditPipeline.from_pretrained(saved)
    assert np.array_equal(loaded(**call).frames, expected)
    assert type(loaded.transformer) is LoomVideoTransformer3DModel
    loaded.save_pretrained(tmp_path / "by-package")
    frames, names, _ = run_without_package(tmp_path / "by-package", inputs, tmp_path)
    assert names == "LoomVideoEditPipeline LoomVideoEditPipeline"
    assert np.abs(frames - expected).max() < 1e-5


# Loads a folder by its own code, saves it by that, loads what was saved, and edits with each.
SAVE_AND_LOAD_AGAIN = """
import sys
sys.modules["loomvideo_diffusers"] = None
import numpy as np
import torch
from diffusers import DiffusionPipeline

results, options = [], {"height": 96, "width": 96, "num_inference_steps": 2}
for folder in sys.argv[1:3]:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    edit = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline_loomvideo_edit", trust_remote_code=True)
    heart = pipe("a red heart", num_frames=5, generator=torch.Generator().manual_seed(0), **options).frames[0]
    results.append(edit("make it blue", video=heart, generator=torch.Generator().manual_seed(0), **options).frames[0])
    pipe.save_pretrained(sys.argv[2])
assert np.isfinite(results[0]).all()
assert np.abs(results[0] - results[1]).max() < 1e-5  # weights at other addresses are summed up otherwise
"""


@pytest.mark.slow
def test_nano_without_the_package(tmp_path):
    """The package's model has no code; saved by the package it has, and so has what is saved from there."""
    with pytest.raises(AttributeError, match="LoomVideoPipeline"):
        DiffusionPipeline.from_pretrained(MODEL)
    LoomVideoPipeline.from_pretrained(MODEL).save_pretrained(tmp_path / "saved")
    command = [sys.executable, "-c", SAVE_AND_LOAD_AGAIN, tmp_path / "saved", tmp_path / "again"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    code = {file.relative_to(tmp_path / "saved") for file in (tmp_path / "saved").rglob("*.py")}
    assert {path.name for path in code} > {"pipeline_loomvideo.py", "transformer_loomvideo.py"}
    for path in code:
        assert (tmp_path / "again" / path).read_bytes() == (tmp_path / "saved" / path).read_bytes()


def test_saving_compiled_and_missing_transformers(pipe, tmp_path):
    pipe.transformer = torch.compile(pipe.transformer)
    pipe.save_pretrained(tmp_path / "compiled")
    assert LoomVideoPipeline.from_pretrained(tmp_path / "compiled").transformer.config.num_layers == 4
    subclass = type("Mine", (LoomVideoPipeline,), {"__module__": "__main__"})
    subclass(**pipe.components).save_pretrained(tmp_path / "subclass")
    index = json.loads((tmp_path / "subclass" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_loomvideo", "LoomVideoPipeline"]
    assert (tmp_path / "subclass" / "pipeline_loomvideo_edit.py").is_file()
    pipe.transformer = None
    pipe.save_pretrained(tmp_path / "without")
    loaded = LoomVideoPipeline.from_pretrained(tmp_path / "without", transformer=None)
    assert loaded.transformer is None


def test_no_code_runs_that_is_not_allowed(model_folder, tmp_path):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(model_folder)

    # The package takes its own code, whatever the folder's is.
    folder = tmp_path / "model"
    LoomVideoPipeline.from_pretrained(model_folder).save_pretrained(folder)
    for file in [*folder.glob("*.py"), folder / "transformer" / "transformer_loomvideo.py"]:
        file.write_text("raise SystemExit('code of the folder ran')")
    pipe = LoomVideoPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    inputs = call_inputs("pipeline_t2i")
    assert pipe(**inputs).frames.shape == (1, 1, 64, 64, 3)


def test_repository(model_folder, tmp_path):
    """A repository, as the Hub's cache keeps it: the package loads it without its code, others by its code."""
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("0" * 40)
    shutil.copytree(model_folder, snapshot)
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text("0" * 40)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    for file in snapshot.rglob("*.py"):
        file.write_text("raise SystemExit('code of the repository ran')")
    pipe = LoomVideoEditPipeline.from_pretrained("owner/model", **options)
    assert type(pipe.transformer) is LoomVideoTransformer3DModel
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained("owner/model", **options)


def test_versions_of_diffusers(caplog):
    """Of a version that is too old, one sentence; of one that is too new, a warning; the package asks for the rest."""
    oldest, after = (f"{major}.{minor}" for major, minor in (OLDEST, (NEWEST[0], NEWEST[1] + 1)))
    check_diffusers(diffusers.__version__)
    with pytest.raises(ImportError, match=rf"needs diffusers {oldest} or newer, and 0\.39\.1 is installed: run `pip"):
        check_diffusers("0.39.1")
    assert caplog.text == ""
    check_diffusers(f"{after}.0.dev0")
    assert f"run `pip install 'diffusers<{after}'`" in caplog.text
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert f"diffusers>={oldest},<{after}" in settings["options"]["install_requires"].splitlines()


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0], node.level


PUBLISHED = sorted((ROOT / "pipelines").glob("*loomvideo*.py"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.name)
def test_what_goes_to_the_hub_stands_alone(file):
    allowed = set(sys.stdlib_module_names) | {"diffusers", "transformers", "huggingface_hub", "torch", "numpy", "PIL"}
    siblings = {published.stem for published in PUBLISHED if published.stem.startswith("loomvideo_")} | {"transformer"}
    if file.name.startswith("modular"):
        siblings |= {"pipeline_loomvideo", "pipeline_loomvideo_edit"}
    for module, level in imports(file):
        assert level < 2
        assert module in (siblings if level else allowed)


@pytest.mark.parametrize("entry", ["pipeline_loomvideo.py", "pipeline_loomvideo_edit.py", "modular_loomvideo.py"])
def test_an_entry_names_all_that_it_needs(entry):
    """The Hub's loader copies what the entry file imports, and not what that imports."""

    def siblings(name):
        return {module for module, level in imports(ROOT / "pipelines" / name) if level} - {"transformer"}

    named = siblings(entry)
    assert named == named.union(*(siblings(f"{module}.py") for module in named))


@pytest.mark.parametrize("entry", ["pipeline_loomvideo.py", "pipeline_loomvideo_edit.py"])
def test_a_pipeline_names_the_files_of_the_transformer(entry):
    of_transformer = re.findall(r"from \.transformer\.(\w+) import", (ROOT / "pipelines" / entry).read_text())
    models = ROOT / "src" / "loomvideo_diffusers" / "models"
    assert of_transformer == sorted(file.stem for file in models.glob("transformer_loomvideo_*.py"))


@pytest.mark.parametrize(
    "file",
    sorted((ROOT / "src" / "loomvideo_diffusers" / "models").glob("transformer_*.py")),
    ids=lambda file: file.name,
)
def test_the_transformer_stands_alone(file):
    for module, level in imports(file):
        if level == 0:
            assert module in {*sys.stdlib_module_names, "diffusers", "torch"}
        else:
            # The Hub's loader copies what the entry file imports, and not what that imports.
            assert file.name == "transformer_loomvideo.py"
            assert level == 1
            assert file.with_name(f"{module}.py").is_file()
