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
"""The checkpoint of the LoomVideo transformer in a single file: its config is read off its tensors."""

import math
import os
from typing import TYPE_CHECKING, Any

import torch
from diffusers.loaders import FromOriginalModelMixin


if TYPE_CHECKING:
    from diffusers.quantizers.quantization_config import QuantizationConfigMixin


class LoomVideoSingleFileMixin(FromOriginalModelMixin):
    """Loads what Diffusers' own loader, which knows its own models alone, does not."""

    # Parts of the names of modules that are in float32 whatever the precision of the others
    _float32_modules: list[str] = []

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        config: str | os.PathLike | None = None,
        subfolder: str | None = None,
        dtype: torch.dtype | None = None,
        quantization_config: "QuantizationConfigMixin | None" = None,
        **kwargs: Any,
    ) -> "LoomVideoSingleFileMixin":
        r"""
        Loads the published checkpoint, `gen_model.pth`, or a safetensors or GGUF file with the same names.

        Args:
            pretrained_model_link_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A local file, the address of a file on the Hub, or a state dict. Pickled code is never run.
            config (`str` or `os.PathLike`, *optional*):
                A folder or repository with the `config.json` of a LoomVideo or of a Wan transformer. Without it the
                sizes are read off the tensors and heads are 128 wide, as in the released model.
            subfolder (`str`, *optional*):
                Where in `config` the file lies.
            dtype (`torch.dtype`, *optional*):
                Precision of the model; by default that of the file. `torch_dtype` is its older name.
            quantization_config (`QuantizationConfigMixin`, *optional*):
                `GGUFQuantizationConfig(compute_dtype=...)` for a GGUF file, whose layers stay quantized, or a
                `TorchAoConfig`, by which those of other files are quantized.
            kwargs (*optional*):
                Constructor arguments, which go before the `config`, and the Hub's: `revision`, `token`, `cache_dir`,
                `force_download`, `local_files_only`, `proxies`.

        Raises:
            ValueError: if the tensors are not those of a LoomVideo transformer of these sizes.
        """
        try:
            from diffusers.loaders.single_file_utils import load_single_file_checkpoint
            from diffusers.models.model_loading_utils import load_model_dict_into_meta
            from diffusers.quantizers import DiffusersAutoQuantizer
        except ImportError as error:
            raise ImportError(
                "This diffusers has no loader of single files that is known here: load a model folder with "
                f"`from_pretrained`, or install diffusers 0.42 ({error})."
            ) from error
        dtype = kwargs.pop("torch_dtype", dtype)
        expected_arguments = cls._get_init_keys(cls)
        model_config = {name: kwargs.pop(name) for name in list(kwargs) if name in expected_arguments}
        quantizer = None
        if quantization_config is not None:
            quantizer = DiffusersAutoQuantizer.from_config(quantization_config, pre_quantized=False)
            quantizer.validate_environment()
            dtype = quantizer.update_torch_dtype(dtype)
        if isinstance(pretrained_model_link_or_path_or_dict, dict):
            checkpoint = pretrained_model_link_or_path_or_dict
        else:
            checkpoint = load_single_file_checkpoint(str(pretrained_model_link_or_path_or_dict), **kwargs)
        if not isinstance(checkpoint, dict):
            raise ValueError(
                f"This is not a LoomVideo checkpoint: it holds a {type(checkpoint).__name__}, not tensors."
            )
        unused = tuple(cls._keys_to_ignore_on_load_unexpected)
        checkpoint = {name: tensor for name, tensor in checkpoint.items() if not name.startswith(unused)}
        if quantizer is None and any(hasattr(tensor, "quant_type") for tensor in checkpoint.values()):
            raise ValueError(
                "The tensors of this file are quantized: pass "
                "`quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16)`."
            )
        # Tensors of GGUF files are bytes, and know what shape they stand for; what is no tensor has none.
        shapes = {
            name: tuple(getattr(tensor, "quant_shape", getattr(tensor, "shape", ())))
            for name, tensor in checkpoint.items()
        }

        if config is not None:
            loaded = cls.load_config(config, subfolder=subfolder, **kwargs)
            model_config = {name: value for name, value in loaded.items() if name in expected_arguments} | model_config
        try:
            model_config = _config_from_shapes(shapes, model_config.get("attention_head_dim", 128)) | model_config
        except KeyError as error:
            raise ValueError(f"This is not a LoomVideo checkpoint: it has no tensor {error}.") from error

        with torch.device("meta"):
            model = cls.from_config(model_config)
        expected = model.state_dict()
        wrong = [name for name in expected if expected[name].shape != shapes.get(name)]
        wrong += [name for name in shapes if name not in expected]
        if wrong:
            raise ValueError(
                f"{len(wrong)} tensors of the checkpoint are missing, unknown or of another shape than the config "
                f"says, the first is {wrong[0]}: pass the `config` that belongs to the file."
            )
        if quantizer is not None:
            quantizer.preprocess_model(
                model, device_map=None, state_dict=checkpoint, keep_in_fp32_modules=cls._float32_modules
            )
            load_model_dict_into_meta(
                model,
                checkpoint,
                dtype,
                hf_quantizer=quantizer,
                keep_in_fp32_modules=cls._float32_modules,
                device_map={"": torch.device("cpu")},
            )
            quantizer.postprocess_model(model)
            model.hf_quantizer = quantizer
            return model.eval()
        if dtype is not None:
            for name, tensor in checkpoint.items():
                keep_in_fp32 = any(part in name for part in cls._float32_modules)
                checkpoint[name] = tensor.to(torch.float32 if keep_in_fp32 else dtype)
        model.load_state_dict(checkpoint, assign=True)
        return model.eval()


def _config_from_shapes(shapes: dict[str, tuple[int, ...]], attention_head_dim: int) -> dict[str, Any]:
    inner_dim, in_channels, *patch_size = shapes["patch_embedding.weight"]
    return {
        "patch_size": tuple(patch_size),
        "num_attention_heads": inner_dim // attention_head_dim,
        "attention_head_dim": attention_head_dim,
        "in_channels": in_channels,
        "out_channels": shapes["proj_out.weight"][0] // math.prod(patch_size),
        "mllm_dim": shapes["mllm_embedder.norm.weight"][0],
        "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
    }
