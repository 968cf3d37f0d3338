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
"""LoRA adapters of a pipeline: loading them from files in any of the spellings in use, saving and fusing them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import USE_PEFT_BACKEND, logging

from .loomvideo_errors import LoomVideoInputError
from .loomvideo_lora_files import read_lora_file, read_safetensors_header
from .loomvideo_lora_weights import multiply_adapter, prepare_lora


logger = logging.get_logger(__name__)


def _fit_slot(
    transformer: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any],
    adapter_name: str | None,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Gives an adapter the ranks, the scale and the settings of another whose place it takes, so that it fits."""
    old = getattr(transformer, "peft_config", {}).get(adapter_name)
    if old is None:
        raise LoomVideoInputError(
            f"There is no adapter {adapter_name} to take the place of: load one with `hotswap=False`."
        )
    layers: dict[str, Any] = {
        name: module
        for name, module in transformer.named_modules()
        if hasattr(module, "lora_A") and adapter_name in module.lora_A
    }
    # A LoKr has no configuration.
    is_lora = bool(config) and old.peft_type == "LORA" and not config["use_dora"] and not old.use_dora
    others = [layer for layer in config["target_modules"] if layer not in layers] if is_lora else []
    if others or not is_lora or config["lora_bias"] > old.lora_bias:
        raise LoomVideoInputError(
            f"The LoRA cannot take the place of {adapter_name}, which has other layers or is of another kind"
            f"{f', such as {others[0]}' if others else ''}: use `hotswap=False`."
        )
    if any(adapter_name in module.merged_adapters for module in layers.values()):
        raise LoomVideoInputError(
            f"{adapter_name} is fused: call `unfuse_lora()` before another LoRA takes its place."
        )
    first = next(iter(layers.values()))
    scale = first.lora_alpha[adapter_name] / first.r[adapter_name] ** (0.5 if old.use_rslora else 1)
    for layer in config["target_modules"]:
        name = f"transformer.{layer}"
        multiply_adapter(tensors, name, config["lora_alpha"] / config["r"] / scale)
        for half, axis in (("lora_A", 0), ("lora_B", 1)):
            tensor = tensors[f"{name}.{half}.weight"]
            missing = getattr(layers[layer], half)[adapter_name].weight.shape[axis] - tensor.shape[axis]
            if missing > 0:
                shape = [missing if index == axis else size for index, size in enumerate(tensor.shape)]
                tensors[f"{name}.{half}.weight"] = torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
    settings = {name: getattr(old, name) for name in ("use_rslora", "lora_dropout", "alpha_pattern")}
    lora_alpha = scale * config["r"] ** (0.5 if old.use_rslora else 1)
    return tensors, config | settings | {"lora_alpha": lora_alpha, "rank_pattern": {}}


def _load(
    transformer: Any,
    state_dict: dict[str, torch.Tensor],
    config: dict[str, Any] | None,
    adapter_name: str | None,
    hotswap: bool,
    low_cpu_mem_usage: bool,
    pipeline: Any,
) -> None:
    """Loads what `prepare_lora` returned."""
    if adapter_name is not None and ("." in adapter_name or not adapter_name):
        raise LoomVideoInputError(f"An adapter cannot be called {adapter_name!r}: choose a name without dots.")
    if hotswap:
        state_dict, config = _fit_slot(transformer, state_dict, config or {}, adapter_name)
    transformer.load_lora_adapter(
        state_dict,
        adapter_name=adapter_name,
        metadata=config and {f"transformer.{name}": value for name, value in config.items()},
        _pipeline=pipeline,
        low_cpu_mem_usage=low_cpu_mem_usage,
        hotswap=hotswap,
    )


def _sort_metadata(path: Path) -> None:
    """Gives the metadata of a safetensors file, which are written in any order, their own."""
    with open(path, "r+b") as file:
        header = read_safetensors_header(file)
        size = file.tell() - 8
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


class LoomVideoLoraLoaderMixin(LoraBaseMixin):
    """Loads LoRA adapters into a pipeline's transformer. Those of Wan2.2-TI2V-5B fit, layer by layer."""

    transformer: Any

    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor], **kwargs: Any
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        r"""
        Reads the tensors of a LoRA, by the names that they have there.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A file, a folder, a repository (OWNER/NAME, or OWNER/NAME/FILE), or the tensors themselves.
            weight_name (`str`, *optional*):
                The file in the repository or folder; by default `pytorch_lora_weights.safetensors`,
                `adapter_model.safetensors`, or the only one.
            use_safetensors (`bool`, *optional*):
                By default only safetensors are looked for, and a pickled file (read by torch's `weights_only`) has to
                be asked for by its name or by `False`.
            return_lora_metadata (`bool`, defaults to `False`):
                Whether to return the adapter's configuration too: from the file's metadata, else from PEFT's
                `adapter_config.json` beside it, else None.
            kwargs (*optional*):
                The Hub's: `subfolder`, `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            LoomVideoInputError: if the file is not there, is one of several, or cannot be read.
        """
        return_lora_metadata = kwargs.pop("return_lora_metadata", False)
        state_dict, metadata = cls._read(pretrained_model_name_or_path_or_dict, kwargs)
        return (state_dict, metadata) if return_lora_metadata else state_dict

    @classmethod
    def _read(cls, source: Any, options: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        if isinstance(source, dict):
            return source, None
        try:
            return read_lora_file(os.fspath(source), options)
        except LoomVideoInputError as error:
            raise LoomVideoInputError(f"The LoRA {source} cannot be loaded: {error}") from error

    @classmethod
    def check_lora_weights(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        transformer: torch.nn.Module,
        allow_partial: bool = False,
        **kwargs: Any,
    ) -> str | None:
        r"""
        Checks whether a LoRA can be loaded, before a model's weights are.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                As for `lora_state_dict`.
            transformer (`torch.nn.Module`):
                The transformer; one on the meta device, without weights, does.
            allow_partial (`bool`, defaults to `False`):
                As for `load_lora_weights`.
            kwargs (*optional*):
                As for `lora_state_dict`.

        Returns:
            A sentence about what would be left out, or None.

        Raises:
            LoomVideoInputError: if `load_lora_weights` would refuse it, or if all its weights are zero.
        """
        source = pretrained_model_name_or_path_or_dict
        return cls._prepare(source, transformer, allow_partial, allow_zero=False, options=kwargs)[2]

    @classmethod
    def _prepare(
        cls, source: Any, transformer: torch.nn.Module, allow_partial: bool, allow_zero: bool, options: dict[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None, str | None]:
        state_dict, settings = cls._read(source, options)
        title = "The LoRA" if isinstance(source, dict) else f"The LoRA {os.fspath(source)}"
        return prepare_lora(state_dict, settings, transformer, allow_partial, allow_zero, title)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        allow_partial: bool = False,
        **kwargs: Any,
    ) -> None:
        r"""
        Loads a LoRA into the transformer and makes it the active one: all of it, or nothing.

        Names are those of any trainer. Layers of Wan that LoomVideo does not have (of LoRAs trained for
        Wan2.2-TI2V-5B, those that read T5) are left out, and a warning lists them.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A file, a folder, a repository (OWNER/NAME, or OWNER/NAME/FILE), or the tensors themselves.
            adapter_name (`str`, *optional*):
                What `set_adapters` and the others are to call it.
            hotswap (`bool`, defaults to `False`):
                Whether to replace the weights of the adapter of that name in place, which a compiled transformer does
                not notice. Call `enable_lora_hotswap` first if ranks differ.
            low_cpu_mem_usage (`bool`, defaults to `True`):
                Whether to leave out the initialization of weights that are loaded anyway.
            allow_partial (`bool`, defaults to `False`):
                Whether to leave out also what matches no layer, such as a text encoder's LoRA, or cannot be applied,
                such as changes of norms; the warning lists it.
            kwargs (*optional*):
                As for `lora_state_dict`.

        Raises:
            LoomVideoInputError: if PEFT is missing, or the file cannot be read, is no LoRA, is damaged or incomplete,
                has other sizes, or holds what cannot be applied. The pipeline stays as it was.
        """
        if not USE_PEFT_BACKEND:
            raise LoomVideoInputError("LoRA adapters need PEFT: install it with `pip install peft`.")
        transformer = getattr(self.transformer, "_orig_mod", self.transformer)
        if any(getattr(module, "fused_projections", False) for module in transformer.modules()):
            raise LoomVideoInputError(
                "A LoRA does not fit fused projections: call `pipe.transformer.unfuse_qkv_projections()` first."
            )
        state_dict, config, left_out = self._prepare(
            pretrained_model_name_or_path_or_dict, transformer, allow_partial, allow_zero=True, options=kwargs
        )
        if left_out:
            logger.warning(left_out)
        _load(transformer, state_dict, config, adapter_name, hotswap, low_cpu_mem_usage, self)

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
        """Loads tensors, in any spelling, into a transformer; `metadata` is what `lora_state_dict` returns."""
        state_dict, config, left_out = prepare_lora(state_dict, metadata, transformer)
        if left_out:
            logger.warning(left_out)
        _load(transformer, state_dict, config, adapter_name, hotswap, low_cpu_mem_usage, _pipeline)

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
        Saves a LoRA as `load_lora_weights` reads it: of the same LoRA the same file, to the byte.

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
            raise LoomVideoInputError(
                "There is nothing to save: pass the LoRA's tensors as `transformer_lora_layers`."
            )
        if not is_main_process:
            return
        metadata = {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in (transformer_lora_adapter_metadata or {}).items()
        }
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={cls.transformer_name: transformer_lora_layers},
            lora_metadata={cls.transformer_name: metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )
        if save_function is None and safe_serialization:
            _sort_metadata(Path(save_directory, weight_name or "pytorch_lora_weights.safetensors"))

    def fuse_lora(
        self,
        components: list[str] = ["transformer"],
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds adapters, by default the active ones, to the transformer's weights; `unfuse_lora` takes them out."""
        super().fuse_lora(
            components=components,
            lora_scale=lora_scale,
            safe_fusing=safe_fusing,
            adapter_names=adapter_names,
            **kwargs,
        )

    def unfuse_lora(self, components: list[str] = ["transformer"], **kwargs: Any) -> None:
        """Takes fused adapters out of the transformer's weights again."""
        super().unfuse_lora(components=components, **kwargs)
