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
"""The transformer as a model of diffusers. What it computes is tested in test_golden.py."""

import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN, transformer_inputs
from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.utils import is_xformers_available
from peft import LoraConfig
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounter

from loomvideo_diffusers import LoomVideoTransformer3DModel
from loomvideo_diffusers.models import transformer_loomvideo
from loomvideo_diffusers.models.transformer_loomvideo import LoomVideoRotaryPosEmbed


CHECKPOINT = GOLDEN / "LoomVideo" / "gen_model.pth"
WAN_TRANSFORMER = GOLDEN / "Wan2.2-TI2V" / "transformer"


@torch.no_grad()
def run(transformer, **inputs) -> torch.Tensor:
    return transformer(**inputs, return_dict=False)[0]


def sizes(transformer) -> dict:
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    return config | {"patch_size": list(config["patch_size"])}


def assert_equal_weights(loaded, transformer):
    weights = transformer.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


def in_half_precision(value, name=None):
    if isinstance(value, dict):
        return {key: in_half_precision(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [in_half_precision(item) for item in value]
    return value if name in ("timestep", "source_scale") else value.bfloat16()


def padded(inputs, num_tokens: int):
    """The same inputs with meaningless tokens at the end of the prompt, masked out."""
    embeds = inputs["encoder_hidden_states"]
    mask = torch.ones(len(embeds), embeds.shape[2] + num_tokens, dtype=torch.bool)
    mask[:, embeds.shape[2] :] = False
    noise = torch.full((*embeds.shape[:2], num_tokens, embeds.shape[3]), 7.0)
    return inputs | {"encoder_hidden_states": torch.cat([embeds, noise], dim=2), "encoder_attention_mask": mask}


@pytest.fixture
def inputs():
    return transformer_inputs("transformer_ref_edit")


@pytest.fixture(autouse=True)
def native_backend():
    """Setting a model's backend in diffusers sets that of the process too."""
    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def test_batch_equals_single_samples(transformer):
    first, second = transformer_inputs("transformer_edit"), transformer_inputs("transformer_t2v")
    second["encoder_hidden_states"] = second["encoder_hidden_states"][:, :, :5]
    expected = torch.cat([run(transformer, **first), run(transformer, **second)])

    short = padded(second, 4)
    mask = torch.cat([torch.ones_like(short["encoder_attention_mask"]), short["encoder_attention_mask"]])
    batch = {
        # The second sample has no source: its row is zero.
        name: torch.cat([first[name], short[name]])
        for name in first
        if name != "reference_hidden_states"
    }
    assert batch["source_hidden_states"][0].any()
    assert not batch["source_hidden_states"][1].any()
    actual = run(transformer, **batch, encoder_attention_mask=mask)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_no_source_is_a_source_of_zeros(transformer):
    inputs = transformer_inputs("transformer_t2v")
    expected = run(transformer, **inputs)
    inputs["source_hidden_states"] = None
    torch.testing.assert_close(run(transformer, **inputs), expected, atol=1e-6, rtol=0)
    inputs["source_scale"] = None
    assert (run(transformer, **inputs) - expected).abs().max() > 1e-3


def test_errors(transformer, inputs):
    with pytest.raises(ValueError, match="one MLLM layer for each block"):
        run(transformer, **(inputs | {"encoder_hidden_states": inputs["encoder_hidden_states"][:, 1:]}))
    with pytest.raises(ValueError, match="needs a `source_scale`"):
        run(transformer, **(inputs | {"source_scale": None}))
    assert (
        run(transformer, **(inputs | {"reference_hidden_states": inputs["reference_hidden_states"] * 7}))
        .isfinite()
        .all()
    )
    with pytest.raises(ValueError, match="A grid of 2 x 66 patches has more rotary positions"):
        run(transformer, **(inputs | {"reference_hidden_states": [torch.zeros(1, 8, 1, 4, 132)]}))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_every_parameter_learns(gradient_checkpointing, transformer, inputs):
    if gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
        calls = []
        transformer._gradient_checkpointing_func, checkpoint = (
            lambda function, *arguments: calls.append(function) or checkpoint(function, *arguments),
            transformer._gradient_checkpointing_func,
        )
    transformer.train()
    transformer(**inputs).sample.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in transformer.parameters())
    if gradient_checkpointing:
        assert len(calls) == 2 * len(transformer.blocks)


@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
def test_attention_backends(backend, transformer, inputs):
    expected = run(transformer, **inputs)
    transformer.set_attention_backend(backend)
    torch.testing.assert_close(run(transformer, **inputs), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(run(transformer, **padded(inputs, 5)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("side", ["left", "right", "within"])
@pytest.mark.parametrize("backend", ["native", "flex"])
def test_prompts_of_unequal_length(backend, side, has_cache, transformer, monkeypatch):
    """They give in one batch what they give alone, wherever the padding is; not all kernels see a mask."""
    long = {name: value for name, value in transformer_inputs("transformer_edit").items() if torch.is_tensor(value)}
    prompt = long["encoder_hidden_states"][:1]
    long = {name: value[:1] for name, value in long.items()}
    short = long | {"encoder_hidden_states": prompt[:, :, :5] + 1}
    num_tokens = prompt.shape[2]
    of_sides = {"left": range(num_tokens - 5, num_tokens), "right": range(5), "within": range(num_tokens)[-9::2]}
    places = list(of_sides[side])
    padded_prompt = torch.full_like(prompt, 1e4)
    padded_prompt[:, :, places] = short["encoder_hidden_states"]
    mask = torch.ones(2, num_tokens, dtype=torch.bool)
    mask[1] = False
    mask[1, places] = True
    batch = {name: torch.cat([value, value]) for name, value in long.items()}
    batch |= {"encoder_hidden_states": torch.cat([prompt, padded_prompt]), "encoder_attention_mask": mask}
    expected = [run(transformer, **inputs) for inputs in (long, short)]
    transformer.set_attention_backend(backend)
    dispatch, masks = transformer_loomvideo.dispatch_attention_fn, []

    def record(*arguments, attn_mask=None, **options):
        masks.append(attn_mask)
        return dispatch(*arguments, attn_mask=attn_mask, **options)

    monkeypatch.setattr(transformer_loomvideo, "dispatch_attention_fn", record)
    kv_cache = transformer.create_kv_cache() if has_cache else None
    for _ in range(2):
        torch.testing.assert_close(
            run(transformer, **batch, kv_cache=kv_cache), torch.cat(expected), atol=1e-5, rtol=0
        )
    masks = [mask for mask in masks if mask is not None]
    assert len(masks) == (2 * len(transformer.blocks) if backend == "native" else 0)


def test_batches_compile_once(transformer, inputs):
    """Neither the number of samples nor the lengths of their prompts make a block compile anew."""
    counter = CompileCounter()
    transformer.compile_repeated_blocks(backend=counter, dynamic=True)
    with torch.no_grad():
        for lengths in ((3, 5), (4, 5, 2), (5, 1, 3, 4), (2, 2)):
            batch = {
                "hidden_states": torch.randn(len(lengths), 8, 2, 4, 4),
                "timestep": torch.full((len(lengths),), 500.0),
                "encoder_hidden_states": inputs["encoder_hidden_states"][:1, :, :6].expand(len(lengths), -1, -1, -1),
                "encoder_attention_mask": torch.arange(6) < torch.tensor(lengths)[:, None],
            }
            transformer(**batch)
    assert counter.frame_count == 1


@pytest.mark.skipif(is_xformers_available(), reason="xformers is installed")
def test_missing_xformers_is_said(transformer):
    with pytest.raises(RuntimeError, match=r"install `xformers"):
        transformer.set_attention_backend("xformers")


@pytest.mark.skipif(
    not (is_xformers_available() and torch.cuda.is_available()), reason="needs xformers and a CUDA device"
)
def test_xformers(transformer, inputs):
    inputs = {
        name: [item.cuda() for item in value] if isinstance(value, list) else value.cuda()
        for name, value in inputs.items()
    }
    transformer.cuda()
    expected = run(transformer, **inputs)
    transformer.set_attention_backend("xformers")
    torch.testing.assert_close(run(transformer, **inputs), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(run(transformer, **padded(inputs, 5)), expected, atol=1e-4, rtol=0)


def test_fused_projections(transformer, inputs):
    expected = run(transformer, **inputs)
    transformer.fuse_qkv_projections()
    assert transformer.blocks[0].attn1.fused_projections
    torch.testing.assert_close(run(transformer, **inputs), expected, atol=1e-5, rtol=0)
    transformer.unfuse_qkv_projections()
    torch.testing.assert_close(run(transformer, **inputs), expected, atol=1e-5, rtol=0)


def test_compile(transformer, inputs):
    expected = run(transformer, **inputs)
    transformer.compile_repeated_blocks(fullgraph=True)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(run(transformer, **inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_compile_whole(transformer, inputs):
    expected = run(transformer, **inputs)
    torch._dynamo.reset()
    compiled = torch.compile(transformer, fullgraph=True)
    torch.testing.assert_close(run(compiled, **inputs), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(run(compiled, **padded(inputs, 5)), expected, atol=1e-5, rtol=0)


def test_save_and_load(transformer, inputs, tmp_path):
    transformer.save_pretrained(tmp_path)
    loaded = LoomVideoTransformer3DModel.from_pretrained(tmp_path)
    assert sizes(loaded) == sizes(transformer)
    assert torch.equal(run(loaded, **inputs), run(transformer, **inputs))


def test_half_precision(transformer, inputs, model_folder):
    expected = run(transformer, **inputs)
    half = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    kept = {
        name.split(".")[-2] if "norm" in name else name
        for name, p in half.named_parameters()
        if p.dtype == torch.float32
    }
    assert {"scale_shift_table", "blocks.0.scale_shift_table", "norm2"} <= kept
    assert half.patch_embedding.weight.dtype == half.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16

    output = run(half, **in_half_precision(inputs))
    assert output.dtype == torch.bfloat16
    assert (output - expected).abs().mean() < 0.01 * expected.abs().mean()

    half.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert half.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    assert half.source_patch_embedding.weight.dtype == torch.bfloat16
    output = run(half, **in_half_precision(inputs))
    assert (output - expected).abs().mean() < 0.1 * expected.abs().mean()

    # All of it, the parts that are better kept in float32 too
    cast = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer").to(torch.bfloat16)
    output = run(cast, **in_half_precision(inputs))
    assert (output - expected).abs().mean() < 0.01 * expected.abs().mean()


def test_caches(transformer, inputs):
    expected = run(transformer, **inputs)
    transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with transformer.cache_context("cond"):
        torch.testing.assert_close(run(transformer, **inputs), expected, atol=1e-5, rtol=0)
        # Whatever comes next is close enough for this threshold: the blocks after the first do not run.
        ran = []
        transformer.blocks[2].attn1.register_forward_hook(lambda *_: ran.append(True))
        run(transformer, **inputs)
        assert not ran
    transformer.disable_cache()

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        spatial_attention_block_identifiers=["blocks"],
        current_timestep_callback=lambda: 500,
    )
    transformer.enable_cache(config)
    torch.testing.assert_close(run(transformer, **inputs), expected, atol=1e-5, rtol=0)


def test_lora(transformer, inputs):
    expected = run(transformer, **inputs)
    targets = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ffn.net.0.proj",
        "mllm_embedder.linear_1",
        "source_patch_embedding",
    ]
    transformer.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    full = run(transformer, **inputs)
    half = run(transformer, **inputs, attention_kwargs={"scale": 0.5})
    none = run(transformer, **inputs, attention_kwargs={"scale": 0.0})
    assert (full - expected).abs().max() > 1e-2
    assert (half - expected).abs().max() > 1e-2
    assert (half - full).abs().max() > 1e-2
    torch.testing.assert_close(none, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(run(transformer, **inputs), full, atol=1e-6, rtol=0)


def test_single_file(transformer, inputs, tmp_path):
    expected = run(transformer, **inputs)
    loads = [
        {"config": WAN_TRANSFORMER},
        {"config": WAN_TRANSFORMER.parent, "subfolder": "transformer"},
        {"num_attention_heads": 2, "attention_head_dim": 24, "rope_max_seq_len": 64},
    ]
    for options in loads:
        loaded = LoomVideoTransformer3DModel.from_single_file(CHECKPOINT, **options)
        assert sizes(loaded) == sizes(transformer)
        assert_equal_weights(loaded, transformer)
        # Products of matrices round as their weights lie in memory.
        torch.testing.assert_close(run(loaded, **inputs), expected, atol=1e-5, rtol=0)

    save_file(transformer.state_dict(), tmp_path / "model.safetensors")
    loaded = LoomVideoTransformer3DModel.from_single_file(str(tmp_path / "model.safetensors"), attention_head_dim=24)
    assert_equal_weights(loaded, transformer)

    for name in ("dtype", "torch_dtype"):
        half = LoomVideoTransformer3DModel.from_single_file(
            CHECKPOINT, config=WAN_TRANSFORMER, **{name: torch.bfloat16}
        )
        assert half.dtype == torch.bfloat16
    assert half.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert half.blocks[0].scale_shift_table.dtype == torch.float32


def test_rotary_angles_are_made_where_the_tokens_are(transformer):
    cos, sin, is_reference = transformer.rope((2, 3, 4), [(1, 2)], torch.device("meta"))
    assert cos.device.type == sin.device.type == is_reference.device.type == "meta"
    assert cos.shape == sin.shape == (1, 2 * 3 * 4 + 1 * 2, 1, 12)


def test_rotary_angles_are_exact():
    """Positions far from 0 need more digits than float32 has."""
    cos, sin, _ = LoomVideoRotaryPosEmbed(24, 2048)((2000, 1, 1), [], torch.device("cpu"))
    channels = np.arange(4)  # of time; the other 2 x 4 are of rows and columns
    angles = np.arange(2000)[:, None] / 10000.0 ** (2 * channels / 8)
    assert np.abs(cos[0, :, 0, :4].numpy() - np.cos(angles)).max() < 1e-6
    assert np.abs(sin[0, :, 0, :4].numpy() - np.sin(angles)).max() < 1e-6
    assert (cos[0, :, 0, 4:] == 1).all()


def test_single_file_errors(tmp_path):
    state = torch.load(CHECKPOINT, weights_only=True)
    with pytest.raises(ValueError, match="pass the `config`"):
        LoomVideoTransformer3DModel.from_single_file(CHECKPOINT, num_attention_heads=3, attention_head_dim=24)
    with pytest.raises(ValueError, match=r"no tensor 'patch_embedding.weight'"):
        LoomVideoTransformer3DModel.from_single_file({"something": torch.zeros(1), "epoch": 3})
    with pytest.raises(ValueError, match=r"1 tensors .* the first is proj_out.bias"):
        LoomVideoTransformer3DModel.from_single_file(
            {name: tensor for name, tensor in state.items() if name != "proj_out.bias"}, config=WAN_TRANSFORMER
        )


@pytest.mark.parametrize(
    ("name", "call", "sentence"),
    [
        (
            "hooks._helpers.TransformerBlockRegistry",
            lambda model: model.enable_cache(FirstBlockCacheConfig()),
            "no step caches that are known here: go without `enable_cache`, or install diffusers 0.42",
        ),
        (
            "loaders.single_file_utils.load_single_file_checkpoint",
            lambda model: model.from_single_file(CHECKPOINT),
            "no loader of single files that is known here: load a model folder with `from_pretrained`, or install",
        ),
        (
            "models._modeling_parallel.ContextParallelInput",
            lambda model: model._cp_plan,
            r"no known context parallelism \(.*\): pass a `cp_plan`, or install diffusers 0.42",
        ),
    ],
)
def test_other_versions_of_diffusers(name, call, sentence, transformer, monkeypatch):
    """What they lack is said in a sentence by the feature that needs it; all else works."""
    monkeypatch.delattr(f"diffusers.{name}")
    with pytest.raises(ImportError, match=f"^This diffusers has {sentence}"):
        call(transformer)


def test_device_map(transformer, inputs, model_folder, tmp_path):
    """Blocks beyond the memory that is given wait on the disk, none of them in two places; numbers are the same."""
    nbytes = sum(parameter.nbytes for parameter in transformer.parameters())
    sizes = [sum(parameter.nbytes for parameter in block.parameters()) for block in transformer.blocks]
    loaded = LoomVideoTransformer3DModel.from_pretrained(
        model_folder,
        subfolder="transformer",
        device_map="auto",
        max_memory={"cpu": nbytes - sizes[-1] - sizes[-2] // 2},
        offload_folder=tmp_path,
    )
    places = loaded.hf_device_map
    assert set(places.values()) == {"cpu", "disk"}
    assert not [name for name in places if name.startswith("blocks.") and name.count(".") > 1]
    assert any(parameter.is_meta for parameter in loaded.parameters())
    expected, kept = run(transformer, **inputs), loaded.create_kv_cache()
    for _ in range(2):
        torch.testing.assert_close(run(loaded, **inputs, kv_cache=kept), expected, atol=1e-5, rtol=0)
    assert kept.nbytes > 0
    assert kept.tokens.nbytes > 0


def test_group_offload_fills_the_cache(transformer, inputs):
    """Hooks that move inputs pass on the cache that was given, not a copy, so that nothing is computed twice."""
    expected, kept = run(transformer, **inputs), transformer.create_kv_cache()
    transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(run(transformer, **inputs, kv_cache=kept), expected)
    assert min(kept.nbytes, kept.tokens.nbytes) > 0
    transformer.mllm_embedder.register_forward_pre_hook(lambda *_: pytest.fail("What was kept is computed again."))
    assert torch.equal(run(transformer, **inputs, kv_cache=kept), expected)


def test_released_tensors():
    """The defaults are the released model: every name and shape of its file, but for the text projection."""
    released = json.loads((GOLDEN / "gen_model_5b_tensors.json").read_text())
    with torch.device("meta"):
        transformer = LoomVideoTransformer3DModel()
    shapes = {name: list(tensor.shape) for name, tensor in transformer.state_dict().items()}
    unused = {name for name in released["tensors"] if name.startswith("condition_embedder.text_embedder")}
    assert len(unused) == 4
    assert shapes == {name: shape for name, shape in released["tensors"].items() if name not in unused}
    num_parameters = sum(parameter.numel() for parameter in transformer.parameters())
    assert num_parameters == released["total_parameters"] - released["text_embedder_parameters"] == 5_066_454_208


def test_context_parallel_splits_modules_that_exist(transformer):
    assert [type(transformer.get_submodule(name)).__name__ for name in transformer._cp_plan] == [
        "LoomVideoRotaryPosEmbed", "LoomVideoTransformerBlock", "Linear",
    ]  # fmt: skip
