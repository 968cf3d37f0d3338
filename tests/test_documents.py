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
"""Every snippet of README, documentation and model cards, run on the miniature checkpoint, with sizes to match."""

import configparser
import functools
import importlib.util
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from conftest import FIXTURES, GOLDEN
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from s3_server import KEYS, serve_s3
from safetensors.torch import save_file
from tiny_tensors import make_tensors
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    ViTImageProcessor,
)

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, LoomVideoTransformer3DModel, cli
from loomvideo_diffusers.app import Models, serve
from loomvideo_diffusers.footage import EditSettings
from loomvideo_diffusers.media import read_video, write_video
from loomvideo_diffusers.nano import MODEL
from loomvideo_diffusers.pipelines import modular_loomvideo


ROOT = Path(__file__).parent.parent
README, DOCS, EXAMPLES = ROOT / "README.md", ROOT / "docs", ROOT / "examples"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
# The card of a converted model is a template; what the readers see is the one in its folder.
CARD, NANO_CARD = ROOT / "model_cards" / "base.md", ROOT / "model_cards" / "nano.md"

# How snippets begin; what is only to be read is `text`.
LANGUAGES = {"python", "sh", "jsonl", "yaml", "text", "bibtex"}

# What the released model and a GPU are for the reader is the miniature checkpoint and the CPU here.
SUBSTITUTES = {
    "MSALab/LoomVideo": str(GOLDEN / "LoomVideo"),
    "Qwen/Qwen3-VL-8B-Instruct": str(GOLDEN / "Qwen3-VL"),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": str(GOLDEN / "Wan2.2-TI2V"),
    "CIDAS/clipseg-rd64-refined": "clipseg",
    "OWNER/": "me/",
    '"cuda"': '"cpu"',
    "enable_model_cpu_offload()": 'enable_model_cpu_offload(device="cpu")',
    '"num_inference_steps": 20': '"num_inference_steps": 1',
    '"height": 480, "width": 832, "num_frames": 81': '"height": 64, "width": 64, "num_frames": 5',
    "height=480, width=832": "height=64, width=64",
}


def substitute(code: str) -> str:
    for old, new in SUBSTITUTES.items():
        code = code.replace(old, new)
    return code


def snippets(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [substitute(snippet) for snippet in found]


def with_snippets(language: str) -> list[Any]:
    """The documents that have snippets of a language."""
    found = [document for document in [*PAGES, CARD, NANO_CARD] if snippets(document, language)]
    assert found
    # Compiling takes the time, building a wheel, the page, and starting Ray.
    slow = (
        {DOCS / "performance.md", DOCS / "app.md"} if language == "python" else {DOCS / "training.md", DOCS / "app.md"}
    )
    slow |= {DOCS / "fleet.md"}
    return [
        pytest.param(document, marks=[pytest.mark.slow] if document in slow else [], id=document.stem)
        for document in found
    ]


def write_training_example() -> dict[str, Any]:
    """Writes the clips and the records of the training that the documentation describes, and returns its settings."""
    Path("clips").mkdir()
    (records,) = snippets(DOCS / "training.md", "jsonl")
    for name in re.findall(r'"([\w-]+\.(?:mp4|jpg))"', records):
        shutil.copy(FIXTURES / ("cat.mp4" if name.endswith("mp4") else "coffee.jpg"), Path("clips") / name)
    Path("clips/records.jsonl").write_text(records)
    (settings,) = snippets(DOCS / "training.md", "yaml")
    return yaml.safe_load(settings)


def write_lora(model_folder: Path) -> None:
    adapted = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")
    adapted.add_adapter(LoraConfig(target_modules=["to_q"], init_lora_weights=False))
    LoomVideoPipeline.save_lora_weights("my-lora", get_peft_model_state_dict(adapted))


def write_segmentation_model(folder: Path) -> None:
    """Writes a CLIPSeg with random weights, whose words are its letters."""
    letters = [*map(chr, range(97, 123)), *(f"{chr(code)}</w>" for code in range(97, 123))]
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = small | {"vocab_size": len(vocabulary), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    pictures = small | {"image_size": 32, "patch_size": 8}
    decoder = {"extract_layers": [0, 1], "reduce_dim": 16, "decoder_num_attention_heads": 2}
    config = CLIPSegConfig(text_config=words, vision_config=pictures, projection_dim=16, **decoder)
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    CLIPSegProcessor(ViTImageProcessor(size=size), tokenizer).save_pretrained(folder)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the snippets name, in which calls without sizes are small."""
    monkeypatch.chdir(tmp_path)
    for source in ("LoomVideo", "Qwen3-VL", "Wan2.2-TI2V"):  # as the converted model's card calls them
        Path(source).symlink_to(GOLDEN / source)
    shutil.copy(FIXTURES / "cat.mp4", "street.mp4")
    write_video("street.gif", read_video("street.mp4"))
    for name in ("street.jpg", "shirt.jpg", "man.jpg", "lawn.jpg"):
        shutil.copy(FIXTURES / "coffee.jpg", name)

    write_segmentation_model(Path("clipseg"))
    save_file(make_tensors(latent_channels=8, widths=(8, 8, 8, 8)), "taew2_2.safetensors")

    (jobs,) = snippets(DOCS / "fleet.md", "jsonl")
    Path("jobs.jsonl").write_text(jobs)
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
    monkeypatch.setitem(modular_loomvideo.INPUTS["num_inference_steps"], "default", 1)
    from_pretrained = DiffusionPipeline.from_pretrained.__func__

    def small_from_pretrained(cls, *arguments, **options):
        pipe = from_pretrained(cls, *arguments, **options)
        if cls is DiffusionPipeline:
            make_small(type(pipe))
        return pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(small_from_pretrained))
    return tmp_path


def run_command(command: str) -> None:
    """Runs `loomvideo ...` with small sizes, and sees that what it was to write is there."""
    arguments = shlex.split(command)
    outputs = [value for option, value in pairwise(arguments) if option in ("-o", "--preview", "--mask-out")]
    if "jobs.jsonl" in arguments:
        outputs += ["rain.mp4", "shirt.png"]
    if arguments[0] == "train":
        outputs += ["my-lora/pytorch_lora_weights.safetensors"]
    if arguments[0] == "app":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which what runs in the background has not
        threading.Timer(3, signal.raise_signal, [signal.SIGINT]).start()  # as a person ends it
    if arguments[0] in ("generate", "edit", "calibrate"):
        arguments += ["--height", "64", "--width", "64", "--steps", "1"]
        is_video = outputs and (outputs[0].endswith("mp4") or "--preview" in arguments) and "--jobs" not in arguments
        arguments += ["--frames", "5"] if is_video else []
    assert cli.main(arguments) == 0, command
    assert [output for output in outputs if not Path(output).exists()] == []
    if arguments[0] == "train":
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def shop() -> Iterator[Any]:
    """Runs a cluster, and a server with the bucket of the documentation. Yields its file system."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch, serve_s3() as (address, _):
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": address, "RAY_USAGE_STATS_ENABLED": "0"}).items():
            patch.setenv(name, value)
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.mkdir("shop")
        for name in ("jobs.jsonl", "street.mp4", "street.jpg", "shirt.jpg"):
            bucket.put_file(name, f"shop/{name}")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield bucket
        cluster.shutdown()


@pytest.mark.parametrize("document", with_snippets("sh"))
def test_shell(document, workplace, model_folder, hub):
    document = model_folder / "README.md" if document is CARD else document
    commands = [line for snippet in snippets(document, "sh") for line in snippet.splitlines()]
    # The order of the card is that of its readers, for whom the folder is there.
    commands.sort(key=lambda command: not command.startswith("loomvideo convert"))
    if not commands[0].startswith("loomvideo convert"):
        shutil.copytree(model_folder, "loomvideo-5b")
    if any("--lora my-lora" in command for command in commands):
        write_lora(model_folder)
    for command in commands:
        program, _, arguments = command.partition(" ")
        if "s3://shop" in command:
            with shop() as bucket:
                run_command(arguments)
                made = {"jobs.report.jsonl", "jobs.report.parquet", "rain.mp4", "shirt.png"}
                assert {f"shop/{name}" for name in made} <= set(bucket.find("shop", refresh=True))
        elif program == "loomvideo":
            run_command(arguments)
        elif command == "accelerate launch -m loomvideo_diffusers.training cat.yaml":
            assert importlib.util.find_spec("loomvideo_diffusers.training.__main__")
        elif program == "make":
            subprocess.run(["make", "--dry-run", *arguments.split()], cwd=ROOT, check=True, capture_output=True)
        elif program == "pip":
            assert re.fullmatch(r'install (\.|"(\.|loomvideo-diffusers)\[[\w,]+\]")', arguments)
        else:
            assert command == "python -m loomvideo_diffusers.nano"
            assert importlib.util.find_spec("loomvideo_diffusers.nano.__main__")
    if any("loomvideo push" in command for command in commands):
        assert set(hub.repositories) == {"me/loomvideo-5b"}
    if any("loomvideo space" in command for command in commands):
        assert set(hub.repositories) == {"spaces/me/page"}


@pytest.mark.parametrize("document", with_snippets("python"))
def test_python(document, workplace, model_folder, hub):
    """The snippets of a page run one after the other, from nothing, and write the files that they name."""
    document = model_folder / "README.md" if document is CARD else document
    shutil.copytree(model_folder, "loomvideo-5b")
    write_lora(model_folder)
    namespace = {}
    code = snippets(document, "python")
    if any("http://127.0.0.1:7860" in snippet for snippet in code):
        page = ExitStack()
        address = page.enter_context(serve(Models(["nano"])))
        namespace["print"] = lambda value: page.close() if str(value).endswith(".mp4") else None
        code = [snippet.replace("http://127.0.0.1:7860", address) for snippet in code]
    for snippet in code:
        # Remote pipelines must not replace those of the package, which later snippets use.
        exec(snippet, {} if "trust_remote_code" in snippet else namespace)
    torch._dynamo.reset()
    written = re.findall(r'(?:write_\w+|\.save|export_to_gif|plan_edit)\((?:[^()\n]*, )?"([^"]+\.\w+)"', "".join(code))
    written += re.findall(r'"output": "([^"]+)"', "".join(code))
    assert [name for name in written if not Path(name).exists()] == []


def test_nothing_escapes():
    """Each snippet says what it is, so that each that can be run is."""
    for document in [*PAGES, CARD, NANO_CARD, EXAMPLES / "README.md"]:
        fences = re.findall(r"^```(.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(fences[::2]) <= LANGUAGES, document
        assert set(fences[1::2]) <= {""}, document


def test_examples_of_clusters():
    """What they run is a command, and their images and machines have what it needs."""
    cluster, kuberay = [(EXAMPLES / name).read_text() for name in ("cluster.yaml", "kuberay.yaml")]
    (command,) = re.findall(r"'(loomvideo .*?)'", re.sub(r"\n# *", " ", cluster))
    for words in (command, yaml.safe_load(kuberay)["spec"]["entrypoint"]):
        arguments = cli.build_parser().parse_args(shlex.split(words)[1:])
        assert (arguments.ray, arguments.workers) == ("auto", 16)
    settings = yaml.safe_load(cluster)
    assert settings["head_node_type"] in settings["available_node_types"]
    assert 'pip install "loomvideo-diffusers[ray]" s3fs' in settings["setup_commands"]


def test_examples(tmp_path, monkeypatch):
    """In the order in which their page calls them, on nano, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    (commands,) = snippets(EXAMPLES / "README.md", "sh")
    scripts = [command.removeprefix("python examples/") for command in commands.splitlines()]
    assert set(scripts) == {path.name for path in EXAMPLES.glob("*.py")}
    for script in scripts:
        code = substitute((EXAMPLES / script).read_text(encoding="utf-8"))
        if script == "batch.py":
            code = code.replace('"--model", MODEL', '"--model", MODEL, "--steps", "1"')
            with pytest.raises(SystemExit, match="0"):
                exec(compile(code, script, "exec"), {"__name__": "__main__"})
        else:
            exec(compile(code, script, "exec"), {"__name__": "__main__"})
        for name in re.findall(r'write_\w+\("([^"]+)"|"output": "([^"]+)"|compare="([^"]+)"', code):
            assert Path("".join(name)).exists()

    Path("records.jsonl").write_text('{"text": "a MYHEART moves right", "path": "heart.mp4"}\n')
    settings = yaml.safe_load((EXAMPLES / "train_lora.yaml").read_text())
    Path("train_lora.yaml").write_text(yaml.safe_dump(settings | {"steps": 1}))
    assert cli.main(["train", "train_lora.yaml"]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert Path("my-lora/pytorch_lora_weights.safetensors").exists()


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


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "document",
    [*PAGES, MODEL / "README.md", EXAMPLES / "README.md"],
    ids=lambda document: document.parent.name + "/" + document.stem,
)
def test_links(document):
    """What a document shows or points to is there."""
    for link in re.findall(r"\]\((?!https?://)([^)]+)\)", document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_site(tmp_path):
    """The site builds without a warning, and loads nothing from elsewhere."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    for page in tmp_path.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img|iframe)[^>]+src="?https?:|<link[^>]+href="?https?:', html) == [], page


def test_extras():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r'pip install "\.\[([\w,]+)\]"', text)
    assert named
    assert {extra for extras in named for extra in extras.split(",")} <= set(setup["options.extras_require"])


def test_lowest_versions():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    asked = "\n".join([setup["options"]["install_requires"], *extras.values()]).splitlines()
    rows = re.findall(
        r"^\| (\w+) \| ([\d.]+)(?:, below ([\d.]+))? \|", (DOCS / "install.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 10
    for package, oldest, after in rows:
        assert f"{package}>={oldest}" + f",<{after}" * bool(after) in asked
