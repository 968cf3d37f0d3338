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
"""Every snippet of the README and the model cards, run on the miniature checkpoint, with sizes to match."""

import configparser
import functools
import importlib.util
import re
import shlex
import shutil
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from conftest import FIXTURES, GOLDEN
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, LoomVideoTransformer3DModel, cli
from loomvideo_diffusers.footage import EditSettings
from loomvideo_diffusers.media import read_video, write_video
from loomvideo_diffusers.nano import MODEL


ROOT = Path(__file__).parent.parent
README, CARD, NANO_CARD = ROOT / "README.md", ROOT / "model_cards" / "base.md", ROOT / "model_cards" / "nano.md"

# What the released model and a GPU are for the reader is the miniature checkpoint and the CPU here.
SUBSTITUTES = {
    "MSALab/LoomVideo": str(GOLDEN / "LoomVideo"),
    "Qwen/Qwen3-VL-8B-Instruct": str(GOLDEN / "Qwen3-VL"),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": str(GOLDEN / "Wan2.2-TI2V"),
    "OWNER/": "me/",
    '"cuda"': '"cpu"',
    "enable_model_cpu_offload()": 'enable_model_cpu_offload(device="cpu")',
}


def snippets(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found
    for old, new in SUBSTITUTES.items():
        found = [snippet.replace(old, new) for snippet in found]
    return found


def write_training_example() -> dict[str, Any]:
    """Writes the clips and the records of the training that the README describes, and returns its settings."""
    Path("clips").mkdir()
    jobs, records = snippets(README, "jsonl")
    Path("jobs.jsonl").write_text(jobs)
    for name in re.findall(r'"([\w-]+\.(?:mp4|jpg))"', records):
        shutil.copy(FIXTURES / ("cat.mp4" if name.endswith("mp4") else "coffee.jpg"), Path("clips") / name)
    Path("clips/records.jsonl").write_text(records)
    (settings,) = snippets(README, "yaml")
    return yaml.safe_load(settings)


@pytest.fixture
def workplace(tmp_path, monkeypatch, model_folder):
    """A folder with the files that the snippets name, in which calls without sizes are small."""
    monkeypatch.chdir(tmp_path)
    for source in ("LoomVideo", "Qwen3-VL", "Wan2.2-TI2V"):  # as the converted model's card calls them
        Path(source).symlink_to(GOLDEN / source)
    shutil.copy(FIXTURES / "cat.mp4", "street.mp4")
    write_video("street.gif", read_video("street.mp4"))
    for name in ("street.jpg", "shirt.jpg", "man.jpg", "lawn.jpg"):
        shutil.copy(FIXTURES / "coffee.jpg", name)

    settings = write_training_example()
    assert settings["model"] == "loomvideo-5b"
    settings["data"]["sizes"] = [[64, 64]]
    settings |= {"steps": 2, "mixed_precision": "no"}
    settings["validation"]["num_inference_steps"] = 1
    Path("cat.yaml").write_text(yaml.safe_dump(settings))

    def make_small(pipeline_class):
        call = pipeline_class.__call__

        @functools.wraps(call)
        def small_call(self, *arguments, **options):
            frames = {} if options.get("num_frames") == 1 or "image" in options else {"num_frames": 5}
            return call(self, *arguments, **({"height": 64, "width": 64, "num_inference_steps": 1} | frames | options))

        monkeypatch.setattr(pipeline_class, "__call__", small_call)

    for pipeline_class in (LoomVideoPipeline, LoomVideoEditPipeline):
        make_small(pipeline_class)
    small_edit = functools.partial(EditSettings, height=64, width=64, num_inference_steps=1)
    monkeypatch.setattr("loomvideo_diffusers.footage.plan.EditSettings", small_edit)
    from_pretrained = DiffusionPipeline.from_pretrained.__func__

    def small_from_pretrained(cls, *arguments, **options):
        pipe = from_pretrained(cls, *arguments, **options)
        if cls is DiffusionPipeline:
            make_small(type(pipe))
        return pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(small_from_pretrained))
    return tmp_path


@pytest.mark.parametrize(
    ("document", "count"),
    [(README, 16), (CARD, 2), (NANO_CARD, 1)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_shell(document, count, workplace, model_folder, hub):
    document = model_folder / "README.md" if document is CARD else document
    commands = [line for snippet in snippets(document, "sh") for line in snippet.splitlines()]
    assert sum(command.startswith("loomvideo") for command in commands) == count
    # The order of the card is that of its readers, for whom the folder is there.
    for command in sorted(commands, key=lambda command: ("convert" not in command, "train" not in command)):
        program, *arguments = shlex.split(command)
        if arguments[0] == "train":
            assert cli.main(arguments) == 0, command
            assert Path("my-lora/pytorch_lora_weights.safetensors").exists()
            AcceleratorState._reset_state(reset_partial_state=True)
        elif program == "accelerate":
            assert importlib.util.find_spec(f"{arguments[2]}.__main__")
            assert arguments[3] == "cat.yaml"
        elif program == "loomvideo":
            if arguments[0] == "push":
                assert cli.main(arguments) == 0, command
                assert set(hub.repositories) == {"me/loomvideo-5b"}
                continue
            outputs = [value for option, value in pairwise(arguments) if option in ("-o", "--preview")]
            if arguments[0] in ("generate", "edit"):
                arguments += ["--height", "64", "--width", "64", "--steps", "1"]
                is_video = outputs and (outputs[0].endswith("mp4") or "--preview" in arguments)
                arguments += ["--frames", "5"] if is_video else []
            assert cli.main(arguments) == 0, command
            for output in outputs or (["rain.mp4", "shirt.png"] if "--jobs" in arguments else []):
                assert Path(output).exists()
        elif program == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        else:
            assert command in (
                "pip install .",
                'pip install ".[train]"',
                'pip install "loomvideo-diffusers[nano]"',
                "python -m loomvideo_diffusers.nano",
            )


@pytest.mark.parametrize(
    ("document", "results"),
    [
        (
            README,
            [
                "fox.mp4",
                "lighthouse.png",
                "street-at-night.mp4",
                "street-at-night.png",
                "shirt.mp4",
                "lawn.mp4",
                "rainy-night.mp4",
                "mycat.mp4",
            ],
        ),
        (CARD, ["fox.gif"]),
        (NANO_CARD, ["blue-heart.mp4"]),
    ],
    ids=["README.md", "base.md", "nano.md"],
)
def test_python(document, results, workplace, model_folder, hub):
    document = model_folder / "README.md" if document is CARD else document
    shutil.copytree(model_folder, "loomvideo-5b")
    adapted = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")
    adapted.add_adapter(LoraConfig(target_modules=["to_q"]))
    LoomVideoPipeline.save_lora_weights("my-lora", get_peft_model_state_dict(adapted))
    namespace = {}
    for snippet in snippets(document, "python"):
        # The README's remote pipelines must not replace those of the package, which its later snippets use.
        exec(snippet, {} if "trust_remote_code" in snippet else namespace)
    torch._dynamo.reset()
    assert set(results) <= {path.name for path in workplace.iterdir()}


@pytest.mark.parametrize("kind", ["lora", "full", "full with its MLLM"])
def test_cards_of_what_was_trained(kind, workplace, model_folder):
    """The card that a run writes says how to use what it wrote."""
    shutil.copytree(model_folder, "loomvideo-5b")
    settings = yaml.safe_load(Path("cat.yaml").read_text())
    if kind != "lora":
        del settings["lora"]
        settings["train_text_encoder"] = kind == "full with its MLLM"
    Path("cat.yaml").write_text(yaml.safe_dump(settings))
    assert cli.main(["train", "cat.yaml"]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    card = Path("my-lora") / "README.md"
    (snippet,) = snippets(card, "python")
    namespace = {}
    exec(snippet, namespace)
    assert namespace["video"].shape == (5, 64, 64, 3)
    assert ("text_encoder" in namespace) == (kind == "full with its MLLM")
    assert ("lora" in ModelCard.load(card).data.tags) == (kind == "lora")


def test_training_example_on_nano(tmp_path, monkeypatch, capsys):
    """As it stands but for the number of steps: at nano's sizes, lengths and steps, in seconds a step at most."""
    monkeypatch.chdir(tmp_path)
    Path("cat.yaml").write_text(yaml.safe_dump(write_training_example() | {"model": "nano", "steps": 2}))
    start = time.monotonic()
    assert cli.main(["train", "cat.yaml"]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert time.monotonic() - start < 120
    assert "96 x 96 x 17         4" in capsys.readouterr().out
    for name in ("step-000002-1.mp4", "step-000002-2.mp4"):
        assert read_video(Path("my-lora") / "samples" / name).shape == (17, 96, 96, 3)


@pytest.mark.parametrize("document", [README, MODEL / "README.md"], ids=["README.md", "nano"])
def test_links(document):
    """What a document shows or points to is there."""
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)]+)\)", text)
    assert links
    headings = {"#" + heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert [link for link in links if link not in headings and not (document.parent / link).exists()] == []


def test_extras():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = re.findall(r'pip install "\.\[([\w,]+)\]"', README.read_text(encoding="utf-8"))
    assert {extra for extras in named for extra in extras.split(",")} <= set(setup["options.extras_require"])
