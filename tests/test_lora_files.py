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
"""Files of LoRAs as trainers write them or as they should not be: each changes the weights as it says, or nothing."""

import json
import shutil
from pathlib import Path
from random import Random

import pytest
import torch
from diffusers.utils import logging, peft_utils
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from loomvideo_diffusers import LoomVideoPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.cli import main
from loomvideo_diffusers.pipelines.loomvideo_lora_weights import parse_lora_name


# Layers of the miniature, each with its name in Wan's code and the shape of its weights
LAYERS = {
    "blocks.0.attn1.to_q": ("blocks.0.self_attn.q", (48, 48)),
    "blocks.1.attn2.to_out.0": ("blocks.1.cross_attn.o", (48, 48)),
    "blocks.2.ffn.net.0.proj": ("blocks.2.ffn.0", (80, 48)),
    "blocks.3.ffn.net.2": ("blocks.3.ffn.2", (48, 80)),
    "condition_embedder.time_proj": ("time_projection.1", (288, 48)),
    "condition_embedder.time_embedder.linear_2": ("time_embedding.2", (48, 48)),
}
SQUARE = "blocks.0.attn1.to_q"
RANK, ALPHA = 4, 6.0
TEXT = "condition_embedder.text_embedder.linear_1"
HAS_LOKR = hasattr(peft_utils, "_create_lokr_config")
needs_lokr = pytest.mark.skipif(not HAS_LOKR, reason="Diffusers reads a LoKr from 0.42 on")


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of all layers, by their names without an adapter."""
    return {
        name.replace(".base_layer", ""): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if not any(part in name for part in ("lora_", "lokr_"))
    }


@pytest.fixture(scope="module")
def shared_pipe(model_folder):
    return LoomVideoPipeline.from_pretrained(model_folder)


@pytest.fixture
def pipe(shared_pipe):
    """A pipeline whose transformer has no adapter. Its `loaded_weights` are those before the test."""
    shared_pipe.loaded_weights = weights_of(shared_pipe.transformer)
    yield shared_pipe
    if shared_pipe.num_fused_loras:
        shared_pipe.unfuse_lora()
    shared_pipe.unload_lora_weights()
    with torch.no_grad():
        for name, parameter in shared_pipe.transformer.named_parameters():
            parameter.copy_(shared_pipe.loaded_weights[name])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(layers: dict = LAYERS, rank: int = RANK) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The halves A and B of each layer."""
    return {
        layer: (random(rank, shape[1], seed=number), random(shape[0], rank, seed=-number - 1))
        for number, (layer, (_, shape)) in enumerate(layers.items())
    }


def spell(name_of, a="lora_A.weight", b="lora_B.weight", alpha="") -> dict[str, torch.Tensor]:
    """A LoRA whose tensors are called LAYER and what is given, LAYER being what `name_of` makes of both its names."""
    tensors = {}
    for layer, (first, second) in lora().items():
        name = name_of(layer, LAYERS[layer][0])
        tensors |= {f"{name}{a}": first, f"{name}{b}": second}
        if alpha:
            tensors[f"{name}{alpha}"] = torch.tensor(ALPHA)
    return tensors


def only(tensors: dict[str, torch.Tensor], layer: str = SQUARE) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(f"transformer.{layer}.")}


def plain() -> dict[str, torch.Tensor]:
    return spell(lambda ours, wans: f"transformer.{ours}.")


def without(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {other: tensor for other, tensor in tensors.items() if other != name}


def check_differences(pipe: LoomVideoPipeline, expected: dict[str, torch.Tensor], adapter: str | None = None) -> None:
    """Fuses the adapter and compares what it changed: all that is not expected stays as it was."""
    pipe.fuse_lora(adapter_names=None if adapter is None else [adapter])
    fused = weights_of(pipe.transformer)
    pipe.unfuse_lora()
    assert set(fused) == set(pipe.loaded_weights)
    for name, before in pipe.loaded_weights.items():
        difference = expected.get(name, torch.zeros(()))
        assert torch.allclose(fused[name], before + difference, atol=1e-6, rtol=1e-6), name
    assert set(expected) <= set(fused)


def check_untouched(pipe: LoomVideoPipeline) -> None:
    assert not any(isinstance(module, BaseTunerLayer) for module in pipe.transformer.modules())
    assert not getattr(pipe.transformer, "peft_config", {})
    weights = weights_of(pipe.transformer)
    assert all(torch.equal(weights[name], before) for name, before in pipe.loaded_weights.items())


SPELLINGS = {
    "diffusers": spell(lambda ours, wans: f"transformer.{ours}."),
    "bare": spell(lambda ours, wans: f"{ours}."),
    "peft": spell(lambda ours, wans: f"base_model.model.{ours}."),
    "wan": spell(lambda ours, wans: f"diffusion_model.{wans}.", alpha="alpha"),
    "comfy": spell(lambda ours, wans: f"model.diffusion_model.{wans}.", "lora_down.weight", "lora_up.weight", "alpha"),
    "musubi": spell(
        lambda ours, wans: f"lora_unet_{wans.replace('.', '_')}.", "lora_down.weight", "lora_up.weight", "alpha"
    ),
    "lycoris": spell(
        lambda ours, wans: f"lycoris_{wans.replace('.', '_')}.", "lora_down.weight", "lora_up.weight", "alpha"
    ),
    "onetrainer": spell(
        lambda ours, wans: f"lora_transformer_{ours.replace('.', '_')}.", "lora_down.weight", "lora_up.weight", "alpha"
    ),
    "onetrainer's dots": spell(
        lambda ours, wans: f"transformer.{ours}.", "lora_down.weight", "lora_up.weight", "alpha"
    ),
    "unet": spell(lambda ours, wans: f"unet.{ours}.", "lora.down.weight", "lora.up.weight"),
    "old diffusers": spell(
        lambda ours, wans: f"unet.{ours}.", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"
    ),
    "processors": spell(
        lambda ours, wans: "transformer." + ours.replace("to_out.0", "to_out").replace(".to_", ".processor.to_"),
        "_lora.down.weight",
        "_lora.up.weight",
    ),
    "studio": spell(lambda ours, wans: f"pipe.dit.{wans}.", "lora_A.default.weight", "lora_B.default.weight"),
    "named": spell(lambda ours, wans: f"transformer.{ours}.", "lora_A.mylora.weight", "lora_B.mylora.weight"),
    "parameters": spell(lambda ours, wans: f"transformer.{ours}.", "lora_A", "lora_B"),
    "named parameters": spell(lambda ours, wans: f"{wans}.", "lora_A.my-lora_2", "lora_B.my-lora_2"),
    "small": spell(lambda ours, wans: f"dit.{wans}.", "lora_a.weight", "lora_b.weight", "lora_alpha"),
    "mixed": spell(lambda ours, wans: f"anything.at.all.{ours}.", "lora_A.weight", "lora_B.weight", "alpha"),
    "trainer's underscores": spell(
        lambda ours, wans: f"lora_mine_{wans.replace('.', '_')}", "_lora_down.weight", "_lora_up.weight", "_alpha"
    ),
    "compiled": spell(lambda ours, wans: f"_orig_mod.{ours.replace('.attn', '._orig_mod.attn')}."),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(pipe, spelling, tmp_path):
    """Each layer's weights change by alpha / rank * B @ A, and no other's."""
    tensors = SPELLINGS[spelling]
    scale = ALPHA / RANK if any(name.endswith("alpha") for name in tensors) else 1.0
    save_file(tensors, tmp_path / "mine.safetensors")
    pipe.load_lora_weights(tmp_path / "mine.safetensors", adapter_name="mine")
    check_differences(pipe, {f"{layer}.weight": scale * b @ a for layer, (a, b) in lora().items()})


@pytest.mark.parametrize(
    "name",
    [
        "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "transformer.single_transformer_blocks.0.proj_out.lora_A.weight",
        "diffusion_model.double_blocks.0.attn1.to_q.lora_A.weight",
        "diffusion_model.vace_blocks.0.self_attn.q.lora_A.weight",
        "lora_unet_vace_blocks_0_self_attn_q.lora_down.weight",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "transformer_2.blocks.0.attn1.to_q.lora_A.weight",
        "text_encoder.blocks.0.attn1.to_q.lora_A.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "controlnet.blocks.0.attn1.to_q.lora_A.weight",
        "blocks.0.attn1.to_q.lora_A.weight.cat",
        "blocks.0.attn1.to_qq.lora_A.weight",
        "blocks.0.attn1.to_q.lora_mid.weight",
        "blocks.0.attn1.to_q.weight",
        "context_proj_out.lora_A.weight",
        "proj_out.0.lora_A.weight",
        "norm_out.linear.lora_A.weight",
    ],
)
def test_names_of_other_models(name):
    assert parse_lora_name(name) is None


@pytest.mark.parametrize("before", ["lora_unet_", "lora_", "lora_my_own_", "lycoris_my_own_", "my_own."])
def test_what_stands_before_the_name_of_a_layer(before):
    parsed = ("condition_embedder.time_proj", "lora_A", "time_projection_1")
    assert parse_lora_name(f"{before}time_projection_1.lora_down.weight") == parsed


# Kinds of adapters


def test_convolutions(pipe):
    """The patches' embeddings are convolutions: as PEFT has them, as matrices, and as whole differences."""
    kernel = pipe.transformer.patch_embedding.kernel_size
    shape = pipe.transformer.patch_embedding.weight.shape
    down, up = random(RANK, *shape[1:]), random(shape[0], RANK)
    size = shape[1:].numel()
    tensors = {
        "lora_unet_patch_embedding.lora_down.weight": down,
        "lora_unet_patch_embedding.lora_up.weight": up.reshape(shape[0], RANK, 1, 1, 1),
        "lora_unet_patch_embedding.alpha": torch.tensor(2.0),
        "transformer.source_patch_embedding.lora_A.weight": down.reshape(RANK, size),
        "transformer.source_patch_embedding.lora_B.weight": up,
    }
    pipe.load_lora_weights(tensors)
    difference = torch.einsum("or,rithw->oithw", up, down)
    expected = {"patch_embedding.weight": 0.5 * difference, "source_patch_embedding.weight": difference}
    check_differences(pipe, expected)
    pipe.unload_lora_weights()
    assert len(kernel) == 3
    pipe.load_lora_weights({"diffusion_model.patch_embedding.diff": difference})
    check_differences(pipe, {"patch_embedding.weight": difference})


def test_whole_differences(pipe):
    """Of weights and of biases; what is zero changes nothing, whatever it is of."""
    wide, high, square = random(48, 80), random(80, 48), random(48, 48)
    bias = random(48)
    (a, b) = lora()[SQUARE]
    tensors = {
        "diffusion_model.blocks.0.norm2.diff": torch.zeros(48),
        "diffusion_model.blocks.3.ffn.2.diff": wide,
        "diffusion_model.blocks.2.ffn.0.diff": high,
        "diffusion_model.blocks.3.cross_attn.v.diff": square,
        "diffusion_model.blocks.0.self_attn.q.lora_down.weight": a,
        "diffusion_model.blocks.0.self_attn.q.lora_up.weight": b,
        "diffusion_model.blocks.0.self_attn.q.alpha": torch.tensor(ALPHA),
        "diffusion_model.blocks.0.self_attn.q.diff_b": bias,
        "diffusion_model.blocks.1.self_attn.k.diff_b": bias,
        "diffusion_model.blocks.0.norm3.diff": torch.zeros(48),
        "diffusion_model.blocks.0.norm3.diff_b": torch.zeros(48),
    }
    pipe.load_lora_weights(tensors)
    expected = {
        "blocks.3.ffn.net.2.weight": wide,
        "blocks.2.ffn.net.0.proj.weight": high,
        "blocks.3.attn2.to_v.weight": square,
        f"{SQUARE}.weight": ALPHA / RANK * b @ a,
        f"{SQUARE}.bias": bias,
        "blocks.1.attn1.to_k.bias": bias,
    }
    check_differences(pipe, expected)


@pytest.mark.parametrize("part", ["", ".default", ".default.weight"])
def test_loha(pipe, part):
    """The product of two products, element by element, which LyCORIS scales by alpha / rank."""
    tensors, expected = {}, {}
    for layer, (name, shape) in LAYERS.items():
        halves = [random(shape[0], 3), random(3, shape[1]), random(shape[0], 3, seed=1), random(3, shape[1], seed=1)]
        spelled = f"lycoris_{name.replace('.', '_')}" if not part else layer
        for half, tensor in zip(("w1_a", "w1_b", "w2_a", "w2_b"), halves, strict=True):
            tensors[f"{spelled}.hada_{half}{part}"] = tensor
        tensors[f"{spelled}.alpha"] = torch.tensor(1.5)
        expected[f"{layer}.weight"] = 0.5 * (halves[0] @ halves[1]) * (halves[2] @ halves[3])
    pipe.load_lora_weights(tensors)
    check_differences(pipe, expected)


@needs_lokr
@pytest.mark.parametrize("form", ["whole", "second", "both"])
@pytest.mark.parametrize("factor", [4, 8])
def test_lokr(pipe, form, factor):
    """A Kronecker product, of factors that may be products, which have ranks; LyCORIS scales these by alpha / rank."""
    tensors, expected = {}, {}
    for layer, (name, shape) in LAYERS.items():
        first, second = random(factor, factor), random(shape[0] // factor, shape[1] // factor)
        spelled, scale = f"diffusion_model.{name}", 1.0
        if form == "whole":
            tensors |= {f"{spelled}.lokr_w1": first, f"{spelled}.lokr_w2": second}
        else:
            pair = random(second.shape[0], 2), random(2, second.shape[1])
            tensors |= {f"{spelled}.lokr_w2_a": pair[0], f"{spelled}.lokr_w2_b": pair[1]}
            second, scale = pair[0] @ pair[1], 0.25
            tensors[f"{spelled}.alpha"] = torch.tensor(0.5)
        if form == "both":
            pair = random(factor, 2), random(2, factor)
            tensors |= {f"{spelled}.lokr_w1_a": pair[0], f"{spelled}.lokr_w1_b": pair[1]}
            first = pair[0] @ pair[1]
        elif form == "second":
            tensors[f"{spelled}.lokr_w1"] = first
        expected[f"{layer}.weight"] = scale * torch.kron(first, second)
    pipe.load_lora_weights(tensors)
    check_differences(pipe, expected)


@pytest.mark.parametrize(
    "part",
    [
        "dora_scale",
        "lora_magnitude_vector",
        "lora_magnitude_vector.weight",
        "lora_magnitude_vector.default",
        "lora_magnitude_vector.default.weight",
    ],
)
def test_dora(pipe, part):
    """Rows of W + scale * B @ A get the magnitudes that the file says."""
    tensors = spell(lambda ours, wans: f"diffusion_model.{wans}.", alpha="alpha")
    expected = {}
    for layer, (a, b) in lora().items():
        magnitude = random(len(b)).abs() + 0.5
        tensors[f"diffusion_model.{LAYERS[layer][0]}.{part}"] = (
            magnitude[:, None] if part == "dora_scale" else magnitude
        )
        before = pipe.loaded_weights[f"{layer}.weight"]
        changed = before + ALPHA / RANK * b @ a
        changed = changed * (magnitude / changed.norm(dim=1))[:, None]
        expected[f"{layer}.weight"] = changed - before
    pipe.load_lora_weights(tensors)
    check_differences(pipe, expected)


@pytest.mark.parametrize("is_of_peft", [True, False])
def test_dora_of_a_convolution(pipe, is_of_peft):
    before = pipe.loaded_weights["patch_embedding.weight"]
    down, up = random(RANK, *before.shape[1:]), random(len(before), RANK)
    magnitude = random(len(before)).abs() + 0.5
    tensors = {"patch_embedding.lora_A.weight": down, "patch_embedding.lora_B.weight": up}
    if is_of_peft:
        tensors["patch_embedding.lora_magnitude_vector"] = magnitude[None, :, None, None, None]
    else:
        tensors["patch_embedding.dora_scale"] = magnitude[:, None, None, None, None]
    pipe.load_lora_weights(tensors)
    changed = (before + torch.einsum("or,rithw->oithw", up, down)).flatten(1)
    changed = (changed * (magnitude / changed.norm(dim=1))[:, None]).reshape(before.shape)
    check_differences(pipe, {"patch_embedding.weight": changed - before})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_dtypes(pipe, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in plain().items()}
    pipe.load_lora_weights(tensors)
    expected = {}
    for layer in LAYERS:
        a, b = (tensors[f"transformer.{layer}.lora_{half}.weight"].float() for half in "AB")
        expected[f"{layer}.weight"] = b @ a
    with torch.no_grad():
        pipe.transformer.float()
    check_differences(pipe, expected)


def test_ranks_and_alphas_by_layer(pipe):
    tensors, expected = {}, {}
    for number, (layer, (name, shape)) in enumerate(LAYERS.items(), start=1):
        a, b = random(number, shape[1]), random(shape[0], number)
        alpha = 0.5 * number**2
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(alpha)}
        expected[f"{layer}.weight"] = alpha / number * b @ a
    pipe.load_lora_weights(tensors)
    check_differences(pipe, expected)


# PEFT's configuration


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=32),
        LoraConfig(r=4, lora_alpha=3, use_rslora=True),
        LoraConfig(r=4, lora_alpha=8, rank_pattern={"attn1.to_q": 2}, alpha_pattern={r"blocks\.[01]\.attn1\.to_k": 5}),
        LoraConfig(r=4, lora_alpha=6, rank_pattern={"^blocks.1.attn1.to_q": 8}, use_rslora=True),
        LoraConfig(r=4, lora_alpha=8, use_dora=True),
        LoraConfig(r=4, lora_alpha=8, lora_bias=True),
        LoraConfig(r=4, lora_alpha=8, layers_to_transform=[1], layers_pattern="blocks"),
        LoHaConfig(r=2, alpha=5),
        pytest.param(LoKrConfig(r=2, alpha=5, decompose_factor=4), marks=needs_lokr),
    ],
    ids=["alpha", "rslora", "patterns", "pattern of one", "dora", "biases", "one block", "loha", "lokr"],
)
@pytest.mark.parametrize("named", ["folder", "file", "only file"])
def test_peft_folders(pipe, transformer, config, named, tmp_path):
    """What PEFT saves changes the weights by what PEFT itself merges."""
    config.target_modules = {"to_q", "to_k", "net.2"}
    setattr(config, "init_lora_weights" if hasattr(config, "lora_alpha") else "init_weights", False)
    torch.manual_seed(0)
    model = get_peft_model(transformer, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1.3)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    if named == "only file":
        path = path.rename(tmp_path / "renamed.safetensors")
    pipe.load_lora_weights(tmp_path if named == "folder" else path)
    merged = weights_of(model.merge_and_unload())
    expected = {name: weight - pipe.loaded_weights[name] for name, weight in merged.items()}
    check_differences(pipe, expected)


def peft_folder(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **settings) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(plain() if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | settings))
    return folder


def test_patterns_by_the_names_of_wan(pipe, tmp_path):
    """Patterns tell layers by their names in the model that was trained."""
    tensors = spell(lambda ours, wans: f"base_model.model.{wans}.")
    patterns = {"blocks.0.self_attn.q": 20, "ffn.2": 2, r"^time_.*": 12}
    pipe.load_lora_weights(peft_folder(tmp_path, tensors, r=RANK, lora_alpha=8, alpha_pattern=patterns))
    alphas = dict.fromkeys(LAYERS, 8) | {SQUARE: 20, "blocks.3.ffn.net.2": 2}
    alphas |= {layer: 12 for layer in LAYERS if layer.startswith("condition")}
    check_differences(pipe, {f"{layer}.weight": alphas[layer] / RANK * b @ a for layer, (a, b) in lora().items()})


def test_configuration_in_the_metadata(pipe, tmp_path):
    """It counts before that of a file beside it, which may be another's."""
    settings = {"transformer.r": RANK, "transformer.lora_alpha": 2, "transformer.use_rslora": True}
    path = peft_folder(tmp_path, r=RANK, lora_alpha=100) / "adapter_model.safetensors"
    save_file(plain(), path, {"lora_adapter_metadata": json.dumps(settings)})
    pipe.load_lora_weights(tmp_path)
    check_differences(pipe, {f"{layer}.weight": 2 / RANK**0.5 * b @ a for layer, (a, b) in lora().items()})


def test_configuration_of_another_file(pipe, tmp_path):
    peft_folder(tmp_path, r=RANK, lora_alpha=100)
    save_file(plain(), tmp_path / "mine.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="mine.safetensors")
    check_differences(pipe, {f"{layer}.weight": b @ a for layer, (a, b) in lora().items()})


def test_repositories(pipe, hub, tmp_path):
    """The configuration beside a repository's file counts too; one of several files can be named; the cache serves."""
    from huggingface_hub import HfApi

    api = HfApi(token="hf_mine")
    api.create_repo("me/lora")
    peft_folder(tmp_path / "lora", r=RANK, lora_alpha=8)
    save_file(plain(), tmp_path / "lora" / "other.safetensors")
    api.upload_folder(repo_id="me/lora", folder_path=tmp_path / "lora")
    twice = {f"{layer}.weight": 2 * b @ a for layer, (a, b) in lora().items()}
    for options in ({}, {"local_files_only": True}):
        pipe.load_lora_weights("me/lora", **options)
        check_differences(pipe, twice)
        pipe.unload_lora_weights()
    pipe.load_lora_weights("me/lora/other.safetensors")
    check_differences(pipe, {name: difference / 2 for name, difference in twice.items()})
    pipe.unload_lora_weights()
    for source, words in (
        ("me/nothing", "me/nothing cannot be loaded: it is no file or folder here, and cannot be had .*404"),
        ("me/lora/third.safetensors", r"it has no third\.safetensors, but adapter_model\.safetensors, other"),
    ):
        with pytest.raises(ValueError, match=words):
            pipe.load_lora_weights(source)
    assert not any(isinstance(module, BaseTunerLayer) for module in pipe.transformer.modules())


# What LoomVideo lacks


@pytest.fixture
def warnings(caplog):
    logger = logging.get_logger("loomvideo_diffusers.pipelines.loomvideo_lora")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    logging.set_verbosity(verbosity)


@pytest.mark.parametrize(
    "name",
    [
        f"transformer.{TEXT}.lora_A.weight",
        "diffusion_model.text_embedding.2.lora_down.weight",
        "lora_unet_text_embedding_0.alpha",
        "diffusion_model.img_emb.proj.1.diff_b",
        "diffusion_model.blocks.0.cross_attn.k_img.lora_A.weight",
        "transformer.blocks.0.attn2.add_v_proj.lora_B.weight",
        "transformer.condition_embedder.image_embedder.ff.net.0.proj.lora_A.weight",
    ],
)
def test_layers_of_wan(pipe, name, warnings):
    pipe.load_lora_weights(plain() | {name: torch.ones(4, 4)})
    assert "Left out of the LoRA: " in warnings.text
    assert "(layers of Wan that LoomVideo does not have)" in warnings.text
    check_differences(pipe, {f"{layer}.weight": b @ a for layer, (a, b) in lora().items()})


UNKNOWN = {
    "text encoder": {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": torch.ones(4, 4)},
    "more blocks": {"transformer.blocks.9.attn1.to_q.lora_A.weight": torch.ones(4, 48)},
    "norms": {"diffusion_model.blocks.0.norm3.diff": torch.ones(48)},
    "whole weights": {"transformer.proj_out.weight": torch.ones(4, 48)},
    "cat": {"transformer.blocks.0.attn1.to_k.lora_A.weight.cat": torch.ones(4, 48)},
    "tucker": {"lora_unet_blocks_0_self_attn_k.lora_mid.weight": torch.ones(4, 4)},
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_partly_unknown(pipe, kind, warnings):
    """Refused with the name, or left out with it if that is allowed."""
    tensors = plain() | UNKNOWN[kind]
    with pytest.raises(ValueError, match=r"has tensors that .*`allow_partial=True` \(`--lora-partial`\)") as error:
        pipe.load_lora_weights(tensors)
    assert next(iter(UNKNOWN[kind])) in str(error.value)
    check_untouched(pipe)
    pipe.load_lora_weights(tensors, allow_partial=True)
    assert next(iter(UNKNOWN[kind])) in warnings.text
    check_differences(pipe, {f"{layer}.weight": b @ a for layer, (a, b) in lora().items()})


def replaced(part: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A good LoRA but for one tensor of one layer."""
    return plain() | {f"transformer.{SQUARE}.{part}": tensor}


A, B = f"transformer.{SQUARE}.lora_A.weight", f"transformer.{SQUARE}.lora_B.weight"
BROKEN = {
    "empty": ({}, "it is empty"),
    "a model": ({"blocks.0.attn1.to_q.weight": torch.ones(48, 48)}, "is no LoRA"),
    "text encoder only": (
        UNKNOWN["text encoder"],
        "none of its layers is in LoomVideo's transformer, such as lora_te_",
    ),
    "of Wan only": ({f"transformer.{TEXT}.lora_A.weight": torch.ones(4, 4)}, "none of its layers is in"),
    "another model": ({"double_blocks.0.img_attn.lora_A.weight": torch.ones(4, 48)}, "none of its layers is in"),
    "no A": (without(plain(), A), "is incomplete: it has no lora_A in the layer blocks.0.attn1.to_q"),
    "no B": (without(plain(), B), "is incomplete: it has no lora_B in the layer blocks.0.attn1.to_q"),
    "alpha alone": (plain() | {"blocks.1.attn1.to_k.alpha": torch.tensor(1.0)}, "is incomplete"),
    "magnitude alone": (plain() | {"blocks.1.attn1.to_k.dora_scale": torch.ones(48)}, "is incomplete"),
    "bias alone": (plain() | {"blocks.1.attn1.to_k.lora_B.bias": torch.ones(48)}, "is incomplete"),
    "half a LoHa": ({"blocks.0.attn1.to_q.hada_w1_a": torch.ones(48, 2)}, "no hada_w1_b and no hada_w2_a and no"),
    "half a LoKr": ({"blocks.0.attn1.to_q.lokr_w1": torch.ones(4, 4)}, "no lokr_w2"),
    "ranks": (replaced("lora_A.weight", torch.ones(3, 48)), r"do not fit each other, of the ranks \[3, 4\]"),
    "no rank": (
        replaced("lora_A.weight", torch.ones(0, 48)) | {B: torch.ones(48, 0)},
        r"do not fit each other, of the ranks \[0\]",
    ),
    "wide": (replaced("lora_A.weight", torch.ones(4, 5120)), "for another model: it has 5120 channels instead of 48"),
    "high": (replaced("lora_B.weight", torch.ones(5120, 4)), "for another model: it has 5120 channels instead of 48"),
    "vector": (replaced("lora_A.weight", torch.ones(48)), "no matrices"),
    "nan": (replaced("lora_A.weight", torch.full((4, 48), torch.nan)), "no numbers, infinite"),
    "inf": (replaced("lora_B.weight", torch.full((48, 4), torch.inf)), "no numbers, infinite"),
    "huge": (replaced("lora_B.weight", torch.full((48, 4), 3e38)), "too large to be right"),
    "nan alpha": (replaced("alpha", torch.tensor(torch.nan)), "no numbers, infinite"),
    "complex alpha": (replaced("alpha", torch.tensor(1j)), "numbers of the type complex64"),
    "alphas": (replaced("alpha", torch.ones(2)), "more than one alpha"),
    "integers": (replaced("lora_A.weight", torch.ones(4, 48, dtype=torch.int8)), "numbers of the type int8"),
    "two adapters": (
        plain() | {A.replace("A.", "A.other."): torch.ones(4, 48)},
        "two tensors for one part of a layer",
    ),
    "two names": (plain() | {"blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 48)}, "two tensors for one part"),
    "two kinds": (plain() | {"blocks.0.attn1.to_q.diff": torch.ones(48, 48)}, "parts of different kinds"),
    "two kinds of layers": (
        plain()
        | {
            f"blocks.1.attn1.to_k.lokr_w{n}": torch.ones(4 * n**2 - 4 * (n > 1), 4 * n**2 - 4 * (n > 1))
            for n in (1, 2)
        },
        "a LoRA in some layers and a LoKr in others",
    ),
    "magnitude of columns": (
        only(plain()) | {f"transformer.{SQUARE}.dora_scale": torch.ones(1, 48)},
        "magnitude of another direction",
    ),
    "some magnitudes": (replaced("dora_scale", torch.ones(48, 1)), "magnitudes of some layers only"),
    "short magnitude": (only(plain()) | {f"transformer.{SQUARE}.dora_scale": torch.ones(40, 1)}, "40 channels"),
    "LoKr of other sizes": (
        {"blocks.0.attn1.to_q.lokr_w1": torch.ones(16, 3), "blocks.0.attn1.to_q.lokr_w2": torch.ones(3, 16)},
        "factors have sizes that PEFT does not know",
    ),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_lokr if kind == "LoKr of other sizes" else ()) for kind in BROKEN]
)
def test_broken(pipe, kind, tmp_path):
    """One sentence, by the check ahead too, and the pipeline is as before."""
    tensors, words = BROKEN[kind]
    save_file(tensors, tmp_path / "mine.safetensors")
    for call in (pipe.load_lora_weights, lambda path: pipe.check_lora_weights(path, pipe.transformer)):
        with pytest.raises(ValueError, match=words) as error:
            call(tmp_path / "mine.safetensors")
        assert str(error.value).startswith(f"The LoRA {tmp_path / 'mine.safetensors'} ")
        assert "\n" not in str(error.value)
    check_untouched(pipe)
    # What is refused stands in no one's way.
    pipe.load_lora_weights(plain(), adapter_name="mine")
    before = {name: parameter.clone() for name, parameter in pipe.transformer.named_parameters()}
    for options in ({"adapter_name": "other"}, {"adapter_name": "mine", "hotswap": True}):
        with pytest.raises(ValueError, match=words):
            pipe.load_lora_weights(tensors, **options)
        assert pipe.get_list_adapters() == {"transformer": ["mine"]}
        after = dict(pipe.transformer.named_parameters())
        assert all(torch.equal(after[name], parameter) for name, parameter in before.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 8, "lora_alpha": 8}, "has rank 4, and its configuration says another"),
        ({"r": 4, "rank_pattern": {"to_q": 2}}, "has rank 4, and its configuration says another"),
        ({"peft_type": "IA3"}, "an adapter of the kind IA3"),
        ({"r": 4, "init_lora_weights": "pissa"}, "pissa changed"),
        ({"r": 4, "use_qalora": True}, "its configuration has use_qalora"),
        ({"r": 4, "modules_to_save": ["proj_out"]}, "its configuration has modules_to_save"),
        ({"r": 4, "use_dora": True}, "without magnitudes"),
        ({"r": 4, "lora_alpha": "16"}, "its configuration has no good lora_alpha"),
        ({"r": 4, "lora_alpha": float("nan")}, "its configuration has no good lora_alpha"),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": [4]}, "its configuration has no good alpha_pattern"),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"(": 4}}, "its configuration has no good alpha_pattern"),
        ({"r": 0, "lora_alpha": 4}, "has rank 4, and its configuration says another"),
    ],
)
def test_other_configurations(pipe, settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        pipe.load_lora_weights(peft_folder(tmp_path, **settings))
    check_untouched(pipe)


def test_files(pipe, tmp_path):
    """Those that are not there, are several, or cannot be read."""
    good = tmp_path / "good.safetensors"
    save_file(plain(), good)
    several, nothing, pickled = (tmp_path / name for name in ("several", "nothing", "pickled"))
    for folder in (several, nothing, pickled):
        folder.mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        shutil.copy(good, several / name)
    torch.save(plain(), pickled / "lora.pt")
    content = good.read_bytes()
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(content[:-100])
    (tmp_path / "head.safetensors").write_bytes(content[:5])
    (tmp_path / "zeros.safetensors").write_bytes(bytes(1000))
    (tmp_path / "text.safetensors").write_text("These are not the weights that you are looking for.")
    (tmp_path / "text.txt").write_text("Nor are these.")
    (tmp_path / "text.bin").write_text("Nor are these.")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    bad = peft_folder(tmp_path / "bad")
    (bad / "adapter_config.json").write_text("{")
    list_config = peft_folder(tmp_path / "list")
    (list_config / "adapter_config.json").write_text("[1]")
    nowhere = "it is no file or folder here"
    no_safetensors = "cannot be read as safetensors: is it complete"
    for source, options, words in (
        (tmp_path / "nowhere.safetensors", {}, nowhere),
        ("nowhere.safetensors", {}, nowhere),
        ("loras/nowhere.safetensors", {}, nowhere),
        (several, {}, r"it holds several files, a\.safetensors, b\.safetensors: name one"),
        (several, {"weight_name": "c.safetensors"}, r"it has no c\.safetensors, but a\.safetensors, b"),
        (nothing, {}, r"it has no safetensors file"),
        (nothing, {"subfolder": "within"}, r"it has no safetensors file"),
        (pickled, {}, r"name its lora\.pt to load a pickled file"),
        (tmp_path / "empty.safetensors", {}, no_safetensors),
        (tmp_path / "cut.safetensors", {}, no_safetensors),
        (tmp_path / "head.safetensors", {}, no_safetensors),
        (tmp_path / "zeros.safetensors", {}, no_safetensors),
        (tmp_path / "text.safetensors", {}, no_safetensors),
        (tmp_path / "text.txt", {}, r"text\.txt is no safetensors file"),
        (tmp_path / "text.bin", {}, r"text\.bin cannot be read as tensors by their names"),
        (tmp_path / "list.pt", {}, r"list\.pt holds more than tensors by their names"),
        (bad, {}, r"configuration of the adapter in adapter_config\.json cannot be read"),
        (list_config, {}, r"in adapter_config\.json cannot be read: it is no JSON object"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            pipe.load_lora_weights(source, **options)
        assert str(error.value).startswith(f"The LoRA {source} cannot be loaded: ")
        assert "\n" not in str(error.value), source
        check_untouched(pipe)
    pipe.load_lora_weights(several, weight_name="b.safetensors")
    check_differences(pipe, {f"{layer}.weight": b @ a for layer, (a, b) in lora().items()})
    pipe.unload_lora_weights()
    pipe.load_lora_weights(pickled / "lora.pt")
    check_differences(pipe, {f"{layer}.weight": b @ a for layer, (a, b) in lora().items()})


def test_without_effect(pipe, warnings, run, tmp_path):
    """One that was not trained loads, with a warning; on the command line, and ahead of loading, it is refused."""
    zero = {A: torch.ones(4, 48), B: torch.zeros(48, 4)}
    no_scale = only(plain()) | {f"transformer.{SQUARE}.alpha": torch.tensor(0.0)}
    no_factor = {f"{SQUARE}.lokr_w1": torch.zeros(4, 4), f"{SQUARE}.lokr_w2": torch.ones(12, 12)}
    for tensors in (zero, no_scale, no_factor) if HAS_LOKR else (zero, no_scale):
        warnings.clear()
        pipe.load_lora_weights(tensors)
        assert "The LoRA has no effect: all its weights are zero." in warnings.text
        check_differences(pipe, {})
        pipe.unload_lora_weights()
        with pytest.raises(ValueError, match="has no effect: all its weights are zero"):
            pipe.check_lora_weights(tensors, pipe.transformer)
    save_file(zero, tmp_path / "zero.safetensors")
    status, lines = run("--lora", tmp_path / "zero.safetensors")
    assert status == 2
    assert "has no effect" in lines[0]


def test_changed_tensors(pipe):
    """LoRAs some of whose tensors are cut, turned, cast, renamed, or gone: one sentence, or they load and unload."""
    choices = Random(0)
    changes = {
        "shorter": lambda tensor: tensor[:-1].contiguous(),
        "narrower": lambda tensor: tensor[..., :-1].contiguous(),
        "turned": lambda tensor: tensor.T.contiguous(),
        "flat": lambda tensor: tensor.flatten(),
        "with more axes": lambda tensor: tensor[..., None, None].contiguous(),
        "nothing": lambda tensor: tensor[:0].contiguous(),
        "infinite": lambda tensor: tensor * 1e39,
        "integers": lambda tensor: tensor.to(torch.int8),
        "complex": lambda tensor: tensor.to(torch.complex64),
        "half": lambda tensor: tensor.half(),
        "double": lambda tensor: tensor.double(),
    }
    endings = [*[""] * 8, ".diff", ".diff_b", ".alpha", ".dora_scale", ".lora_B.bias", ".lokr_w1", ".hada_w1_a"]
    num_loaded, sentences = 0, []
    for _ in range(200):
        tensors = dict(SPELLINGS[choices.choice([*SPELLINGS])])
        for _ in range(choices.randint(1, 2)):
            name = choices.choice([name for name, tensor in tensors.items() if tensor.ndim])
            tensor = changes[choices.choice([*changes])](tensors.pop(name))
            ending = choices.choice(endings)
            tensors[f"{name.rsplit('.', 2)[0]}{ending}" if ending else name] = tensor
        try:
            pipe.load_lora_weights(tensors, adapter_name="mine")
        except ValueError as error:
            sentences.append(str(error))
        else:
            assert all(parameter.isfinite().all() for parameter in pipe.transformer.parameters())
            pipe.unload_lora_weights()
            num_loaded += 1
        check_untouched(pipe)
    assert num_loaded > 10
    assert len(sentences) > 50
    assert all(sentence.startswith("The LoRA ") and "\n" not in sentence for sentence in sentences)


# Adapters beside and after each other


def test_hotswap_of_other_scales_and_ranks(pipe):
    """The place of an adapter, of its ranks and its scale, takes another of fewer, and its own weight."""
    pipe.load_lora_weights(plain() | {f"{layer}.alpha": torch.tensor(2.0) for layer in LAYERS}, adapter_name="slot")
    tensors, expected = {}, {}
    for number, layer in enumerate([*LAYERS][:4]):
        a, b = lora(rank=1 + number % 3)[layer]
        alpha = 5.0 + number
        tensors |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b, f"{layer}.alpha": torch.tensor(alpha)}
        expected[f"{layer}.weight"] = alpha / len(a) * b @ a
    pipe.load_lora_weights(tensors, adapter_name="slot", hotswap=True)
    check_differences(pipe, expected)
    pipe.set_adapters("slot", 0.5)
    check_differences(pipe, {name: 0.5 * difference for name, difference in expected.items()})
    with pytest.raises(ValueError, match="There is no adapter other to take the place of"):
        pipe.load_lora_weights(tensors, adapter_name="other", hotswap=True)
    with pytest.raises(ValueError, match=r"cannot take the place of slot, .* such as blocks\.1\.attn1\.to_k"):
        pipe.load_lora_weights(
            {"blocks.1.attn1.to_k.lora_A": torch.ones(1, 48), "blocks.1.attn1.to_k.lora_B": torch.ones(48, 1)},
            adapter_name="slot",
            hotswap=True,
        )
    for tensors in (
        only(plain()) | {f"transformer.{SQUARE}.dora_scale": torch.ones(48, 1)},
        *([{f"{SQUARE}.lokr_w1": torch.ones(4, 4), f"{SQUARE}.lokr_w2": torch.ones(12, 12)}] if HAS_LOKR else []),
        only(plain()) | {f"transformer.{SQUARE}.diff_b": torch.ones(48)},
    ):
        with pytest.raises(ValueError, match=r"cannot take the place of slot, which .* is of another kind"):
            pipe.load_lora_weights(tensors, adapter_name="slot", hotswap=True)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="slot is fused"):
        pipe.load_lora_weights(plain(), adapter_name="slot", hotswap=True)
    assert pipe.get_list_adapters() == {"transformer": ["slot"]}


def test_hotswap_of_a_convolution(pipe):
    shape = pipe.transformer.patch_embedding.weight.shape
    for rank, options in ((4, {}), (2, {"hotswap": True})):
        down, up = random(rank, *shape[1:]), random(shape[0], rank)
        tensors = {"patch_embedding.lora_A.weight": down, "patch_embedding.lora_B.weight": up}
        pipe.load_lora_weights(tensors, adapter_name="slot", **options)
        check_differences(pipe, {"patch_embedding.weight": torch.einsum("or,rithw->oithw", up, down)})


@needs_lokr
def test_a_lora_and_a_lokr(pipe):
    """Both change one layer."""
    first, second = random(4, 4), random(12, 12)
    a, b = lora()[SQUARE]
    pipe.load_lora_weights(only(plain()), adapter_name="lora")
    pipe.load_lora_weights({f"{SQUARE}.lokr_w1": first, f"{SQUARE}.lokr_w2": second}, adapter_name="lokr")
    pipe.set_adapters(["lora", "lokr"], [0.5, 2.0])
    check_differences(pipe, {f"{SQUARE}.weight": 0.5 * b @ a + 2 * torch.kron(first, second)})


def test_names_of_adapters(pipe):
    for name in ("a.b", ""):
        with pytest.raises(ValueError, match="choose a name without dots"):
            pipe.load_lora_weights(plain(), adapter_name=name)
        check_untouched(pipe)


# Saving


def test_saved_files_are_the_same_to_the_byte(transformer, tmp_path):
    """Neither the order of a set nor that of the metadata is left to chance."""
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "net.2"], init_lora_weights=False))
    tensors = get_peft_model_state_dict(transformer)
    contents = set()
    for number in range(12):
        settings = transformer.peft_config["default"].to_dict()
        names = sorted(settings["target_modules"])
        settings["target_modules"] = set(names[number % 4 :] + names[: number % 4])
        LoomVideoPipeline.save_lora_weights(
            tmp_path / str(number), tensors, transformer_lora_adapter_metadata=settings
        )
        contents.add((tmp_path / str(number) / "pytorch_lora_weights.safetensors").read_bytes())
        assert settings["target_modules"] == set(names)
    assert len(contents) == 1
    content = contents.pop()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = json.loads(header["__metadata__"]["lora_adapter_metadata"])
    assert metadata["transformer.target_modules"] == ["net.2", "to_k", "to_q", "to_v"]
    assert list(header["__metadata__"]) == ["format", "lora_adapter_metadata"]
    loaded = load_file(tmp_path / "0" / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(loaded[f"transformer.{name}"], tensor) for name, tensor in tensors.items())


def test_other_processes_write_nothing(transformer, tmp_path):
    LoomVideoPipeline.save_lora_weights(tmp_path / "lora", {"a": torch.ones(1)}, is_main_process=False)
    assert not (tmp_path / "lora").exists()
    with pytest.raises(ValueError, match="nothing to save"):
        LoomVideoPipeline.save_lora_weights(tmp_path)


# The command line


@pytest.fixture
def run(model_folder, tmp_path, capsys):
    """Generates an image with LoRAs; returns the exit code and the lines of stderr."""

    def run(*arguments, model: Path = model_folder) -> tuple[int, list[str]]:
        size = ["--height", "64", "--width", "64", "--frames", "1", "--steps", "1", "--seed", "0"]
        command = ["generate", "a red square", "-o", tmp_path / "out.png", "--model", model, *size, *arguments]
        status = main([str(argument) for argument in command])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("loomvideo:")]
        return status, lines

    return run


def test_refused_before_the_model_is_loaded(run, model_folder, tmp_path):
    """A folder without weights does for it."""
    model = tmp_path / "model"
    shutil.copytree(model_folder, model, ignore=shutil.ignore_patterns("*.safetensors"))
    for kind in ("no A", "ranks", "nan", "wide", "text encoder only"):
        tensors, _ = BROKEN[kind]
        path = tmp_path / f"{kind}.safetensors"
        save_file(tensors, path)
        status, lines = run("--lora", path, model=model)
        assert status == 2
        assert len(lines) == 1
        assert lines[0].startswith(f"loomvideo: error: The LoRA {path} ")
    status, lines = run("--lora", tmp_path / "none", model=model)
    assert (status, lines) == (
        2,
        [
            f"loomvideo: error: The LoRA {tmp_path / 'none'} cannot be loaded: it is no file or folder here, and not "
            "the name of a repository (OWNER/NAME)."
        ],
    )
    assert not (tmp_path / "out.png").exists()


def test_left_out_with_a_line(run, tmp_path):
    save_file(plain() | {f"transformer.{TEXT}.lora_A.weight": torch.ones(4, 4)}, tmp_path / "wan.safetensors")
    save_file(plain() | UNKNOWN["text encoder"], tmp_path / "te.safetensors")
    assert run("--lora", tmp_path / "wan.safetensors") == (
        0,
        [
            f"loomvideo: Left out of the LoRA {tmp_path / 'wan.safetensors'}: {TEXT} "
            "(layers of Wan that LoomVideo does not have)."
        ],
    )
    assert run("--lora", tmp_path / "te.safetensors")[0] == 2
    status, lines = run("--lora", tmp_path / "te.safetensors", "--lora-partial")
    assert status == 0
    assert next(iter(UNKNOWN["text encoder"])) in lines[0]


def test_info_names_what_had_an_effect(run, tmp_path, capsys):
    save_file(plain(), tmp_path / "mine.safetensors")
    for scale, is_named in (("1", True), ("0", False)):
        assert run("--lora", tmp_path / "mine.safetensors", "--lora-scale", scale)[0] == 0
        main(["info", str(tmp_path / "out.png")])
        command, *lines = capsys.readouterr().out.splitlines()
        assert "mine.safetensors" in command
        assert any("mine.safetensors" in line for line in lines) == is_named


def test_check_without_weights(model_folder):
    """As a program does before it loads a model."""
    config = LoomVideoTransformer3DModel.load_config(model_folder, subfolder="transformer")
    with torch.device("meta"):
        transformer = LoomVideoTransformer3DModel.from_config(config)
    assert LoomVideoPipeline.check_lora_weights(plain(), transformer) is None
    with pytest.raises(ValueError, match="is incomplete"):
        LoomVideoPipeline.check_lora_weights(without(plain(), A), transformer)
