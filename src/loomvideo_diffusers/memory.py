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
"""How much of a device's memory a call takes, counted without running it, and what makes it fit."""

import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .acceleration import OFFLOADS, Levers
from .errors import LoomVideoError
from .footage import EditPlan, GenerationPlan
from .models.tiny_decoder import LoomVideoTinyDecoder
from .models.transformer_loomvideo import FLOAT32_MODULES, LoomVideoTransformer3DModel
from .pipelines.loomvideo_frames import mllm_frame_indices
from .pipelines.loomvideo_mllm import (
    DEFAULT_NEGATIVE_PROMPT,
    NEGATIVE_PROMPT_PREFIX,
    PROMPT_PREFIXES,
    keep_vision_only,
    tokenize,
)
from .pipelines.loomvideo_vae import decode_in_chunks, encode_in_chunks


if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan
    from transformers import Qwen3VLModel, Qwen3VLProcessor

# What CUDA, its libraries and what other programs show take of a card besides tensors
RESERVED = 700_000_000
# What convolutions take besides tensors
SCRATCH = 1.08
CHUNK_SIZES = (4, 2, 1)

# Bytes of a weight, its scales apart, which are a hundredth
QUANTIZED = {"float8": 1.01, "int8": 1.01, "nf4": 0.57}


@dataclass(frozen=True)
class CallSize:
    """
    What the memory of a call depends on; by default the longest clip at 480p that is denoised at once.

    Attributes:
        height, width: pixels that the model works at.
        num_frames: of the clip.
        window_frames: of a window.
        num_references: reference images.
        has_source: whether it is an edit.
        prompt: the words.
    """

    height: int = 480
    width: int = 832
    num_frames: int = 121
    window_frames: int = 121
    num_references: int = 0
    has_source: bool = True
    prompt: str = 40 * "word "


@dataclass(frozen=True)
class Parts:
    """The models on the meta device, which have shapes and no weights, and the processor."""

    transformer: LoomVideoTransformer3DModel
    text_encoder: "Qwen3VLModel"
    vae: "AutoencoderKLWan"
    processor: "Qwen3VLProcessor"
    tiny_decoder: LoomVideoTinyDecoder | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """
    How a call fits a device.

    Attributes:
        offload: of `Levers`.
        chunk_size: how many latent frames the VAE takes at once, see `encode_in_chunks`.
        stages: bytes of tensors on the device at the peak of each stage.
    """

    offload: str | None
    chunk_size: int
    stages: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes of tensors on the device at the peak."""
        return max(self.stages.values())

    def describe(self) -> str:
        """In one sentence."""
        offload = "everything on the device" if self.offload is None else f"--offload {self.offload}"
        stages = ", ".join(f"{stage} {size / 1e9:.1f}" for stage, size in self.stages.items())
        return (
            f"{offload}, {self.chunk_size} latent frames at once in the VAE: about {self.peak / 1e9:.1f} GB ({stages})"
        )


def size_of(plan: "EditPlan | GenerationPlan") -> CallSize:
    """The size of a plan's call."""
    settings = plan.settings
    size: dict[str, Any] = {"prompt": settings.prompt, "num_references": len(settings.references)}
    size["window_frames"] = settings.window_frames
    if isinstance(plan, GenerationPlan):
        size |= {"num_frames": plan.settings.num_frames, "has_source": False}
        sides = {"height": settings.height, "width": settings.width}
    elif isinstance(plan.source, PIL.Image.Image):
        size["num_frames"] = 1
        sides = {"height": settings.height or plan.source.height, "width": settings.width or plan.source.width}
    else:
        assert plan.placement is not None
        size["num_frames"] = plan.source.num_model_frames
        sides = {"height": plan.placement.height, "width": plan.placement.width}
    return CallSize(**size | {name: side for name, side in sides.items() if side is not None})


def load_parts(model: str, dtype: torch.dtype, tiny_decoder: LoomVideoTinyDecoder | None = None) -> Parts:
    """Makes the parts of a model folder or repository, whose weights are not read, for those precisions."""
    from diffusers import AutoencoderKLWan
    from transformers import AutoConfig, Qwen3VLModel, Qwen3VLProcessor

    with torch.device("meta"):
        parts = Parts(
            LoomVideoTransformer3DModel.from_config(
                LoomVideoTransformer3DModel.load_config(model, subfolder="transformer")
            ),
            Qwen3VLModel(AutoConfig.from_pretrained(model, subfolder="text_encoder")),
            AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(model, subfolder="vae")),
            Qwen3VLProcessor.from_pretrained(model, subfolder="processor"),
            None if tiny_decoder is None else deepcopy(tiny_decoder).to("meta"),
        )
    for part in (parts.transformer, parts.text_encoder, parts.vae):
        kept = FLOAT32_MODULES if part is parts.transformer else []
        for name, parameter in part.named_parameters():
            if not any(module in name for module in kept):
                parameter.data = parameter.data.to(dtype)
    return parts


def plan_memory(counted: "Counted", gigabytes: float, offloads: Sequence[str] = OFFLOADS) -> MemoryPlan:
    """
    Chooses the fastest way in which a call fits a device.

    Args:
        counted: what the call takes.
        gigabytes: memory of the device.
        offloads: of `Levers`, to choose from, the fastest first; none on a CPU, whose memory is the only one.

    Raises:
        LoomVideoError: if it does not fit in any way.
    """
    plans = (
        MemoryPlan(offload, chunk_size, counted.stages(offload, chunk_size))
        for offload in (None, *offloads)
        for chunk_size in CHUNK_SIZES
    )
    for plan in plans:
        if plan.peak + RESERVED <= gigabytes * 1e9:
            return plan
    size = counted.size
    raise LoomVideoError(
        f"{size.num_frames} frames of {size.height} x {size.width} take {(plan.peak + RESERVED) / 1e9:.1f} GB, and "
        f"not {gigabytes:g}: use a smaller size or window, --quantize, or --vae-decoder."
    )


class Counted:
    """
    What a call takes, in bytes, by parts that do not depend on how it is made to fit.

    Args:
        parts: of the model.
        size: of the call.
        levers: what is done with the model besides offloading it.
    """

    def __init__(self, parts: Parts, size: CallSize, levers: Levers):
        self.parts, self.size = parts, size
        kinds = levers.quantizations()
        self.weights = {
            name: count_weights(getattr(parts, name), kinds.get(name))
            for name in ("transformer", "text_encoder", "vae")
        }
        self.block = {
            "transformer": count_weights(parts.transformer.blocks[0], kinds.get("transformer")),
            "text_encoder": count_weights(parts.text_encoder.language_model.layers[0], kinds.get("text_encoder")),
        }
        vae, transformer = parts.vae.config, parts.transformer.config
        self.height, self.width = (side // vae.scale_factor_spatial for side in (size.height, size.width))
        self.num_latent_frames = (size.num_frames - 1) // vae.scale_factor_temporal + 1
        self.num_window_frames = (min(size.num_frames, size.window_frames) - 1) // vae.scale_factor_temporal + 1
        self.lengths = count_tokens(parts.processor, size)
        self.element = parts.transformer.proj_out.weight.element_size()
        num_states = transformer.num_layers * sum(self.lengths)
        self.embeds = num_states * transformer.mllm_dim * self.element
        # Keys and values
        self.kept = 2 * num_states * transformer.num_attention_heads * transformer.attention_head_dim * self.element
        # In float32: of the result, its velocity, its source, and what the solver keeps
        self.latents = 5 * 4 * transformer.in_channels * self.num_latent_frames * self.height * self.width
        self.step = self._count_step()
        self.coding: dict[tuple[str, int], int] = {}

    def stages(self, offload: str | None, chunk_size: int) -> dict[str, int]:
        """Bytes at the peak of each stage, with an offload of `Levers` or none."""
        # Hidden states as they come, once more when they are stacked, and a layer's own
        text = self.parts.text_encoder.config.text_config
        states = self.parts.transformer.config.num_layers * text.hidden_size + 3 * text.intermediate_size
        prompt = self.element * max(self.lengths) * states
        stages = {"prompt": self._present("text_encoder", offload) + self.embeds + prompt}
        coding = self._present("vae", offload) + self.embeds
        if self.size.has_source:
            stages["source"] = coding + self._count("source", chunk_size)
        stages["denoising"] = self._present("transformer", offload)
        stages["denoising"] += self.embeds + self.kept + self.latents + self.step
        stages["decoding"] = coding + self.latents + self._count("decoding", chunk_size)
        return stages

    def _present(self, running: str, offload: str | None) -> int:
        """Bytes of weights that are on the device while a part is running."""
        if offload is None:
            return sum(self.weights.values())
        resident = self.weights["vae"] if offload == "blocks" else 0
        if running == "vae" or offload == "model" or (offload == "blocks:mllm" and running == "transformer"):
            return self.weights[running]
        if running == "transformer":
            # The block that runs, those before and after it, and what is in none
            return resident + self.weights[running] - self.block[running] * (len(self.parts.transformer.blocks) - 3)
        # Layer by layer, of which the embeddings are the largest
        embeddings = self.parts.text_encoder.language_model.embed_tokens.weight.nbytes
        return resident + max(3 * self.block[running], embeddings)

    def _count_step(self) -> int:
        """Bytes that a forward of one branch takes at its peak besides weights and what is kept."""
        config, dtype = self.parts.transformer.config, self.parts.transformer.proj_out.weight.dtype
        shape = (1, config.in_channels, self.num_window_frames, self.height, self.width)
        embeds = torch.empty(1, config.num_layers, max(self.lengths), config.mllm_dim, dtype=dtype, device="meta")
        latents, timestep = torch.empty(shape, dtype=dtype, device="meta"), torch.empty(1, device="meta")
        return count_peak(
            lambda: self.parts.transformer(
                latents,
                timestep,
                embeds,
                source_hidden_states=latents if self.size.has_source else None,
                source_scale=timestep,
                reference_hidden_states=[latents[:, :, :1]] * self.size.num_references,
            ),
            self.parts.transformer,
        )

    def _count(self, stage: str, chunk_size: int) -> int:
        """Bytes that the VAE takes besides its weights, which after three chunks do not grow any more."""
        if (stage, chunk_size) not in self.coding:
            vae, num_frames = self.parts.vae, 1 + min(self.num_latent_frames - 1, 2 * chunk_size)
            if stage == "source":
                frame = np.zeros((self.size.height, self.size.width, 3), np.uint8)
                frames = [frame] * (1 + vae.config.scale_factor_temporal * (num_frames - 1))
                call: Callable[[], Any] = partial(encode_in_chunks, vae, frames, torch.device("meta"), chunk_size)
            else:
                latents = torch.empty(1, vae.config.z_dim, num_frames, self.height, self.width, device="meta")
                tiny_decoder = self.parts.tiny_decoder
                decode = partial(decode_in_chunks, vae) if tiny_decoder is None else tiny_decoder.decode_in_chunks
                call = partial(deque, decode(latents, chunk_size), 0)
            self.coding[stage, chunk_size] = math.ceil(SCRATCH * count_peak(call, vae))
        return self.coding[stage, chunk_size]


def count_weights(model: nn.Module, quantization: str | None) -> int:
    """Bytes of a model's weights, with those of its linear layers quantized or not."""
    size: float = sum(parameter.nbytes for parameter in model.parameters())
    if quantization is not None:
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                size += layer.weight.numel() * QUANTIZED[quantization] - layer.weight.nbytes
    return math.ceil(size)


def count_tokens(processor: "Qwen3VLProcessor", size: CallSize) -> list[int]:
    """How many tokens the MLLM makes of each branch of guidance: the words', the vision's and the negative one's."""
    picture = PIL.Image.new("RGB", (size.width, size.height))
    source: PIL.Image.Image | np.ndarray | None = None
    kind = "edit" if size.has_source else "generate"
    if size.has_source:
        count = max(2, len(mllm_frame_indices(size.num_frames, size.window_frames)))
        source = np.zeros((count, size.height, size.width, 3), np.uint8) if size.num_frames > 1 else picture
    prefix = PROMPT_PREFIXES[f"{kind} {'video' if size.num_frames > 1 else 'image'}", size.num_references > 0]
    inputs = tokenize(processor, [prefix + size.prompt], [[picture] * size.num_references], [source])
    negative = tokenize(processor, [NEGATIVE_PROMPT_PREFIX + DEFAULT_NEGATIVE_PROMPT], [[]], [None])
    branches = [inputs, negative]
    if size.has_source or size.num_references:
        branches.insert(1, keep_vision_only(processor, inputs))
    return [branch["input_ids"].shape[1] for branch in branches]


def count_peak(call: Callable[[], Any], model: nn.Module) -> int:
    """
    The most bytes of tensors that are there at once while something is computed on the meta device.

    Attention is counted as kernels compute it that never hold all scores at once.

    Args:
        call: what is computed.
        model: whose weights are not counted.
    """
    peak = Peak(model)
    with torch.no_grad(), peak, Attention():
        call()
    return peak.most


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that are there."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.present = self.most = 0
        # By the identity of their memory; the weights' are not counted.
        self.known = {id(tensor.untyped_storage()): 0 for tensor in model.state_dict(keep_vars=True).values()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in self.known:
                memory = tensor.untyped_storage()
                self.known[id(memory)] = memory.nbytes()
                self.present += memory.nbytes()
                weakref.finalize(memory, self._forget, id(memory))
        self.most = max(self.most, self.present)
        return result

    def _forget(self, identity: int) -> None:
        self.present -= self.known.pop(identity)


class Attention(TorchFunctionMode):
    """Makes attention's result without its scores, which no kernel of a GPU holds all at once."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args)) | kwargs
            return given["query"].new_empty(*given["query"].shape[:-1], given["value"].shape[-1])
        return function(*args, **kwargs)
