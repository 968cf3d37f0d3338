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
"""How much memory loading, decoding and editing take at most, each in a process of its own."""

import subprocess
import sys

import pytest
import torch
from clips import make_clip
from diffusers import AutoencoderKLWan

from loomvideo_diffusers import LoomVideoPipeline, LoomVideoTransformer3DModel


pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")]

# Each prints megabytes. Their peak begins anew with `clear_refs`; that of `getrusage` begins with that of the process
# which started them.
MEGABYTES = r"""
import re, sys
from pathlib import Path

import torch

def megabytes(name):
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

def begin():
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")
"""
EDIT = """
from loomvideo_diffusers import LoomVideoEditPipeline
from loomvideo_diffusers.footage import plan_edit

model, source, output = sys.argv[1:]
pipe = LoomVideoEditPipeline.from_pretrained(model)
settings = dict(height=96, width=96, num_inference_steps=2, window_frames=17, window_overlap=8)
plan_edit(source, "blue", output, **settings).run(pipe)
print(megabytes("VmHWM"))
"""
LOAD = """
from loomvideo_diffusers import LoomVideoPipeline

LoomVideoPipeline.from_pretrained(sys.argv[2])  # so that the libraries are there
before = begin()
pipe = LoomVideoPipeline.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
for parameter in pipe.transformer.parameters():
    parameter.sum()  # so that it is not in its file alone
print(megabytes("VmHWM") - before)
"""
DECODE = """
from loomvideo_diffusers import LoomVideoPipeline

pipe = LoomVideoPipeline.from_pretrained(sys.argv[1])
before = begin()
latents = torch.randn(1, pipe.vae.config.z_dim, (int(sys.argv[2]) - 1) // 4 + 1, 24, 24)
with torch.no_grad():
    for frames in pipe.decode_in_chunks(latents):
        pass
print(megabytes("VmHWM") - before)
"""


def run(script, *arguments):
    command = [sys.executable, "-c", MEGABYTES + script, *map(str, arguments)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_editing_long_clips(model_folder, tmp_path):
    """What 960 frames take is at most 1.1 times what 240 do."""
    clips = [make_clip(tmp_path / f"{number}.mp4", num_frames=number, size=(640, 480)) for number in (240, 960)]
    short, long = (run(EDIT, model_folder, clip, tmp_path / "out.mp4") for clip in clips)
    print(f"Peak memory: {short:.0f} MB at 240 frames, {long:.0f} MB at 960.")
    assert long < 1.1 * short


def test_loading(model_folder, tmp_path):
    """A pipeline in bfloat16 takes at most 1.1 times the size of its files while it is loaded."""
    pipe = LoomVideoPipeline.from_pretrained(model_folder, dtype=torch.bfloat16)
    config = dict(pipe.transformer.config) | {"num_attention_heads": 16, "attention_head_dim": 128, "ffn_dim": 8192}
    with torch.device("meta"):
        transformer = LoomVideoTransformer3DModel.from_config(config)
    pipe.register_modules(transformer=transformer.to_empty(device="cpu").to(torch.bfloat16))
    for parameter in pipe.transformer.parameters():
        torch.nn.init.normal_(parameter)
    pipe.save_pretrained(tmp_path / "model", max_shard_size="100MB")
    size = sum(file.stat().st_size for file in (tmp_path / "model").rglob("*.safetensors")) / 2**20
    peak = run(LOAD, tmp_path / "model", model_folder)
    print(f"Peak memory: {peak:.0f} MB to load files of {size:.0f} MB.")
    assert peak > 0.9 * size > 200
    assert peak < 1.1 * size


def test_decoding_in_chunks(model_folder, tmp_path):
    """What 121 frames take is at most 1.3 times what 17 do."""
    pipe = LoomVideoPipeline.from_pretrained(model_folder)
    pipe.register_modules(
        vae=AutoencoderKLWan.from_config(dict(pipe.vae.config) | {"base_dim": 32, "decoder_base_dim": 64})
    )
    pipe.save_pretrained(tmp_path / "model")
    short, long = (run(DECODE, tmp_path / "model", number) for number in (17, 121))
    print(f"Peak memory: {short:.0f} MB for 17 frames, {long:.0f} MB for 121.")
    assert short > 50
    assert long < 1.3 * short
