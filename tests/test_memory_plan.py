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
"""What a call is counted to take of a device's memory, and what makes it fit."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.gpu import CARDS, RELEASED, Bench
from loomvideo_diffusers import LoomVideoPipeline, cli
from loomvideo_diffusers.acceleration import Levers
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.footage import plan_edit, plan_generation
from loomvideo_diffusers.loading import load_pipeline
from loomvideo_diffusers.memory import CallSize, Counted, count_peak, count_weights, load_parts, plan_memory, size_of


PERFORMANCE = (Path(__file__).parent.parent / "docs" / "performance.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def released():
    """The released model without its weights."""
    return Bench(RELEASED, "meta", torch.bfloat16).make_parts()


def test_peaks_are_those_of_tensors():
    """What is there at once counts, views of it and weights do not, and what is gone neither."""
    layer = nn.Linear(1000, 1000, device="meta")

    def compute():
        one = torch.empty(1000, 1000, device="meta")
        other = layer(one)[:10].t()
        del one
        return [other @ torch.empty(10, 2000, device="meta") for _ in range(2)]

    # 4 MB of each of the first two, and then 4 MB, twice 8 MB and a small one
    assert count_peak(compute, layer) == pytest.approx((4 + 8 + 8 + 0.08) * 1e6, rel=1e-3)


def test_attention_holds_no_scores():
    query = torch.empty(1, 8, 10_000, 64, device="meta")
    attend = nn.functional.scaled_dot_product_attention
    assert count_peak(lambda: attend(query, query, value=query), nn.Module()) == 20.48e6


def test_cards(released):
    """All cards hold an edit of 97 frames at 480p, the larger the faster; what does not fit is refused."""
    counted = Counted(released, CallSize(num_frames=97), Levers())
    plans = {card: plan_memory(counted, card) for card in CARDS}
    assert [plan.offload for plan in plans.values()] == ["blocks", "blocks", "blocks:mllm", "model", None, None]
    for card, plan in plans.items():
        assert plan.peak + 0.7e9 <= card * 1e9
        assert f"about {plan.peak / 1e9:.1f} GB" in plan.describe()
        way = "everything on the device" if plan.offload is None else f"`--offload {plan.offload}`"
        assert f"| {card} GB | {way} | {plan.chunk_size} | {plan.peak / 1e9:.1f} GB |" in PERFORMANCE
    chunks = [plan.chunk_size for plan in plans.values()]
    assert chunks[0] == 1
    assert chunks[-1] == 4
    with pytest.raises(LoomVideoError, match=r"^121 frames of 704 x 1280 take 1\d\.\d GB, and not 8: use a smaller"):
        plan_memory(Counted(released, CallSize(704, 1280), Levers()), 8)


def test_counted_against_a_gpu(released):
    """Within 10% of what was measured on an H100: an edit of 97 frames at 480p, the VAE with Diffusers' layers."""
    with_layers_of_diffusers = replace(released, vae=Bench(RELEASED, "meta", torch.bfloat16).make_vae())
    counted = Counted(with_layers_of_diffusers, CallSize(num_frames=97), Levers())
    # The prompts that were measured were longer: 3 GB of hidden states, keys and values.
    assert counted.stages(None, 1)["decoding"] == pytest.approx(33.5e9, rel=0.1)
    assert counted.coding["decoding", 1] == pytest.approx(4.7e9, rel=0.1)


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.53), ("nf4", 0.32)])
def test_quantized_weights(kind, share, released):
    whole = count_weights(released.text_encoder, None)
    assert whole == 2 * sum(parameter.numel() for parameter in released.text_encoder.parameters())
    assert count_weights(released.text_encoder, kind) == pytest.approx(share * whole, rel=0.1)


def test_loaded(model_folder, capsys):
    """What is chosen is printed, and done."""
    size = CallSize(64, 64, 9, prompt="a cat", has_source=False)
    pipe = load_pipeline(LoomVideoPipeline, str(model_folder), device="cpu", memory=2, size=size)
    assert pipe.vae_chunk_size == 4
    assert "loomvideo: everything on the device, 4 latent frames at once in the VAE" in capsys.readouterr().err
    call = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 1, "output_type": "latent"}
    latents = pipe("a cat", **call).frames
    assert [chunk.shape[2] for chunk in pipe.decode_in_chunks(latents)] == [1, 8]
    parts = load_parts(str(model_folder), torch.float32)
    weights = sum(parameter.nbytes for parameter in pipe.transformer.parameters())
    assert count_weights(parts.transformer, None) == weights


def test_size_of_plans(tmp_path, clip):
    from loomvideo_diffusers.media import write_image, write_video

    write_video(tmp_path / "clip.mp4", clip)
    write_image(tmp_path / "image.png", clip[0])
    settings = {"height": 96, "width": 96, "window_frames": 5}
    edit = plan_edit(tmp_path / "clip.mp4", "red", tmp_path / "a.mp4", references=[tmp_path / "image.png"], **settings)
    assert size_of(edit) == CallSize(96, 96, 9, 5, 1, True, "red")
    image = plan_edit(tmp_path / "image.png", "red", tmp_path / "a.png")
    assert size_of(image) == CallSize(64, 64, 1, 121, 0, True, "red")
    assert size_of(plan_generation("a cat", tmp_path / "b.mp4")) == CallSize(480, 832, 81, 121, 0, False, "a cat")


def test_on_the_command_line(tmp_path, capsys):
    arguments = ["generate", "a red heart", "-o", str(tmp_path / "a.mp4"), "--steps", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--memory", "0.2"]) == 2
    assert "17 frames of 96 x 96 take 0.8 GB, and not 0.2: use a smaller size" in capsys.readouterr().err
    assert cli.main([*arguments, "--memory", "4", "--offload", "model"]) == 2
    assert "--memory chooses what to offload: leave out --offload, or --memory." in capsys.readouterr().err
    assert cli.main([*arguments, "--memory", "4"]) == 0
    assert "4 latent frames at once in the VAE: about 0." in capsys.readouterr().err


MEASURE = """
import re, sys
from collections import deque
from pathlib import Path

import torch
from benchmarks.gpu import RELEASED
from diffusers import AutoencoderKLWan
from loomvideo_diffusers import LoomVideoTransformer3DModel
from loomvideo_diffusers.memory import SCRATCH, count_peak
from loomvideo_diffusers.pipelines.loomvideo_vae import decode_in_chunks

def megabytes(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

def decode(vae, num_frames, side):
    device = vae.device
    deque(decode_in_chunks(vae, torch.zeros(1, 48, num_frames, side, side, device=device), 2), 0)

def step(transformer, num_frames, side):
    latents = torch.zeros(1, 16, num_frames, side, side, device=transformer.device)
    timestep = torch.zeros(1, device=latents.device)
    transformer(latents, timestep, torch.zeros(1, 4, 64, 512, device=latents.device), source_scale=timestep)

if sys.argv[1] == "vae":
    config, call, size = RELEASED.vae | {"decoder_base_dim": 64, "base_dim": 40}, decode, (5, 14)
    make = lambda: AutoencoderKLWan(**config)
else:
    config = {"num_attention_heads": 8, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16}
    config |= {"ffn_dim": 2048, "num_layers": 4, "mllm_dim": 512}
    make, call, size = lambda: LoomVideoTransformer3DModel(**config), step, (21, 56)
with torch.device("meta"):
    model = make()
counted = count_peak(lambda: call(model, *size), model) / 1e6 * (SCRATCH if sys.argv[1] == "vae" else 1)
model = make().eval()
with torch.no_grad():
    call(model, 2, 2)
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    call(model, *size)
print(counted, megabytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_counted_is_what_is_taken(part):
    """Within 10% of what a process takes at its peak."""
    command = [sys.executable, "-c", MEASURE, part]
    # What is freed is given back, so that what remains is what is there.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    counted, measured = map(float, output.split())
    print(f"{part}: {counted:.0f} MB counted, {measured:.0f} MB measured.")
    assert measured > 200
    assert counted == pytest.approx(measured, rel=0.1)
