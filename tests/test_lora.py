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
"""LoRA adapters in both pipelines: loading, weighing, fusing, swapping, and the spellings of other trainers."""

import json

import numpy as np
import pytest
import torch
from diffusers.utils import logging
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_remote_code import run_without_package

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.pipelines.loomvideo_errors import LoomVideoInputError


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYTHING = [*ATTENTION, "net.0.proj", "net.2", "mllm_embedder.linear_1", "source_patch_embedding", "patch_embedding"]


def make_config(seed: int = 0, **options) -> LoraConfig:
    torch.manual_seed(seed)
    return LoraConfig(**({"r": 4, "lora_alpha": 4, "target_modules": ATTENTION, "init_lora_weights": False} | options))


def is_adapted(model: torch.nn.Module) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def differ(first: np.ndarray, second: np.ndarray) -> bool:
    return np.abs(first - second).max() > 1e-3


@pytest.fixture(params=["generate", "edit"])
def lora_pipe(request, pipe, clip):
    """Each pipeline, with `run` to call it for latents that depend on nothing but its weights."""
    pipe.scheduler.set_timesteps(2)
    inputs = {"prompt": "a red square", "height": 64, "width": 64, "num_frames": 5}
    if request.param == "edit":
        pipe = LoomVideoEditPipeline.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
        inputs = {"prompt": "make it red", "video": clip}

    def run(**options) -> np.ndarray:
        options = {"num_inference_steps": 2, "output_type": "latent"} | options
        return pipe(**inputs, generator=torch.Generator().manual_seed(0), **options).frames.numpy()

    pipe.run = run
    return pipe


@pytest.fixture
def saved(transformer, tmp_path):
    """The file of a LoRA, with metadata, whose weights are not zero."""
    transformer.add_adapter(make_config(target_modules=EVERYTHING, lora_alpha=8))
    LoomVideoEditPipeline.save_lora_weights(
        tmp_path / "lora",
        get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    return tmp_path / "lora" / "pytorch_lora_weights.safetensors"


@pytest.fixture
def warnings(caplog):
    """What the libraries' loggers warn of."""
    root = logging.get_logger("diffusers")
    root.addHandler(caplog.handler)
    logging.set_verbosity_warning()
    loomvideo = logging.get_logger("loomvideo_diffusers.pipelines.loomvideo_lora")
    loomvideo.addHandler(caplog.handler)
    yield caplog
    root.removeHandler(caplog.handler)
    loomvideo.removeHandler(caplog.handler)


def test_one_fused_attention_is_enough_to_refuse(lora_pipe, saved):
    lora_pipe.transformer.blocks[0].attn1.fuse_projections()
    with pytest.raises(LoomVideoInputError, match="unfuse_qkv_projections"):
        lora_pipe.load_lora_weights(saved)


def test_load_weigh_unload(lora_pipe, saved):
    before = lora_pipe.run()
    lora_pipe.load_lora_weights(saved, adapter_name="mine")
    whole = lora_pipe.run()
    assert differ(whole, before)
    assert lora_pipe.get_active_adapters() == ["mine"]
    assert lora_pipe.get_list_adapters() == {"transformer": ["mine"]}
    assert lora_pipe.transformer.peft_config["mine"].lora_alpha == 8

    half = lora_pipe.run(attention_kwargs={"scale": 0.5})
    assert differ(half, whole)
    lora_pipe.set_adapters("mine", 0.5)
    assert not differ(lora_pipe.run(), half)
    lora_pipe.set_adapters("mine")
    assert not differ(lora_pipe.run(attention_kwargs={"scale": 0.0}), before)

    lora_pipe.disable_lora()
    assert not differ(lora_pipe.run(), before)
    lora_pipe.enable_lora()
    assert not differ(lora_pipe.run(), whole)

    lora_pipe.unload_lora_weights()
    assert not is_adapted(lora_pipe.transformer)
    assert np.array_equal(lora_pipe.run(), before)
    lora_pipe.load_lora_weights(saved.parent)
    assert np.array_equal(lora_pipe.run(), whole)
    lora_pipe.delete_adapters(lora_pipe.get_active_adapters())
    assert np.array_equal(lora_pipe.run(), before)


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_fuse(lora_pipe, saved, scale):
    before = lora_pipe.run()
    lora_pipe.load_lora_weights(saved)
    expected = lora_pipe.run(attention_kwargs={"scale": scale})
    lora_pipe.fuse_lora(lora_scale=scale)
    assert lora_pipe.num_fused_loras == 1
    assert np.abs(lora_pipe.run() - expected).max() < 1e-4
    lora_pipe.unfuse_lora()
    assert lora_pipe.num_fused_loras == 0
    lora_pipe.unload_lora_weights()
    assert np.abs(lora_pipe.run() - before).max() < 1e-4


def test_several_adapters(lora_pipe):
    before = lora_pipe.run()
    outputs = {}
    for index, name in enumerate(("first", "second")):
        lora_pipe.transformer.add_adapter(make_config(index), name)
        lora_pipe.set_adapters(name)
        outputs[name] = lora_pipe.run()
    lora_pipe.set_adapters(["first", "second"])
    outputs["both"] = lora_pipe.run()
    lora_pipe.set_adapters(["first", "second"], [0.5, 0.6])
    outputs["weighed"] = lora_pipe.run()
    results = [before, *outputs.values()]
    assert all(differ(one, other) for index, one in enumerate(results) for other in results[:index])
    lora_pipe.set_adapters(["first", "second"])
    lora_pipe.fuse_lora(adapter_names=["second", "first"])
    assert lora_pipe.num_fused_loras == 2
    assert np.abs(lora_pipe.run() - outputs["both"]).max() < 1e-4
    lora_pipe.unfuse_lora()
    with pytest.raises(ValueError, match="not in the list of present adapters"):
        lora_pipe.set_adapters("third")


def test_corrupt_weights_are_not_fused(lora_pipe):
    lora_pipe.transformer.add_adapter(make_config(), "broken")
    with torch.no_grad():
        lora_pipe.transformer.blocks[0].attn1.to_q.lora_A["broken"].weight += float("inf")
    with pytest.raises(ValueError, match="NaN"):
        lora_pipe.fuse_lora(safe_fusing=True)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"rank_pattern": {"attn1.to_q": 8}}])
def test_kinds_of_adapters(lora_pipe, options, tmp_path):
    before = lora_pipe.run()
    lora_pipe.transformer.add_adapter(make_config(**options))
    expected = lora_pipe.run()
    assert differ(expected, before)
    lora_pipe.save_lora_weights(
        tmp_path,
        get_peft_model_state_dict(lora_pipe.transformer),
        transformer_lora_adapter_metadata=lora_pipe.transformer.peft_config["default"].to_dict(),
    )
    lora_pipe.unload_lora_weights()
    lora_pipe.load_lora_weights(tmp_path)
    assert np.abs(lora_pipe.run() - expected).max() < 1e-4


def test_layerwise_casting(lora_pipe, saved):
    lora_pipe.load_lora_weights(saved)
    expected = lora_pipe.run()
    lora_pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    dtypes = {
        "lora" if "lora" in name else name: module.weight.dtype
        for name, module in lora_pipe.transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert dtypes["lora"] == torch.float32
    assert dtypes["blocks.0.attn1.to_q.base_layer"] == torch.float8_e4m3fn
    assert np.corrcoef(lora_pipe.run().ravel(), expected.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("offload_type", ["leaf_level", "block_level"])
def test_group_offload(lora_pipe, saved, offload_type):
    """Adapters can come before the offloading and after it."""
    lora_pipe.load_lora_weights(saved, adapter_name="before")
    options = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    expected = lora_pipe.run()
    lora_pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type=offload_type, **options)
    assert np.array_equal(lora_pipe.run(), expected)
    lora_pipe.delete_adapters("before")
    lora_pipe.load_lora_weights(saved, adapter_name="after")
    assert np.array_equal(lora_pipe.run(), expected)


@pytest.mark.parametrize("is_fused", [False, True])
def test_saving_a_pipeline_with_an_adapter(is_fused, pipe, saved, tmp_path, caplog):
    """What was fused is part of the weights, and the rest is not saved, which is said."""
    before = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    pipe.load_lora_weights(saved)
    if is_fused:
        pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "model")
    assert ("Adapters that are not fused are not saved" in caplog.text) != is_fused
    weights = LoomVideoTransformer3DModel.from_pretrained(tmp_path / "model", subfolder="transformer").state_dict()
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in before) != is_fused
    assert pipe.get_list_adapters() == {"transformer": ["default_0"]}


def test_hotswap(pipe, saved, tmp_path):
    """A compiled transformer takes over another adapter, of another rank, without being compiled again."""
    transformer = pipe.transformer
    inputs = {
        "hidden_states": torch.randn(1, 8, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 4, 7, transformer.config.mllm_dim),
        "source_scale": torch.tensor([0.5]),
    }
    transformer.add_adapter(make_config(1, r=8, lora_alpha=2, target_modules=["to_q", "to_k"]))
    pipe.save_lora_weights(tmp_path / "first", get_peft_model_state_dict(transformer))
    pipe.unload_lora_weights()
    transformer.add_adapter(make_config(2, r=4, target_modules=["to_q", "to_k"]))
    pipe.save_lora_weights(tmp_path / "second", get_peft_model_state_dict(transformer))
    with torch.no_grad():
        second = transformer(**inputs).sample
        pipe.unload_lora_weights()
        pipe.enable_lora_hotswap(target_rank=8)
        pipe.load_lora_weights(tmp_path / "first", adapter_name="slot")
        transformer.compile_repeated_blocks(fullgraph=True)
        transformer(**inputs)
        with torch._dynamo.config.patch(error_on_recompile=True):
            pipe.load_lora_weights(tmp_path / "second", adapter_name="slot", hotswap=True)
            swapped = transformer(**inputs).sample
    torch._dynamo.reset()
    assert (swapped - second).abs().max() < 1e-4


# Spellings


def wan_lora() -> dict[str, torch.Tensor]:
    """A LoRA of alpha 2 and rank 4 by the names of diffusers, for layers that Wan and LoomVideo both have."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"ffn.net.0.proj": (80, 48), "ffn.net.2": (48, 80)}
    layers = {f"blocks.{block}.{layer}": shape for block in range(4) for layer, shape in shapes.items()}
    layers |= {f"blocks.{block}.attn{n}.{to}": (48, 48) for block in range(4) for n in (1, 2) for to in ATTENTION}
    layers |= {"condition_embedder.time_proj": (6 * 48, 48), "condition_embedder.time_embedder.linear_2": (48, 48)}
    tensors = {}
    for layer, (rows, columns) in layers.items():
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(4, columns, generator=generator)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(rows, 4, generator=generator)
    return tensors


TEXT_LAYER = "condition_embedder.text_embedder.linear_1"

ORIGINAL_NAMES = {
    "attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o",
    "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2", "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2", TEXT_LAYER: "text_embedding.0",
    "transformer.": "",
}  # fmt: skip


def original_name(name: str) -> str:
    for ours, theirs in ORIGINAL_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def respell(tensors: dict[str, torch.Tensor], spelling: str) -> dict[str, torch.Tensor]:
    respelled = {}
    for name, tensor in tensors.items():
        layer, part = name.split(".lora_")
        if spelling == "diffusers":
            respelled[name] = tensor * 0.5 if part == "B.weight" else tensor
            continue
        layer = original_name(layer)
        if spelling == "original":
            respelled[f"diffusion_model.{layer}.lora_{part}"] = tensor
            respelled[f"diffusion_model.{layer}.alpha"] = torch.tensor(2.0)
        else:
            layer = layer.replace(".", "_")
            part = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[part]
            respelled[f"lora_unet_{layer}.{part}"] = tensor
            respelled[f"lora_unet_{layer}.alpha"] = torch.tensor(2.0)
    return respelled


@pytest.mark.parametrize("spelling", ["diffusers", "original", "musubi"])
def test_spellings(lora_pipe, spelling, tmp_path, warnings):
    """Each gives what the same weights merged by hand give, and says which layers LoomVideo does not have."""
    tensors = wan_lora()
    foreign = {f"transformer.{TEXT_LAYER}.lora_{part}.weight": torch.ones(4, 4) for part in "AB"}
    respelled = respell(tensors | foreign, spelling)
    if spelling == "original":
        respelled["diffusion_model.blocks.0.norm3.diff"] = torch.ones(48)
    save_file(respelled, tmp_path / "lora.safetensors")

    before = {name: parameter.clone() for name, parameter in lora_pipe.transformer.named_parameters()}
    lora_pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors", allow_partial=spelling == "original")
    message = warnings.text
    actual = lora_pipe.run()
    assert {"diffusers": TEXT_LAYER, "original": "text_embedding.0", "musubi": "text_embedding_0"}[spelling] in message
    assert ("diffusion_model.blocks.0.norm3.diff" in message) == (spelling == "original")
    lora_pipe.unload_lora_weights()
    with torch.no_grad():
        for name, parameter in lora_pipe.transformer.named_parameters():
            layer = f"transformer.{name.removesuffix('.weight')}"
            if f"{layer}.lora_A.weight" in tensors:
                difference = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
                parameter.copy_(before[name] + 0.5 * difference)
    assert np.abs(actual - lora_pipe.run()).max() < 1e-3 * np.abs(actual).max()


# Files


def test_metadata(lora_pipe, saved):
    state_dict, metadata = lora_pipe.lora_state_dict(saved.parent, return_lora_metadata=True)
    assert metadata["transformer.lora_alpha"] == 8
    assert sorted(metadata["transformer.target_modules"]) == sorted(EVERYTHING)
    assert any("mllm_embedder.linear_1" in name for name in state_dict)
    assert any("source_patch_embedding" in name for name in state_dict)
    with safe_open(saved, "pt") as file:
        assert json.loads(file.metadata()["lora_adapter_metadata"])["transformer.r"] == 4


def test_pickled_files_have_to_be_named(lora_pipe, saved, tmp_path):
    lora_pipe.save_lora_weights(
        tmp_path / "pickled",
        {name.removeprefix("transformer."): tensor for name, tensor in load_file(saved).items()},
        safe_serialization=False,
    )
    with pytest.raises(ValueError, match=r"name its pytorch_lora_weights\.bin"):
        lora_pipe.load_lora_weights(tmp_path / "pickled")
    lora_pipe.load_lora_weights(tmp_path / "pickled" / "pytorch_lora_weights.bin")
    assert is_adapted(lora_pipe.transformer)

    class Evil:
        def __reduce__(self):
            return print, ("code of the file ran",)

    torch.save({"transformer.lora": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(ValueError, match=r"evil\.bin cannot be read"):
        lora_pipe.load_lora_weights(tmp_path / "evil.bin")


@pytest.mark.slow
def test_remote_code(edit, model_folder, saved, clip, tmp_path):
    """A folder's own code loads LoRAs too."""
    latents = np.random.default_rng(0).standard_normal((1, 8, 3, 4, 4), dtype=np.float32)
    edit.load_lora_weights(saved)
    call = {"prompt": "make it blue", "video": clip, "num_inference_steps": 3}
    expected = edit(**call, latents=torch.from_numpy(latents)).frames
    frames, _, _ = run_without_package(model_folder, {"video": clip, "latents": latents}, tmp_path, lora=saved)
    assert np.abs(frames - expected).max() < 1e-5


def test_the_model_alone(transformer, saved):
    transformer.load_lora_adapter(load_file(saved), prefix="transformer")
    assert is_adapted(transformer)
    assert type(transformer) is LoomVideoTransformer3DModel
