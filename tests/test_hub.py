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
"""Publishing to a Hub on this machine and loading from it, by the real client."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN
from huggingface_hub import ModelCard, snapshot_download
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from loomvideo_diffusers import LoomVideoPipeline, LoomVideoTransformer3DModel, cli
from loomvideo_diffusers.hub import upload
from loomvideo_diffusers.hub.cards import render_base_card
from loomvideo_diffusers.hub.upload import push_folder
from loomvideo_diffusers.nano import MODEL


SOURCES = {"loomvideo": GOLDEN / "LoomVideo", "mllm": GOLDEN / "Qwen3-VL", "wan": GOLDEN / "Wan2.2-TI2V"}

# Runs where the package cannot be imported: does one thing after the other, and keeps the videos of each.
WITHOUT_PACKAGE = """
import json
import sys
sys.modules["loomvideo_diffusers"] = None
import numpy as np
import torch
from diffusers import DiffusionPipeline

results = {}
for task in json.loads(sys.argv[1]):
    options = {"trust_remote_code": True, "revision": task.get("revision"), **task.get("options", {})}
    try:
        pipe = DiffusionPipeline.from_pretrained(task["model"], **options)
    except OSError as error:
        print(task["name"], "cannot be loaded")
        continue
    edit = DiffusionPipeline.from_pretrained(task["model"], custom_pipeline="pipeline_loomvideo_edit", **options)
    if "lora" in task:
        pipe.load_lora_weights(task["lora"])
        pipe.fuse_lora()
    small = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "np"}
    video = pipe("a cat", num_frames=5, generator=torch.Generator().manual_seed(0), **small).frames[0]
    edited = edit("make it blue", video=video, generator=torch.Generator().manual_seed(0), **small).frames[0]
    results |= {f"{task['name']} video": video, f"{task['name']} edited": edited}
    print(task["name"], type(pipe).__name__, type(edit).__name__, pipe.scheduler.config.flow_shift)
    if "push" in task:
        pipe.push_to_hub(task["push"], private=True)
np.savez(sys.argv[2], **results)
"""


@pytest.fixture
def run_without_package(hub, tmp_path):
    def run(*tasks, **variables):
        command = [sys.executable, "-c", WITHOUT_PACKAGE, json.dumps(tasks), str(tmp_path / "results.npz")]
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | variables, timeout=300
        )
        assert result.returncode == 0, result.stderr
        assert "hf_mine" not in result.stdout + result.stderr
        return dict(np.load(tmp_path / "results.npz")), result.stdout.splitlines()

    return run


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the converted checkpoint, which can be changed."""
    return Path(shutil.copytree(model_folder, tmp_path / "loomvideo"))


@pytest.fixture
def push(capsys):
    """Runs `loomvideo push`; returns its status and the last line that it printed."""

    def push(*arguments):
        status = cli.main(["push", *map(str, arguments)])
        printed = capsys.readouterr()
        assert "hf_" not in printed.out + printed.err
        return status, (printed.err if status else printed.out).splitlines()[-1]

    return push


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_push(hub, push, folder):
    """What arrives is what was sent, but for the card: it names the repository, and needs a licence."""
    status, line = push(folder, "me/loom")
    assert status == 2
    assert "states no licence: say which one with --license" in line
    assert not hub.repositories
    status, line = push(folder, "me/loom", "--license", "apache-2.0")
    assert status == 0, line
    assert line == f"Pushed: {hub.address}/me/loom/tree/{hub.repositories['me/loom'].branches['main']}"
    assert hub.files("me/loom") == names_in(folder)
    for name in names_in(folder) - {"README.md", "modular_model_index.json"}:
        assert hub.read("me/loom", name) == (folder / name).read_bytes()
    components = json.loads(hub.read("me/loom", "modular_model_index.json"))
    assert {value[2]["pretrained_model_name_or_path"] for value in components.values() if isinstance(value, list)} == {
        "me/loom"
    }
    card = ModelCard.load("me/loom")
    assert 'from_pretrained("me/loom"' in card.text
    assert card.data.license == "apache-2.0"
    assert ModelCard.load(folder / "README.md").data.license is None

    # Another branch, a pull request, a card that somebody has changed
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    assert push(folder, "me/loom", "--revision", "v2")[0] == 0
    assert hub.read("me/loom", "README.md", "v2").endswith(b"My own words.\n")
    status, line = push(folder, "me/loom", "--create-pr")
    assert line == f"Pushed: {hub.address}/me/loom/discussions/1"
    assert set(hub.repositories["me/loom"].branches) == {"main", "v2", "refs/pr/1"}
    assert not hub.repositories["me/loom"].private
    (folder / "README.md").unlink()
    status, line = push(folder, "me/loom")
    assert status == 2
    assert "has no README.md" in line


def test_push_of_a_model_without_code(hub, push, tmp_path):
    """The model in the package gets its code on the way, and stays as it is."""
    before = {file: file.stat().st_mtime_ns for file in MODEL.rglob("*")}
    assert push(MODEL, "me/nano")[0] == 0
    assert {file: file.stat().st_mtime_ns for file in MODEL.rglob("*")} == before
    LoomVideoPipeline.from_pretrained(MODEL).save_pretrained(tmp_path / "saved")
    code = {name for name in names_in(tmp_path / "saved") if name.endswith(".py")}
    assert hub.files("me/nano") == names_in(MODEL) | code | {"modular_config.json", "modular_model_index.json"}
    for name in (*code, "README.md", "transformer/diffusion_pytorch_model.safetensors"):
        assert hub.read("me/nano", name) == ((tmp_path / "saved" if name in code else MODEL) / name).read_bytes()
    pushed, saved = (
        json.loads(text)
        for text in (hub.read("me/nano", "model_index.json"), (tmp_path / "saved" / "model_index.json").read_text())
    )
    assert [pushed[name] for name in ("_class_name", "transformer")] == [
        saved[name] for name in ("_class_name", "transformer")
    ]


def test_weights_in_another_form(hub, tmp_path):
    """One file replaces several and several replace one: what a loader would take in their place is deleted."""
    whole, index, shards = "vae/m.safetensors", "vae/m.safetensors.index.json", "vae/m-00001-of-00001.safetensors"
    for names in ([index, shards], [whole], [index, shards]):
        folder = tmp_path / names[0].replace("/", "-")
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        push_folder(folder, "me/loom")
        assert hub.files("me/loom") - {shards} == set(names) - {shards}
    assert hub.files("me/loom") == {index, shards}


def test_a_licence_of_its_own(hub, push, folder):
    """Of a licence that the Hub does not know, name and address go along; a known one takes their place."""
    own = {"license": "other", "license_name": "loom", "license_link": "https://example.com/licence"}
    (folder / "README.md").write_text(render_base_card(folder, None, own))
    assert push(folder, "me/loom")[0] == 0
    card = ModelCard.load("me/loom")
    assert {name: card.data.get(name) for name in own} == own
    assert 'from_pretrained("me/loom"' in card.text
    assert push(folder, "me/loom", "--license", "mit")[0] == 0
    card = ModelCard.load("me/loom")
    assert {name: card.data.get(name) for name in own} == {
        "license": "mit",
        "license_name": None,
        "license_link": None,
    }
    (folder / "README.md").write_text("---\nlicense: nonsense\n---\n")
    status, line = push(folder, "me/loom")
    assert status == 2
    assert line.endswith('Invalid metadata in README.md. - "license" must be one of the Hub\'s identifiers')


CLASSES = "LoomVideoPipeline LoomVideoEditPipeline"


@pytest.mark.slow
def test_load_without_the_package(hub, push, folder, run_without_package, tmp_path):
    """What was pushed loads where only diffusers is, private with a token; and so does what is pushed from there."""
    assert push(folder, "me/loom", "--private", "--license", "apache-2.0")[0] == 0
    results, lines = run_without_package(
        {"name": "first", "model": "me/loom", "push": "me/again"},
        {"name": "again", "model": "me/again"},
        {"name": "anybody's", "model": "me/loom", "options": {"token": False, "cache_dir": str(tmp_path / "other")}},
    )
    assert lines == [
        f"first {CLASSES} 5.0",
        f"Pushed: {hub.address}/me/again/tree/{hub.repositories['me/again'].branches['main']}",
        f"again {CLASSES} 5.0",
        "anybody's cannot be loaded",
    ]
    assert hub.repositories["me/again"].private
    card = ModelCard.load("me/again")
    assert card.data.license == "apache-2.0"
    assert 'from_pretrained("me/again"' in card.text
    assert "me/loom" not in card.text
    for kind in ("video", "edited"):
        assert np.array_equal(results[f"first {kind}"], results[f"again {kind}"])
    # With the package, no code of a repository runs.
    pipe = LoomVideoPipeline.from_pretrained("me/again")
    assert type(pipe) is LoomVideoPipeline


@pytest.mark.slow
def test_revisions_adapters_and_offline(hub, push, folder, model_folder, run_without_package, tmp_path):
    """Each revision loads; what is pushed with a LoRA fused loads; and all of it again offline."""
    transformer = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")
    transformer.add_adapter(LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False))
    LoomVideoPipeline.save_lora_weights(tmp_path / "lora", get_peft_model_state_dict(transformer))
    assert push(folder, "me/loom", "--private", "--license", "apache-2.0")[0] == 0
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config | {"flow_shift": 9.0}))
    assert push(folder, "me/loom", "--revision", "v2", "--license", "apache-2.0")[0] == 0

    other = {"cache_dir": str(tmp_path / "elsewhere"), "token": "hf_other"}
    results, lines = run_without_package(
        {"name": "first", "model": "me/loom"},
        {"name": "fused", "model": "me/loom", "lora": str(tmp_path / "lora"), "push": "me/fused"},
        {"name": "v2", "model": "me/loom", "revision": "v2"},
        {"name": "fused again", "model": "me/fused"},
        {"name": "other's", "model": "me/loom", "options": other},
    )
    assert lines == [
        f"first {CLASSES} 5.0",
        f"fused {CLASSES} 5.0",
        f"Pushed: {hub.address}/me/fused/tree/{hub.repositories['me/fused'].branches['main']}",
        f"v2 {CLASSES} 9.0",
        f"fused again {CLASSES} 5.0",
        "other's cannot be loaded",
    ]
    assert np.abs(results["fused video"] - results["fused again video"]).max() < 1e-5
    assert np.abs(results["fused video"] - results["first video"]).max() > 1e-3

    snapshot = snapshot_download("me/fused")
    offline, _ = run_without_package({"name": "offline", "model": snapshot}, HF_HUB_OFFLINE="1")
    assert np.array_equal(offline["offline video"], results["fused again video"])


# Each loads one of two repositories whose code differs, and then both are used.
TWO_REPOSITORIES = """
import sys
sys.modules["loomvideo_diffusers"] = None
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("me/old", trust_remote_code=True)
edit = DiffusionPipeline.from_pretrained("me/new", custom_pipeline="pipeline_loomvideo_edit", trust_remote_code=True)
small = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "np"}
video = pipe("a cat", num_frames=5, **small).frames[0]
edit("make it blue", video=video, **small)
pipe.load_lora_weights(sys.argv[1])
pipe.fuse_lora()
pipe.push_to_hub("me/old-again")
edit.push_to_hub("me/new-again")
edit.save_pretrained(sys.argv[2])
again = DiffusionPipeline.from_pretrained(sys.argv[2], trust_remote_code=True)
again.save_pretrained(sys.argv[2])  # over itself
for module in (sys.modules[type(part).__module__] for part in (pipe, pipe.transformer, edit, edit.transformer, again)):
    print(getattr(module, "IS_NEW", False))
"""


@pytest.mark.slow
def test_repositories_of_different_code(hub, folder, tmp_path):
    """Neither takes or changes the code of the other, and each is saved with all of its own, loaded or not."""
    transformer = LoomVideoTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    transformer.add_adapter(LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False))
    LoomVideoPipeline.save_lora_weights(tmp_path / "lora", get_peft_model_state_dict(transformer))
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n")
    push_folder(folder, "me/old")
    with open(folder / "loomvideo_output.py", "a") as file:
        file.write("\n\nIS_NEW = True\n")
    for name in ("pipeline_loomvideo.py", "pipeline_loomvideo_edit.py"):
        text = (folder / name).read_text()
        (folder / name).write_text(
            text.replace("from .loomvideo_output import ", "from .loomvideo_output import IS_NEW, ")
        )
    with open(folder / "transformer" / "transformer_loomvideo.py", "a") as file:
        file.write("\n\nIS_NEW = True\n")
    push_folder(folder, "me/new")
    command = [sys.executable, "-c", TWO_REPOSITORIES, str(tmp_path / "lora"), str(tmp_path / "saved")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-5:] == ["False", "False", "True", "True", "True"]
    code = {name for name in hub.files("me/new") if name.endswith(".py")}
    assert code == {name for name in names_in(folder) if name.endswith(".py")}
    for name in code:
        assert hub.read("me/old-again", name) == hub.read("me/old", name)
        assert hub.read("me/new-again", name) == hub.read("me/new", name)
        assert (tmp_path / "saved" / name).read_bytes() == hub.read("me/new", name)


def test_the_card_of_a_revision(hub, folder):
    """It goes with the pipeline that was loaded, not with the latest one."""
    for words, revision in (("The first.", "v1"), ("The second.", None)):
        (folder / "README.md").write_text(f"---\nlicense: mit\n---\n{words}\n")
        push_folder(folder, "me/loom", revision=revision)
    LoomVideoPipeline.from_pretrained("me/loom", revision="v1").push_to_hub("me/again")
    assert b"The first." in hub.read("me/again", "README.md")


def test_failures(hub, folder, monkeypatch):
    """What may pass is tried again; what may not is said at once; what arrived otherwise than it was sent is found."""
    monkeypatch.setattr(upload, "FIRST_WAIT", 0.01)
    hub.faults += [("blobs", 403)] * 3
    with pytest.raises(OSError, match=r"The upload of loomvideo to me/loom failed: Error while uploading '.*'"):
        push_folder(folder, "me/loom")
    assert hub.files("me/loom") == set()
    hub.faults = [("repos/create", 500), ("preupload", 429), ("blobs", "drop"), ("commit", 503), ("tree", "drop")]
    assert push_folder(folder, "me/loom").startswith(hub.address)
    assert not hub.faults
    # What has arrived is not sent again.
    sent = [path for method, path in hub.requests if method == "PUT"]
    push_folder(folder, "me/loom")
    assert [path for method, path in hub.requests if method == "PUT"] == sent
    hub.faults += [("preupload", 403)]
    with pytest.raises(OSError, match=r"The upload of loomvideo to me/loom failed: .*403"):
        push_folder(folder, "me/loom")
    with pytest.raises(OSError, match=r"The upload of loomvideo to me/loom failed: .*40"):
        push_folder(folder, "me/loom", token="hf_other")
    for path in ("vae/diffusion_pytorch_model.safetensors", "model_index.json"):
        hub.damaged = {path}
        with pytest.raises(OSError, match=f"{path} on the Hub is not what was sent: push again"):
            push_folder(folder, "me/loom")


def test_waits(hub, folder, monkeypatch):
    """Before it gives up, it asks five times, each time after twice as long."""
    waits = []
    monkeypatch.setattr(upload.time, "sleep", waits.append)
    hub.faults += [("repos/create", 503)] * 5
    with pytest.raises(OSError, match=r"The upload of loomvideo to me/loom failed: .*503"):
        push_folder(folder, "me/loom")
    assert not hub.faults
    assert waits == [1, 2, 4, 8]


@pytest.mark.slow
def test_dropped_connections(hub, folder, monkeypatch):
    """Over 30 uploads on a bad line, nothing wrong ever gets its final name, and in the end all is there."""
    monkeypatch.setattr(upload, "FIRST_WAIT", 0.01)
    hub.drop_share = 0.25
    outcomes = set()
    for attempt in range(30):
        try:
            push_folder(folder, f"me/loom-{attempt % 3}")
            outcomes.add("pushed")
        except OSError:
            outcomes.add("failed")
        for repository in hub.repositories.values():
            for files in repository.commits.values():
                for path, (oid, sha256) in files.items():
                    assert hub.blobs[sha256 or oid] == (folder / path).read_bytes()
    assert "pushed" in outcomes
    assert hub.num_dropped >= 30
    hub.drop_share = 0.0
    push_folder(folder, "me/loom-0")
    assert hub.files("me/loom-0") == names_in(folder)


def test_conversion_from_the_hub(hub, tmp_path, capsys):
    """Sources are repositories, at revisions that the record and the card name; the licence is the source's."""
    for name, source in SOURCES.items():
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "loomvideo" / "README.md").write_text("---\nlicense: mit\n---\n# LoomVideo\n")
    for name in SOURCES:
        push_folder(tmp_path / name, f"me/{name}")
    revision = hub.repositories["me/loomvideo"].branches["main"]
    arguments = ["--loomvideo", f"me/loomvideo@{revision}", "--mllm", "me/mllm", "--wan", "me/wan"]
    output = tmp_path / "model"
    assert cli.main(["convert", *arguments, "-o", str(output)]) == 0
    record = json.loads((output / "conversion.json").read_text())
    assert record["sources"]["loomvideo"] == {"name": "me/loomvideo", "revision": revision, "file": "gen_model.pth"}
    card = ModelCard.load(output / "README.md")
    assert card.data.license == "mit"
    assert card.data.base_model == ["me/loomvideo", "me/mllm", "me/wan"]
    assert card.data.base_model_relation == "quantized"
    assert f"me/loomvideo@{revision}" in card.text
    assert str(tmp_path) not in card.content
    push_folder(output, "me/model")  # the Hub judges its metadata, as of all that is pushed
    capsys.readouterr()
    assert cli.main(["info", str(output)]) == 0
    assert f"loomvideo                    me/loomvideo {revision} gen_model.pth" in capsys.readouterr().out
    arguments[1] = "me/none"
    assert cli.main(["convert", *arguments, "-o", str(tmp_path / "other")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
