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
"""What Diffusers offers to make a model faster or smaller, on this one."""

from pathlib import Path

import pytest
import torch
from conftest import GOLDEN
from diffusers import BitsAndBytesConfig, GGUFQuantizationConfig, TorchAoConfig
from diffusers.quantizers import PipelineQuantizationConfig
from diffusers.quantizers.gguf.utils import GGUFLinear
from torch._dynamo.utils import counters
from torchao.quantization import Int8WeightOnlyConfig

from benchmarks.levers import write_gguf
from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.nano import MODEL


@pytest.fixture
def options(clip):
    noise = torch.randn(1, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return {"prompt": "blue", "video": clip, "latents": noise, "num_inference_steps": 5, "output_type": "latent"}


@pytest.mark.parametrize("kind", ["blocks", pytest.param("whole", marks=pytest.mark.slow)])
def test_compiling(kind, edit, options):
    """No graph breaks, and nothing is compiled after the second step, by when the cache is filled."""
    expected = edit(**options).frames
    torch._dynamo.reset()
    counters.clear()
    if kind == "blocks":
        edit.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    else:
        edit.transformer.compile(fullgraph=True, backend="eager")
    num_graphs = []

    def count(pipe, step, timestep, tensors):
        num_graphs.append(counters["stats"]["unique_graphs"])
        return {}

    compiled = edit(**options, callback_on_step_end=count).frames
    assert num_graphs[0] > 0
    assert num_graphs[1:] == num_graphs[1:2] * 4
    torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=0)


def test_quantization(edit, options, model_folder):
    """Linear layers of the transformer in int8, by torchao."""
    config = PipelineQuantizationConfig(quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())})
    quantized = LoomVideoEditPipeline.from_pretrained(model_folder, quantization_config=config, dtype=torch.float32)
    quantized.set_progress_bar_config(disable=True)
    assert type(quantized.transformer.blocks[0].ffn.net[2].weight) is not torch.nn.Parameter
    assert quantized.transformer.scale_shift_table.dtype == torch.float32
    expected = edit(**options).frames
    difference = quantized(**options).frames - expected
    assert 0 < difference.abs().mean() < 0.05 * expected.abs().mean()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Path:
    """The transformer of LoomVideo-nano, with the weights of its layers in 8 bits."""
    file = tmp_path_factory.mktemp("gguf") / "loomvideo-nano-Q8_0.gguf"
    write_gguf(file)
    return file


def test_gguf(gguf_file):
    """Linear layers stay quantized, the time embedder does not; sizes are read off the tensors."""
    expected = LoomVideoTransformer3DModel.from_pretrained(MODEL, subfolder="transformer")
    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    loaded = LoomVideoTransformer3DModel.from_single_file(
        gguf_file, attention_head_dim=64, rope_max_seq_len=256, quantization_config=config
    )
    assert (loaded.config.ffn_dim, loaded.config.freq_dim) == (expected.config.ffn_dim, expected.config.freq_dim)
    assert isinstance(loaded.blocks[0].ffn.net[2], GGUFLinear)
    assert type(loaded.condition_embedder.time_embedder.linear_1) is torch.nn.Linear
    assert gguf_file.stat().st_size < 0.3 * sum(tensor.nbytes for tensor in expected.state_dict().values())
    inputs = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, 5, 192),
    }
    with torch.no_grad():
        velocity = expected(**inputs).sample
        difference = loaded(**inputs).sample - velocity
    assert 0 < difference.abs().mean() < 0.02 * velocity.abs().mean()


def test_quantization_of_a_single_file():
    config = TorchAoConfig(Int8WeightOnlyConfig())
    loaded = LoomVideoTransformer3DModel.from_single_file(
        GOLDEN / "LoomVideo" / "gen_model.pth", attention_head_dim=24, quantization_config=config
    )
    assert type(loaded.blocks[0].ffn.net[2].weight) is not torch.nn.Parameter


def test_gguf_without_config(gguf_file):
    with pytest.raises(ValueError, match="pass `quantization_config=GGUFQuantizationConfig"):
        LoomVideoTransformer3DModel.from_single_file(gguf_file, attention_head_dim=64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bitsandbytes(edit, options, model_folder):
    """Linear layers of the transformer in 4 bits, by bitsandbytes."""
    pytest.importorskip("bitsandbytes")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    config = PipelineQuantizationConfig(quant_mapping={"transformer": four_bits})
    quantized = LoomVideoEditPipeline.from_pretrained(model_folder, quantization_config=config, dtype=torch.bfloat16)
    assert type(quantized.transformer.blocks[0].ffn.net[2]) is not torch.nn.Linear
    expected = edit(**options).frames
    difference = quantized.to("cuda")(**options).frames.cpu() - expected
    assert 0 < difference.abs().mean() < 0.2 * expected.abs().mean()


def test_group_offload_to_disk(edit, options, tmp_path):
    """Blocks wait on the disk until they are needed."""
    expected = edit(**options).frames
    edit.transformer.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )
    assert len(list(tmp_path.iterdir())) >= len(edit.transformer.blocks)
    for _ in range(2):
        torch.testing.assert_close(edit(**options).frames, expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_group_offload_with_stream(edit, options):
    """Blocks are copied while the one before them runs."""
    expected = edit.to("cuda")(**options).frames
    edit.to("cpu")
    edit.transformer.enable_group_offload(
        onload_device=torch.device("cuda"), offload_type="block_level", num_blocks_per_group=1, use_stream=True
    )
    edit.text_encoder.to("cuda")
    edit.vae.to("cuda")
    torch.testing.assert_close(edit(**options).frames, expected, atol=1e-4, rtol=0)
