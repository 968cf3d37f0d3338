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
"""Conversion of the three published sources."""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.conversion import convert


SOURCES = {"loomvideo": GOLDEN / "LoomVideo", "mllm": GOLDEN / "Qwen3-VL", "wan": GOLDEN / "Wan2.2-TI2V"}


def test_every_published_tensor_arrives(model_folder):
    published = torch.load(GOLDEN / "LoomVideo" / "gen_model.pth", weights_only=True)
    published = {name: tensor for name, tensor in published.items() if "text_embedder" not in name}
    converted = load_file(model_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert converted.keys() == published.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in published.items())

    published = load_file(GOLDEN / "Qwen3-VL" / "model.safetensors")
    converted = load_file(model_folder / "text_encoder" / "model.safetensors")
    published = {name.removeprefix("model."): tensor for name, tensor in published.items() if name != "lm_head.weight"}
    assert converted.keys() == published.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in published.items())

    for part in ("vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"):
        load = load_file if part.endswith("safetensors") else lambda path: json.loads(path.read_text())
        published, converted = load(GOLDEN / "Wan2.2-TI2V" / part), load(model_folder / part)
        ignored = {"_diffusers_version", "_name_or_path"}
        assert {str(converted[name]) for name in published if name not in ignored} == {
            str(published[name]) for name in published if name not in ignored
        }


def test_precision(tmp_path):
    folder = convert(**SOURCES, output_dir=tmp_path / "new" / "model")
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert tensors["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert tensors["blocks.0.scale_shift_table"].dtype == torch.float32
    assert (
        load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")["encoder.conv_in.weight"].dtype
        == torch.float32
    )
    pipe = LoomVideoPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a cat", height=64, width=64, num_frames=5, num_inference_steps=2, output_type="pt").frames
    assert frames.isfinite().all()


def test_errors_leave_nothing_behind(tmp_path):
    def check(message, **changes):
        with pytest.raises(ValueError, match=message):
            convert(**(SOURCES | {"output_dir": tmp_path / "model"} | changes))
        assert not (tmp_path / "model").exists()

    check("has no gen_model.pth", loomvideo=GOLDEN / "Qwen3-VL")
    check("has no config.json", mllm=GOLDEN / "LoomVideo")
    check("has no vae/config.json", wan=GOLDEN / "Qwen3-VL")
    check("neither a file or folder here nor the name of a repository", mllm=tmp_path / "nowhere")
    check("is there already", output_dir=GOLDEN)
    broken = tmp_path / "broken"
    shutil.copytree(GOLDEN / "LoomVideo", broken)
    torch.save({"patch_embedding.weight": torch.zeros(48, 8, 1, 2, 2)}, broken / "gen_model.pth")
    # The transformer comes last: everything before it is written, and must go
    check("not a LoomVideo checkpoint", loomvideo=broken)
    check("not a LoomVideo checkpoint", loomvideo=broken, output_dir=tmp_path / "new" / "folder" / "model")
    torch.save([torch.zeros(1)], broken / "gen_model.pth")
    check("holds a list, not tensors", loomvideo=broken)
    check("cannot be written", output_dir=broken / "gen_model.pth" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_no_pickled_code_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "evil ran"), "w"))

    (tmp_path / "source").mkdir()
    torch.save({"patch_embedding.weight": Evil()}, tmp_path / "source" / "gen_model.pth")
    with pytest.raises((ValueError, OSError)):
        convert(**(SOURCES | {"loomvideo": tmp_path / "source"}), output_dir=tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
