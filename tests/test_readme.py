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
"""Every snippet of the README, run on the miniature checkpoint, with sizes to match."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, GOLDEN

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, cli


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {"height": 64, "width": 64, "num_inference_steps": 1}

# What the released model and a GPU are for the reader is the miniature checkpoint and the CPU here.
SUBSTITUTES = {
    "MSALab/LoomVideo": str(GOLDEN / "LoomVideo"),
    "Qwen/Qwen3-VL-8B-Instruct": str(GOLDEN / "Qwen3-VL"),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": str(GOLDEN / "Wan2.2-TI2V"),
    '"cuda"': '"cpu"',
    "enable_model_cpu_offload()": 'enable_model_cpu_offload(device="cpu")',
}


def snippets(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert len(found) > 7
    for old, new in SUBSTITUTES.items():
        found = [snippet.replace(old, new) for snippet in found]
    return found


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(FIXTURES / "cat.mp4", "street.mp4")
    for name in ("street.jpg", "shirt.jpg", "man.jpg", "lawn.jpg"):
        shutil.copy(FIXTURES / "coffee.jpg", name)
    return tmp_path


def test_shell(workplace):
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    (named,) = re.findall(r'pip install "\.\[([\w,]+)\]"', README)
    assert set(named.split(",")) <= set(extras["options.extras_require"])
    commands = [line for snippet in snippets("sh") for line in snippet.splitlines()]
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "loomvideo":
            if arguments[0] != "convert":
                arguments += ["--height", "64", "--width", "64", "--steps", "1"]
                arguments += ["--frames", "5"] if arguments[arguments.index("-o") + 1].endswith("mp4") else []
            assert cli.main(arguments) == 0, command
            assert Path(arguments[arguments.index("-o") + 1]).exists()
        elif program == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        else:
            assert command == "pip install ."
    assert sum(command.startswith("loomvideo") for command in commands) == 7


def test_python(workplace, model_folder, monkeypatch):
    shutil.copytree(model_folder, "loomvideo-5b")
    for pipeline_class in (LoomVideoPipeline, LoomVideoEditPipeline):
        call = pipeline_class.__call__

        def small_call(self, *arguments, call=call, **options):
            frames = {} if options.get("num_frames") == 1 or "image" in options else {"num_frames": 5}
            return call(self, *arguments, **(SMALL | frames | options))

        monkeypatch.setattr(pipeline_class, "__call__", small_call)
    namespace = {}
    for snippet in snippets("python"):
        if "trust_remote_code" in snippet:
            # Its pipelines replace those of the package, which the later snippets use.
            remote = {}
            exec(snippet, remote)
            assert type(remote["edit"]).__name__ == "LoomVideoEditPipeline"
            continue
        exec(snippet, namespace)
    torch._dynamo.reset()
    results = {"fox.mp4", "lighthouse.png", "street-at-night.mp4", "street-at-night.png", "shirt.mp4", "lawn.mp4"}
    assert results <= {path.name for path in workplace.iterdir()}
