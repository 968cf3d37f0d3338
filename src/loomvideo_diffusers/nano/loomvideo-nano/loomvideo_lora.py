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
"""LoRA adapters: loading them from files in any of the spellings in use, saving and fusing them."""

import os
import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict
from diffusers.utils import USE_PEFT_BACKEND, logging


logger = logging.get_logger(__name__)

PICKLE_SUFFIXES = (".bin", ".pt", ".pth")

# What a layer is called by Wan's original code, or here with underscores, and what it is called here.
LAYER_NAMES = {
    f"{theirs}_{theirs_part}": f"{ours}.{ours_part}"
    for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for theirs_part, ours_part in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
} | {
    "ffn_0": "ffn.net.0.proj",
    "ffn_2": "ffn.net.2",
    "time_embedding_0": "condition_embedder.time_embedder.linear_1",
    "time_embedding_2": "condition_embedder.time_embedder.linear_2",
    "time_projection_1": "condition_embedder.time_proj",
    "head_head": "proj_out",
    "mllm_embedder_linear_1": "mllm_embedder.linear_1",
    "mllm_embedder_linear_2": "mllm_embedder.linear_2",
}
LAYER_NAMES |= {name.replace(".", "_"): name for name in LAYER_NAMES.values()}

# What trainers put before the names of layers; some put nothing there.
PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "lora_unet_", "transformer.")
ROOTS = ("blocks.", "patch_embedding", "source_patch_embedding", "mllm_embedder", "condition_embedder", "proj_out")

# What the parts of an adapter are called, and what PEFT calls them; `alpha` is folded into the weights.
PART_NAMES = {
    "lora_A.weight": "lora_A.weight",
    "lora_B.weight": "lora_B.weight",
    "lora_B.bias": "lora_B.bias",
    "lora_A.default.weight": "lora_A.weight",
    "lora_B.default.weight": "lora_B.weight",
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "diff_b": "lora_B.bias",
    "alpha": "alpha",
} | {part: part for factor in ("lokr_w1", "lokr_w2") for part in (factor, f"{factor}_a", f"{factor}_b")}


def convert_lora_state_dict(state_dict: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """
    Gives the tensors of a LoRA, or a LoKr, the names that PEFT and this model's layers have.

    Spellings: `transformer.` as of diffusers, `diffusion_model.` with Wan's original layers, `lora_unet_` with these
    layers and underscores, and some that wrap these. What has no such name keeps it. Returns also the names of what is
    left out: what cannot be loaded into a linear layer, such as whole differences of weights.
    """
    converted, alphas, left_out = {}, {}, []
    for name, tensor in state_dict.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        part = next((part for part in PART_NAMES if name.endswith(f".{part}")), None)
        rest = name.removeprefix(prefix)
        if part is None and prefix and "lora_" not in rest and "lokr_" not in rest:
            left_out.append(name)
        elif part is None or not (prefix or name.startswith(ROOTS)):
            converted[name] = tensor
        else:
            layer = f"transformer.{_layer_name(rest.removesuffix(f'.{part}'))}"
            if part == "alpha":
                alphas[layer] = tensor.item()
            else:
                converted[f"{layer}.{PART_NAMES[part]}"] = tensor
    for layer, alpha in alphas.items():
        _fold_alpha(converted, layer, alpha)
    return converted, left_out + _complete_biases(converted)


def _layer_name(layer: str) -> str:
    block = re.fullmatch(r"blocks[._](\d+)[._](.+)", layer)
    prefix, rest = (f"blocks.{block[1]}.", block[2]) if block else ("", layer)
    return prefix + LAYER_NAMES.get(rest.replace(".", "_"), rest)


def _fold_alpha(state_dict: dict[str, torch.Tensor], layer: str, alpha: float) -> None:
    """Multiplies one factor of an adapter by alpha / rank, in float32, where the product cannot underflow."""
    ranked = (f"{layer}.{factor}" for factor in ("lora_A.weight", "lokr_w2_b", "lokr_w1_b"))
    # A LoKr of whole factors has no rank, and no alpha.
    rank = next((state_dict[name].shape[0] for name in ranked if name in state_dict), None)
    for factor in ("lora_B.weight", "lokr_w1", "lokr_w1_a"):
        name = f"{layer}.{factor}"
        if rank is not None and name in state_dict:
            state_dict[name] = state_dict[name].float() * (alpha / rank)


def _complete_biases(state_dict: dict[str, torch.Tensor]) -> list[str]:
    """PEFT has biases in all adapted layers or in none: adds zeros, and removes and returns biases without weights."""
    biases = [name for name in state_dict if name.endswith(".lora_B.bias")]
    alone = [name for name in biases if name.replace(".bias", ".weight") not in state_dict]
    for name in alone:
        del state_dict[name]
    if len(biases) > len(alone):
        for name in [name for name in state_dict if name.endswith(".lora_B.weight")]:
            weight = state_dict[name]
            state_dict.setdefault(name.replace(".weight", ".bias"), weight.new_zeros(weight.shape[0]))
    return alone


class LoomVideoLoraLoaderMixin(LoraBaseMixin):
    """Loads LoRA adapters into a pipeline's transformer. Those of Wan2.2-TI2V-5B fit, layer by layer."""

    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor], **kwargs
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        r"""
        Reads the tensors of a LoRA, by the names that PEFT and diffusers give them.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A repository, a folder, a file, or the tensors themselves.
            weight_name (`str`, *optional*):
                The file in the repository or folder; by default `pytorch_lora_weights.safetensors`, or the only one.
            use_safetensors (`bool`, *optional*):
                By default only safetensors are looked for, and a pickled file (read by torch's `weights_only`) has to
                be asked for by its name or by `False`.
            return_lora_metadata (`bool`, defaults to `False`):
                Whether to return the adapter's configuration from the file's metadata too, or None if it has none.
            kwargs (*optional*):
                The Hub's: `subfolder`, `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`,
                `proxies`.
        """
        return_lora_metadata = kwargs.pop("return_lora_metadata", False)
        weight_name = kwargs.pop("weight_name", None)
        use_safetensors = kwargs.pop("use_safetensors", None)
        source = pretrained_model_name_or_path_or_dict
        if not isinstance(source, dict):
            source = os.fspath(source)
        if use_safetensors is None:
            use_safetensors = isinstance(source, dict) or not (weight_name or source).endswith(PICKLE_SUFFIXES)
        hub_options = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
        state_dict, metadata = _fetch_state_dict(
            source,
            weight_name=weight_name,
            use_safetensors=use_safetensors,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=False,
            **{name: kwargs.get(name) for name in hub_options},
        )
        state_dict, left_out = convert_lora_state_dict(state_dict)
        _warn_of_skipped(left_out)
        return (state_dict, metadata) if return_lora_metadata else state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **kwargs,
    ) -> None:
        r"""
        Loads a LoRA into the transformer and makes it the active one.

        Layers that the transformer does not have (of LoRAs trained for Wan2.2-TI2V-5B, those that read T5) are
        skipped, and a warning lists them.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A repository, a folder, a file, or the tensors themselves.
            adapter_name (`str`, *optional*):
                What `set_adapters` and the others are to call it.
            hotswap (`bool`, defaults to `False`):
                Whether to replace the weights of the adapter of that name in place, which a compiled transformer does
                not notice. Call `enable_lora_hotswap` first if ranks differ.
            low_cpu_mem_usage (`bool`, defaults to `True`):
                Whether to leave out the initialization of weights that are loaded anyway.
            kwargs (*optional*):
                As for `lora_state_dict`.

        Raises:
            ValueError: if PEFT is missing, the file is not a LoRA, or its layers have other sizes.
        """
        if not USE_PEFT_BACKEND:
            raise ValueError("LoRA adapters need PEFT: install it with `pip install peft`.")
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        if not any("lora" in name or "lokr" in name for name in state_dict):
            raise ValueError("This is no LoRA: it holds no tensor with `lora` in its name.")
        transformer = getattr(self.transformer, "_orig_mod", self.transformer)
        if any(getattr(module, "fused_projections", False) for module in transformer.modules()):
            raise ValueError(
                "A LoRA does not fit fused projections: call `pipe.transformer.unfuse_qkv_projections()` first."
            )
        state_dict, skipped = _keep_layers_of(transformer, state_dict)
        if skipped and not any(name.startswith("transformer.") for name in state_dict):
            raise ValueError(
                f"This LoRA was trained for another model: none of its layers is in LoomVideo, such as {skipped[0]}."
            )
        _warn_of_skipped(skipped)
        self.load_lora_into_transformer(
            state_dict,
            transformer=transformer,
            adapter_name=adapter_name,
            metadata=metadata,
            _pipeline=self,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
        )

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: dict[str, torch.Tensor],
        transformer: torch.nn.Module,
        adapter_name: str | None = None,
        _pipeline: Any = None,
        low_cpu_mem_usage: bool = False,
        hotswap: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Loads tensors named `transformer.LAYER.lora_A.weight` and so on into a transformer."""
        transformer.load_lora_adapter(
            state_dict,
            network_alphas=None,
            adapter_name=adapter_name,
            metadata=metadata,
            _pipeline=_pipeline,
            low_cpu_mem_usage=low_cpu_mem_usage,
            hotswap=hotswap,
        )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        transformer_lora_layers: dict[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        r"""
        Saves a LoRA as `load_lora_weights` reads it.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder; made if needed.
            transformer_lora_layers (`dict[str, torch.Tensor]`):
                What `peft.get_peft_model_state_dict(pipe.transformer)` returns.
            is_main_process (`bool`, defaults to `True`):
                False in the other processes of a distributed run, which write nothing.
            weight_name (`str`, *optional*):
                The file's name, by default `pytorch_lora_weights.safetensors`.
            save_function (`Callable`, *optional*):
                What writes the file, called with the tensors and its path.
            safe_serialization (`bool`, defaults to `True`):
                Whether to write safetensors; else a pickled file.
            transformer_lora_adapter_metadata (`dict`, *optional*):
                The adapter's configuration, `pipe.transformer.peft_config[name].to_dict()`, for the file's metadata.
        """
        if not transformer_lora_layers:
            raise ValueError("There is nothing to save: pass the LoRA's tensors as `transformer_lora_layers`.")
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={cls.transformer_name: transformer_lora_layers},
            lora_metadata={cls.transformer_name: transformer_lora_adapter_metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def fuse_lora(
        self,
        components: list[str] = ["transformer"],
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs,
    ) -> None:
        """Adds adapters, by default the active ones, to the transformer's weights; `unfuse_lora` takes them out."""
        super().fuse_lora(
            components=components,
            lora_scale=lora_scale,
            safe_fusing=safe_fusing,
            adapter_names=adapter_names,
            **kwargs,
        )

    def unfuse_lora(self, components: list[str] = ["transformer"], **kwargs) -> None:
        """Takes fused adapters out of the transformer's weights again."""
        super().unfuse_lora(components=components, **kwargs)


def _keep_layers_of(
    transformer: torch.nn.Module, state_dict: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Keeps the tensors of layers that the transformer has, and returns the names of the layers that it has not."""
    modules = dict(transformer.named_modules())
    kept, skipped = {}, []
    for name, tensor in state_dict.items():
        match = re.fullmatch(r"transformer\.(.+?)\.(lora|lokr)_.+", name)
        if match is None:
            kept[name] = tensor
            continue
        module = modules.get(match[1])
        if module is None:
            skipped.append(match[1])
            continue
        sizes = {
            ".lora_A.weight": (1, ("in_features", "in_channels")),
            ".lora_B.weight": (0, ("out_features", "out_channels")),
        }
        for part, (axis, attributes) in sizes.items():
            expected = next((getattr(module, attribute) for attribute in attributes if hasattr(module, attribute)), 0)
            if name.endswith(part) and expected and tensor.shape[axis] != expected:
                raise ValueError(
                    f"This LoRA was trained for another model: it has {tensor.shape[axis]} channels where the "
                    f"layer {match[1]} has {expected}."
                )
        kept[name] = tensor
    return kept, skipped


def _warn_of_skipped(names: list[str]) -> None:
    if any(name.endswith("dora_scale") for name in names):
        logger.warning("This is a DoRA, of which the magnitudes (`dora_scale`) are left out: its effect will differ.")
    if names:
        logger.warning(f"Skipped what the LoRA has and LoomVideo has not: {', '.join(sorted(set(names)))}.")
