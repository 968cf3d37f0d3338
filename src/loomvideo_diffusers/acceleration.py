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
"""What makes a pipeline faster or smaller, by one word each."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import LoomVideoError


if TYPE_CHECKING:
    import torch

    from .pipelines import LoomVideoEditPipeline, LoomVideoPipeline

QUANTIZATIONS = ("float8", "int8", "nf4")
PARTS = {"transformer": "transformer", "mllm": "text_encoder"}
CACHES = ("first-block", "taylorseer", "magcache:FILE")
OFFLOADS = ("model", "blocks:mllm", "blocks")
SCHEDULERS = {
    "unipc": "UniPCMultistepScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}

RECOMPILE_LIMIT = 64

# Cards from this compute capability on multiply in float8.
FLOAT8_CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Levers:
    """
    What to do with a pipeline, checked when it is made.

    Attributes:
        quantize: `float8`, `int8` or `nf4` for the weights of the transformer and the MLLM, or of one of them, as in
            `("float8:transformer", "nf4:mllm")`. float8 multiplies in it too, and is for cards that can, with
            `compile`; int8 and nf4 hold the weights alone, and take time to save memory.
        compile: compile the transformer's blocks, and the norms of the VAE: the first step takes longer, the others
            less.
        attention: a backend of Diffusers' attention, such as `native`, `flash`, `_flash_3` or `sage`.
        cache: skip what hardly changes from step to step, which is an approximation: `first-block`, `taylorseer`, or
            `magcache:FILE` with what `loomvideo calibrate` wrote of the model.
        offload: `model` keeps only the model that is running on the device; `blocks` moves the transformer and the
            MLLM block by block while they run, with streams on cuda, and `blocks:mllm` only the MLLM, which runs once,
            so that the transformer is as fast as ever.
        scheduler: `unipc`, `euler`, `heun` or `dpm++` in place of the model's own.

    Raises:
        LoomVideoError: if a word is none of these, or two cannot be combined.
    """

    quantize: Sequence[str] = ()
    compile: bool = False
    attention: str | None = None
    cache: str | None = None
    offload: str | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("cache", CACHES), ("offload", OFFLOADS), ("scheduler", tuple(SCHEDULERS))):
            value = getattr(self, name)
            if value is not None and value not in choices and not _ratios_file(value):
                raise LoomVideoError(f"`{name}` must be {' or '.join(choices)}, but is {value}.")
        if self.cache is not None and _ratios_file(self.cache):
            _cache_config(self.cache)
        self.quantizations()
        if self.quantizations().get("transformer") == "float8" and not self.compile:
            raise LoomVideoError("float8 is slower than bfloat16 unless compiled: add --compile, or choose int8.")

    def quantizations(self) -> dict[str, str]:
        """The kind of quantization of each component that has one."""
        kinds = {}
        for word in [self.quantize] if isinstance(self.quantize, str) else self.quantize:
            kind, _, part = word.partition(":")
            if kind not in QUANTIZATIONS or (part and part not in PARTS):
                raise LoomVideoError(
                    f"`quantize` must be {' or '.join(QUANTIZATIONS)}, and for one part go on with "
                    f":{' or :'.join(PARTS)}, but is {word}."
                )
            for name in [part] if part else PARTS:
                if PARTS[name] in kinds:
                    raise LoomVideoError(f"`quantize` names the {name} twice: say one kind for it.")
                kinds[PARTS[name]] = kind
        return kinds

    def loading_options(self, device: str, dtype: "torch.dtype") -> dict[str, Any]:
        """
        Arguments of `from_pretrained`.

        Raises:
            LoomVideoError: if the device cannot do what is asked for, or a package for it is not installed.
        """
        compilers = (os.environ.get("CXX", "g++"), "clang++", "cc", "cl")
        if self.compile and not any(map(shutil.which, compilers)):
            raise LoomVideoError("Compiling needs a C++ compiler, and there is none: install g++, or leave it out.")
        kinds = self.quantizations()
        if not kinds:
            return {}
        from diffusers.quantizers import PipelineQuantizationConfig

        return {
            "quantization_config": PipelineQuantizationConfig(
                quant_mapping={part: _quantization_config(part, kind, device, dtype) for part, kind in kinds.items()}
            )
        }

    def apply(self, pipe: "LoomVideoPipeline | LoomVideoEditPipeline", device: str) -> None:
        """
        Does to a pipeline what is not done when it is loaded, and brings it to the device.

        Raises:
            LoomVideoError: if an attention backend is not there, or the device cannot offload.
        """
        if self.scheduler is not None:
            pipe.scheduler = _make_scheduler(self.scheduler, pipe.scheduler.config)
        if self.attention is not None:
            try:
                pipe.transformer.set_attention_backend(self.attention)
            except (ValueError, RuntimeError, ImportError) as error:
                reason = " ".join(str(error).split()).removesuffix(".")
                raise LoomVideoError(f"The attention {self.attention} cannot be used here: {reason}.") from error
        if self.cache is not None:
            pipe.transformer.enable_cache(_cache_config(self.cache))
        self._bring(pipe, device)
        if self.compile:
            import torch

            from .pipelines.loomvideo_vae_layers import compile_norms

            # A process that loads several models compiles the same code for each.
            torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
            # Hooks of blocks are Python, at which the graph breaks.
            pipe.transformer.compile_repeated_blocks(fullgraph=self.cache is None and self.offload != "blocks")
            compile_norms(pipe.vae)

    def _bring(self, pipe: "LoomVideoPipeline | LoomVideoEditPipeline", device: str) -> None:
        import torch

        if device.startswith("cuda"):
            # What convolutions are fastest with there
            for layer in pipe.vae.modules():
                if isinstance(layer, torch.nn.Conv3d):
                    layer.to(memory_format=torch.channels_last_3d)
        if self.offload == "model":
            pipe.enable_model_cpu_offload(device=device)
            return
        if self.offload is None:
            pipe.to(device)
            return
        from diffusers.hooks import apply_group_offloading

        options: dict[str, Any] = {
            "onload_device": torch.device(device),
            "offload_device": torch.device("cpu"),
            "use_stream": device.startswith("cuda"),
            # Otherwise each block waits for what the one before has computed before it makes room.
            "record_stream": device.startswith("cuda"),
        }
        apply_group_offloading(pipe.text_encoder, offload_type="leaf_level", **options)
        if self.offload == "blocks":
            pipe.transformer.enable_group_offload(offload_type="block_level", num_blocks_per_group=1, **options)
            pipe.vae.to(device)
        else:
            _take_turns(pipe.transformer, pipe.vae, torch.device(device))


def _take_turns(one: Any, other: Any, device: "torch.device") -> None:
    """Keeps on the device that of two models which ran last."""
    from accelerate import cpu_offload_with_hook

    _, hook = cpu_offload_with_hook(one, device)
    _, other_hook = cpu_offload_with_hook(other, device, prev_module_hook=hook)
    hook.hook.prev_module_hook = other_hook


NO_LEVERS = Levers()


def _quantization_config(part: str, kind: str, device: str, dtype: "torch.dtype") -> Any:
    import diffusers
    import torch
    import transformers

    library: Any = diffusers if part == "transformer" else transformers
    if kind == "nf4":
        if not device.startswith("cuda"):
            raise LoomVideoError(f"nf4 needs a card with CUDA, and the device is {device}: choose int8.")
        return library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int8WeightOnlyConfig, PerRow
    except ImportError as error:
        raise LoomVideoError(f"{kind} needs torchao: pip install 'loomvideo-diffusers[quantization]'.") from error
    if kind == "int8":
        return library.TorchAoConfig(Int8WeightOnlyConfig())
    if not device.startswith("cuda") or torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
        raise LoomVideoError(f"{device} does not multiply in float8: choose int8, or a card of 2023 or later.")
    return library.TorchAoConfig(Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))


def _make_scheduler(name: str, config: Any) -> Any:
    """A scheduler that follows the same flow, with the same shift, which some call `shift` and some `flow_shift`."""
    import diffusers

    shift = config.get("flow_shift", config.get("shift", 1.0))
    scheduler_class = getattr(diffusers, SCHEDULERS[name])
    if name in ("euler", "heun"):
        return scheduler_class(num_train_timesteps=config.num_train_timesteps, shift=shift)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    return scheduler_class(num_train_timesteps=config.num_train_timesteps, **flow)


def _ratios_file(cache: str) -> str:
    """The file in `magcache:FILE`; nothing of another cache."""
    return cache.removeprefix("magcache:") if cache.startswith("magcache:") else ""


def _cache_config(name: str) -> Any:
    from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

    if file := _ratios_file(name):
        from diffusers import MagCacheConfig

        from .calibration import read_ratios

        ratios = read_ratios(Path(file))
        return MagCacheConfig(mag_ratios=ratios, num_inference_steps=len(ratios))
    if name == "first-block":
        return FirstBlockCacheConfig(threshold=0.1)
    return TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=4, max_order=1)
