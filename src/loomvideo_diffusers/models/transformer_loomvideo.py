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
"""The LoomVideo diffusion transformer (arXiv 2606.06042)."""

import importlib
import math
import os
import re
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from diffusers.utils import apply_lora_scale, is_accelerate_available


if __name__.startswith("diffusers_modules.") and ".loomvideo_code_" not in __name__:
    # Diffusers lays the code of all folders into one, and runs it anew at each load. It runs once instead, as a
    # package named by its content: no folder changes what another runs, and other processes can unpickle its classes.
    _path = Path(__file__)
    _names = {_path.stem, *re.findall(r"^\s*from \.(\w+) import", _path.read_text(encoding="utf-8"), re.MULTILINE)}
    _code = {f"{name}.py": _path.with_name(f"{name}.py").read_bytes() for name in sorted(_names)}
    _package = _path.with_name(f"loomvideo_code_{sha256(repr(_code).encode()).hexdigest()[:16]}")
    _package.mkdir(exist_ok=True)
    for _name, _content in _code.items():
        _part = _package / f"{_name}.{os.getpid()}"
        _part.write_bytes(_content)
        _part.replace(_package / _name)
    importlib.invalidate_caches()
    _module = importlib.import_module(f"{__package__}.{_package.name}.{_path.stem}")
    del sys.modules[__name__]
    __name__, __package__, __spec__ = _module.__name__, _module.__package__, _module.__spec__  # type: ignore[assignment]

from .transformer_loomvideo_kv_cache import LoomVideoBlockCache, LoomVideoKVCache, LoomVideoTokenCache
from .transformer_loomvideo_single_file import LoomVideoSingleFileMixin
from .transformer_loomvideo_step_caches import LoomVideoCacheMixin


# Reference image k (k = 1, 2, ...) sits at time -10k (architecture: Negative temporal RoPE).
REFERENCE_TIME_STEP = 10

# Attention of PyTorch whose kernels take masks: a whole batch at once, however many samples it has
MASKED_BACKENDS = ("native", "_native_cudnn", "_native_efficient", "_native_math")

# Modules whose weights are in float32 whatever the precision of the others
FLOAT32_MODULES = ["rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"]


def apply_rotary_emb(hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates each pair of channels of `[B, S, heads, head_dim]` by the angles of `[1, S, 1, head_dim / 2]`."""
    pairs = hidden_states.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        # Compilers make one kernel of it, and few of them know complex numbers.
        real, imaginary = pairs.unbind(-1)
        rotated = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    else:
        # The same numbers in a tenth of the time
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return rotated.flatten(-2).type_as(hidden_states)


class LoomVideoAttnProcessor:
    """Self- or cross-attention with queries and keys RMS-normed across heads, through any backend of diffusers."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "LoomVideoAttention",
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        prompt_tokens: torch.Tensor | tuple[int, ...] | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        kv_cache: LoomVideoBlockCache | None = None,
    ) -> torch.Tensor:
        if attn.fused_projections and not attn.is_cross_attention:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), None, None
        query = attn.norm_q(query).unflatten(-1, (attn.heads, -1))

        if kv_cache is not None and kv_cache.key is not None:
            key, value = kv_cache.key, kv_cache.value
        else:
            context = encoder_hidden_states if attn.is_cross_attention else hidden_states
            if attn.fused_projections and attn.is_cross_attention:
                key, value = attn.to_kv(context).chunk(2, dim=-1)
            elif key is None:
                key, value = attn.to_k(context), attn.to_v(context)
            key = attn.norm_k(key).unflatten(-1, (attn.heads, -1))
            value = value.unflatten(-1, (attn.heads, -1))
            if kv_cache is not None:
                kv_cache.key, kv_cache.value = key, value

        if rotary_emb is not None:
            query = apply_rotary_emb(query, *rotary_emb)
            key = apply_rotary_emb(key, *rotary_emb)

        # Every rank holds all MLLM tokens, so only self-attention has to gather its keys.
        parallel_config = None if attn.is_cross_attention else self._parallel_config
        attend = partial(dispatch_attention_fn, backend=self._attention_backend, parallel_config=parallel_config)
        if not isinstance(prompt_tokens, tuple):
            hidden_states = attend(query, key, value, attn_mask=prompt_tokens)
        else:
            samples = zip(query.split(1), key.split(1), value.split(1), prompt_tokens)
            hidden_states = torch.cat([attend(q, k[:, :length], v[:, :length]) for q, k, v, length in samples])
        hidden_states = hidden_states.flatten(2, 3).type_as(query)
        hidden_states = attn.to_out[0](hidden_states)
        return attn.to_out[1](hidden_states)


class LoomVideoAttention(nn.Module, AttentionModuleMixin):
    processor: LoomVideoAttnProcessor
    # After `fuse_projections`
    to_qkv: nn.Linear
    to_kv: nn.Linear

    _default_processor_cls = LoomVideoAttnProcessor
    _available_processors = [LoomVideoAttnProcessor]

    def __init__(self, dim: int, heads: int, eps: float, is_cross_attention: bool):
        super().__init__()
        self.heads = heads
        self.is_cross_attention = is_cross_attention
        self.use_bias = True

        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        self.norm_q = nn.RMSNorm(dim, eps=eps)
        self.norm_k = nn.RMSNorm(dim, eps=eps)

        self.set_processor(LoomVideoAttnProcessor())  # type: ignore[operator]  # of the mixin

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.processor(self, hidden_states, *args, **kwargs)


class LoomVideoFeedForward(FeedForward):
    """Without gradients, its activation is computed in place: its hidden states are a step's largest tensor."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        activation, _, linear = self.net
        hidden_states = activation.proj(hidden_states)
        if torch.is_grad_enabled():
            hidden_states = activation.gelu(hidden_states)
        else:
            torch.ops.aten.gelu_(hidden_states, approximate=activation.approximate)
        return linear(hidden_states)


class FP32RMSNorm(nn.RMSNorm):
    """In float32, because a few channels of an MLLM's hidden states are thousands of times larger than the rest."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        normed = F.rms_norm(hidden_states.float(), self.normalized_shape, self.weight.float(), self.eps)
        return normed.type_as(hidden_states)


class LoomVideoMLLMEmbedder(nn.Module):
    """Maps one MLLM layer's hidden states, `[B, L, mllm_dim]`, to the transformer's width. One serves all blocks."""

    def __init__(self, mllm_dim: int, dim: int, eps: float):
        super().__init__()
        self.norm = FP32RMSNorm(mllm_dim, eps=eps)
        self.linear_1 = nn.Linear(mllm_dim, 4 * dim)
        self.linear_2 = nn.Linear(4 * dim, dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(self.norm(hidden_states)), approximate="tanh"))


class LoomVideoTimeEmbedding(nn.Module):
    """Embeds timesteps `[B]` in 0..1000 as `[B, dim]` for the output and `[B, 6, dim]` for the blocks."""

    def __init__(self, dim: int, freq_dim: int):
        super().__init__()
        self.timesteps_proj = Timesteps(num_channels=freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedder = TimestepEmbedding(in_channels=freq_dim, time_embed_dim=dim)
        self.act_fn = nn.SiLU()
        self.time_proj = nn.Linear(dim, 6 * dim)

    def forward(
        self, timestep: torch.Tensor, embedder_dtype: torch.dtype, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        temb = self.time_embedder(self.timesteps_proj(timestep).to(embedder_dtype)).to(dtype)
        return temb, self.time_proj(self.act_fn(temb)).unflatten(1, (6, -1))


class LoomVideoRotaryPosEmbed(nn.Module):
    """
    Rotary angles of the video's tokens and then of each reference's (architecture: Negative temporal RoPE).

    The video counts time, rows and columns from 0; reference k has time -10k and counts its rows and columns from 0.
    Rows and columns take `2 * (head_dim // 6)` channels each, time the rest, as in Wan.
    """

    def __init__(self, attention_head_dim: int, max_seq_len: int, theta: float = 10000.0):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.theta = theta
        spatial_dim = 2 * (attention_head_dim // 6)
        self.axes_dims = (attention_head_dim - 2 * spatial_dim, spatial_dim, spatial_dim)

    def forward(
        self, video_grid: tuple[int, int, int], reference_grids: list[tuple[int, int]], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns cosines and sines, `[1, S, 1, head_dim / 2]`, and which tokens are references, bool `[1, S, 1]`."""
        for grid in [video_grid, *reference_grids]:
            if max(grid) > self.max_seq_len:
                raise ValueError(
                    f"A grid of {' x '.join(map(str, grid))} patches has more rotary positions on a side than the "
                    f"{self.max_seq_len} of the model: use a smaller or shorter video, or a smaller reference."
                )

        num_frames, height, width = video_grid
        grids = [(torch.arange(num_frames, device=device), height, width)]
        for index, (height, width) in enumerate(reference_grids, start=1):
            grids.append((torch.full((1,), -REFERENCE_TIME_STEP * index, device=device), height, width))

        freqs_dtype = torch.float32 if device.type in ("mps", "npu", "neuron") else torch.float64
        cos, sin = [], []
        for times, height, width in grids:
            shape = (len(times), height, width)
            axes = (times, torch.arange(height, device=device), torch.arange(width, device=device))
            angles_of_axes = []
            for axis, (positions, dim) in enumerate(zip(axes, self.axes_dims)):
                freqs = torch.arange(0, dim, 2, dtype=freqs_dtype, device=device) / dim
                axis_angles = torch.outer(positions.to(freqs_dtype), 1.0 / self.theta**freqs)
                view = [1, 1, 1, -1]
                view[axis] = shape[axis]
                angles_of_axes.append(axis_angles.view(view).expand(*shape, -1))
            angles = torch.cat(angles_of_axes, dim=-1).flatten(0, 2)
            cos.append(angles.cos().float())
            sin.append(angles.sin().float())

        num_tokens = sum(len(part) for part in cos)
        is_reference = torch.arange(num_tokens, device=device) >= math.prod(video_grid)
        return torch.cat(cos)[None, :, None], torch.cat(sin)[None, :, None], is_reference[None, :, None]


class LoomVideoTransformerBlock(nn.Module):
    def __init__(self, dim: int, ffn_dim: int, num_heads: int, cross_attn_norm: bool, eps: float):
        super().__init__()
        # 1. Self-attention
        self.norm1 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = LoomVideoAttention(dim, num_heads, eps, is_cross_attention=False)

        # 2. Cross-attention to one layer of the MLLM
        self.norm2 = FP32LayerNorm(dim, eps, elementwise_affine=True) if cross_attn_norm else nn.Identity()
        self.attn2 = LoomVideoAttention(dim, num_heads, eps, is_cross_attention=True)

        # 3. Feed-forward
        self.norm3 = FP32LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = LoomVideoFeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")

        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        temb: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        num_video_tokens: int | None = None,
        prompt_tokens: torch.Tensor | tuple[int, ...] | None = None,
        kv_cache: LoomVideoBlockCache | None = None,
    ) -> torch.Tensor:
        dtype = hidden_states.dtype
        tables = [(self.scale_shift_table + temb.float()).chunk(6, dim=1)]
        if num_video_tokens is not None:
            # References have no noise level: their time embedding is zero, which is not the embedding of time zero.
            tables.append(self.scale_shift_table.float().chunk(6, dim=1))
        shift_msa, scale_msa, gate_msa, shift_ffn, scale_ffn, gate_ffn = zip(*tables)

        # 1. Self-attention
        norm_hidden_states = self.norm1(hidden_states.float())
        norm_hidden_states = _modulate(norm_hidden_states, scale_msa, shift_msa, num_video_tokens, dtype)
        attn_output = self.attn1(norm_hidden_states, rotary_emb=rotary_emb)
        hidden_states = _add_gated(hidden_states, attn_output, gate_msa, num_video_tokens)

        # 2. Cross-attention
        norm_hidden_states = self.norm2(hidden_states.float()).type_as(hidden_states)
        attn_output = self.attn2(norm_hidden_states, encoder_hidden_states, prompt_tokens, kv_cache=kv_cache)
        hidden_states = hidden_states + attn_output

        # 3. Feed-forward
        norm_hidden_states = self.norm3(hidden_states.float())
        norm_hidden_states = _modulate(norm_hidden_states, scale_ffn, shift_ffn, num_video_tokens, dtype)
        ffn_output = self.ffn(norm_hidden_states)
        return _add_gated(hidden_states, ffn_output, gate_ffn, num_video_tokens)


def _find_prompt_tokens(
    encoder_hidden_states: torch.Tensor,
    mask: torch.Tensor | None,
    backend: str,
    kv_cache: LoomVideoKVCache | None,
) -> tuple[torch.Tensor, torch.Tensor | tuple[int, ...] | None]:
    """
    Says which hidden states of a padded batch are no padding, as the backend of attention can be told.

    Returns:
        The hidden states, and a mask, bool `[B, 1, 1, L]`. Most of the fastest kernels take none: for them, padding is
        moved behind the tokens of each prompt, whose order cross-attention does not see, and it is how many these are.
    """
    if mask is None:
        return encoder_hidden_states, None
    if backend in MASKED_BACKENDS:
        return encoder_hidden_states, mask[:, None, None]
    if kv_cache is not None and kv_cache.prompt_lengths is not None:
        return encoder_hidden_states, kv_cache.prompt_lengths
    lengths = tuple(mask.sum(dim=1).tolist())
    if kv_cache is not None:
        kv_cache.prompt_lengths = lengths
    order = (~mask).int().argsort(dim=1, stable=True)
    return encoder_hidden_states.take_along_dim(order[:, None, :, None], dim=2), lengths


def _modulate(
    hidden_states: torch.Tensor,
    scales: tuple[torch.Tensor, ...],
    shifts: tuple[torch.Tensor, ...],
    num_video_tokens: int | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Scales and shifts the video's tokens by one row, and those of the references, if there are any, by another."""
    modulated = _add_product(shifts[0], hidden_states, 1 + scales[0], dtype)
    if num_video_tokens is not None:
        references = hidden_states[:, num_video_tokens:]
        modulated[:, num_video_tokens:] = _add_product(shifts[1], references, 1 + scales[1], dtype)
    return modulated


def _add_gated(
    hidden_states: torch.Tensor, output: torch.Tensor, gates: tuple[torch.Tensor, ...], num_video_tokens: int | None
) -> torch.Tensor:
    """Adds a layer's output, times one row for the video's tokens and another for those of the references."""
    added = _add_product(hidden_states, output, gates[0], hidden_states.dtype)
    if num_video_tokens is not None:
        references = hidden_states[:, num_video_tokens:]
        added[:, num_video_tokens:] = _add_product(
            references, output[:, num_video_tokens:], gates[1], hidden_states.dtype
        )
    return added


def _add_product(
    hidden_states: torch.Tensor, one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """`hidden_states + one * other`, computed in float32, in the size of `one`."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or one.device.type not in ("cpu", "cuda", "meta"):
        return torch.addcmul(hidden_states.float(), one.float(), other).to(dtype)
    # The same numbers in one pass, which casts what it reads and writes
    return torch.addcmul(hidden_states, one, other, out=torch.empty_like(one, dtype=dtype))


class LoomVideoTransformer3DModel(
    ModelMixin, ConfigMixin, PeftAdapterMixin, LoomVideoSingleFileMixin, LoomVideoCacheMixin, AttentionMixin
):
    r"""
    The LoomVideo transformer: Wan2.2-TI2V-5B's blocks, with each block reading one layer of a multimodal LLM, a source
    video added to the noised tokens (Scale-and-Add), and reference images appended at negative times.

    Args:
        patch_size (`tuple[int, int, int]`, defaults to `(1, 2, 2)`):
            Latent frames, rows and columns in a token; the first must be 1.
        num_attention_heads (`int`, defaults to `24`):
            Attention heads; the inner width is `num_attention_heads * attention_head_dim`.
        attention_head_dim (`int`, defaults to `128`):
            Channels of a head, even.
        in_channels (`int`, defaults to `48`):
            Channels of the latents.
        out_channels (`int`, defaults to `48`):
            Channels of the predicted velocity.
        mllm_dim (`int`, defaults to `4096`):
            Width of the MLLM's hidden states.
        freq_dim (`int`, defaults to `256`):
            Width of the sinusoidal time embedding.
        ffn_dim (`int`, defaults to `14336`):
            Inner width of the feed-forward layers.
        num_layers (`int`, defaults to `30`):
            Number of blocks, and of MLLM layers read.
        cross_attn_norm (`bool`, defaults to `True`):
            Whether the queries of cross-attention are layer-normed.
        eps (`float`, defaults to `1e-6`):
            Epsilon of all norms.
        rope_max_seq_len (`int`, defaults to `1024`):
            The largest number of latent frames, or of rows or columns of patches.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "norm"]
    _no_split_modules = ["LoomVideoTransformerBlock"]
    # Without Accelerate, Diffusers refuses to load a model that has this: then `__init__` sees to it, and weights are
    # copied into what it made.
    _keep_in_fp32_modules = FLOAT32_MODULES if is_accelerate_available() else None
    _float32_modules = FLOAT32_MODULES
    _supports_param_buffer_assignment = False
    # T5 projection of the published file, which no block reads.
    _keys_to_ignore_on_load_unexpected = ["condition_embedder.text_embedder"]
    _repeated_blocks = ["LoomVideoTransformerBlock"]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        in_channels: int = 48,
        out_channels: int = 48,
        mllm_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 14336,
        num_layers: int = 30,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
    ) -> None:
        super().__init__()
        inner_dim = num_attention_heads * attention_head_dim

        # 1. Tokens and their positions
        self.patch_embedding = nn.Conv3d(in_channels, inner_dim, kernel_size=patch_size, stride=patch_size)
        self.source_patch_embedding = nn.Conv3d(in_channels, inner_dim, kernel_size=patch_size, stride=patch_size)
        self.rope = LoomVideoRotaryPosEmbed(attention_head_dim, rope_max_seq_len)

        # 2. Conditions
        self.condition_embedder = LoomVideoTimeEmbedding(inner_dim, freq_dim)
        self.mllm_embedder = LoomVideoMLLMEmbedder(mllm_dim, inner_dim, eps)

        # 3. Blocks
        self.blocks = nn.ModuleList(
            [
                LoomVideoTransformerBlock(inner_dim, ffn_dim, num_attention_heads, cross_attn_norm, eps)
                for _ in range(num_layers)
            ]
        )

        # 4. Output
        self.norm_out = FP32LayerNorm(inner_dim, eps, elementwise_affine=False)
        self.proj_out = nn.Linear(inner_dim, out_channels * math.prod(patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, inner_dim) / inner_dim**0.5)

        if not is_accelerate_available():
            for name, parameter in self.named_parameters():
                if any(module in name for module in FLOAT32_MODULES):
                    parameter.data = parameter.data.float()

        self.gradient_checkpointing = False

    @property
    def _cp_plan(self) -> dict[str, Any]:
        try:
            from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
        except ImportError as error:
            advice = "pass a `cp_plan`, or install diffusers 0.42"
            raise ImportError(f"This diffusers has no known context parallelism ({error}): {advice}.") from error
        rotary, mask = (ContextParallelInput(split_dim=1, expected_dims=n, split_output=True) for n in (4, 3))
        return {
            "rope": {0: rotary, 1: rotary, 2: mask},
            "blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
            "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
        }

    @property
    def _attention_backend(self) -> str:
        """What `set_attention_backend` chose, or else what holds for all models; nothing if that is not known."""
        block: Any = self.blocks[0]
        if block.attn2.processor._attention_backend is not None:
            return block.attn2.processor._attention_backend
        try:
            from diffusers.models.attention_dispatch import _AttentionBackendRegistry
        except ImportError:
            return ""
        return _AttentionBackendRegistry.get_active_backend()[0]

    def create_kv_cache(self, tokens: LoomVideoTokenCache | None = None) -> LoomVideoKVCache:
        """
        Makes an empty cache for `forward`: one for each guidance branch and call, the same at every step. `tokens` are
        those of a branch of the same call with the same source and references.
        """
        return LoomVideoKVCache(len(self.blocks), tokens)

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        source_hidden_states: torch.Tensor | None = None,
        source_scale: torch.Tensor | None = None,
        reference_hidden_states: list[torch.Tensor] | None = None,
        kv_cache: LoomVideoKVCache | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        r"""
        Predicts the flow velocity of noised latents.

        Args:
            hidden_states (`torch.Tensor` of shape `[B, in_channels, T, H, W]`):
                Noised latents; H and W are multiples of the patch size.
            timestep (`torch.Tensor` of shape `[B]`):
                Timesteps in 0..1000.
            encoder_hidden_states (`torch.Tensor` of shape `[B, num_layers, L, mllm_dim]`):
                The MLLM's hidden states, one layer for each block, in block order (architecture: Deepstack injection).
            encoder_attention_mask (`torch.Tensor` of shape `[B, L]`, bool, *optional*):
                False where a token is padding. `None` when there is none, which is faster.
            source_hidden_states (`torch.Tensor` of the shape of `hidden_states`, *optional*):
                Clean latents of the source video (architecture: Scale-and-Add). `None` means zeros for all samples; a
                row of zeros means that this sample has no source.
            source_scale (`torch.Tensor` of shape `[B]`, *optional*):
                What the source tokens are multiplied by: the timestep over 1000. The published model adds them for
                every sample, with a source or without. `None` leaves them out.
            reference_hidden_states (`list[torch.Tensor]`, *optional*):
                Clean latents of the reference images, each `[B, in_channels, 1, h, w]`, in the order in which the
                prompt counts them. Sizes may differ.
            kv_cache (`LoomVideoKVCache`, *optional*):
                What `create_kv_cache` returned. It keeps what depends on neither `hidden_states` nor `timestep`; all
                other arguments must stay the same as long as it is used.
            attention_kwargs (`dict`, *optional*):
                `scale` is the weight of the active LoRA adapters.
            return_dict (`bool`, defaults to `True`):
                Whether to return a `Transformer2DModelOutput` or a tuple.

        Returns:
            The velocity, `[B, out_channels, T, H, W]`, in the dtype of `hidden_states`.
        """
        num_layers = encoder_hidden_states.shape[1] if encoder_hidden_states.ndim == 4 else None
        if num_layers != len(self.blocks):
            raise ValueError(
                f"`encoder_hidden_states` must be [batch, {len(self.blocks)}, tokens, {self.config.mllm_dim}], one "
                f"MLLM layer for each block, but has shape {tuple(encoder_hidden_states.shape)}."
            )
        if source_hidden_states is not None and source_scale is None:
            raise ValueError("`source_hidden_states` needs a `source_scale`: pass the timestep over 1000.")
        encoder_hidden_states, prompt_tokens = _find_prompt_tokens(
            encoder_hidden_states, encoder_attention_mask, self._attention_backend, kv_cache
        )

        batch_size, _, num_frames, height, width = hidden_states.shape
        patch_frames, patch_height, patch_width = self.config.patch_size
        video_grid = (num_frames // patch_frames, height // patch_height, width // patch_width)
        references = reference_hidden_states or []
        reference_grids = [(image.shape[-2] // patch_height, image.shape[-1] // patch_width) for image in references]

        cache = LoomVideoTokenCache() if kv_cache is None else kv_cache.tokens

        # 1. Tokens: the noised video with its source added, then the references
        tokens = self.patch_embedding(hidden_states)
        if source_scale is not None:
            if cache.source is None:
                # One patch of zeros stands for all.
                patch_of_zeros = hidden_states.new_zeros(1, hidden_states.shape[1], *self.config.patch_size)
                source = patch_of_zeros if source_hidden_states is None else source_hidden_states
                cache.source = self.source_patch_embedding(source)
            tokens = (tokens + source_scale.view(-1, 1, 1, 1, 1) * cache.source).type_as(tokens)
        tokens = tokens.flatten(2)
        if references:
            if cache.references is None:
                cache.references = [self.patch_embedding(image).flatten(2) for image in references]
            tokens = torch.cat([tokens, *cache.references], dim=2)
        tokens = tokens.transpose(1, 2).contiguous()

        if cache.rotary is None:
            cos, sin, is_reference = self.rope(video_grid, reference_grids, hidden_states.device)
            cache.rotary = (cos, sin)
            if references:
                # Context parallelism gives this process a part of the tokens.
                is_part = is_reference.shape[1] < tokens.shape[1]
                cache.num_video_tokens = int((~is_reference).sum()) if is_part else math.prod(video_grid)

        # 2. Time. The time embedder runs in the precision of the modulation tables: both stay in float32 when the
        # model is loaded in half precision, and a table, not being a layer, is never quantized.
        temb, block_temb = self.condition_embedder(timestep, self.scale_shift_table.dtype, tokens.dtype)

        # 3. Blocks, each with its own layer of the MLLM
        is_checkpointed = torch.is_grad_enabled() and self.gradient_checkpointing
        run = self._gradient_checkpointing_func if is_checkpointed else lambda module, *args: module(*args)
        for index, block in enumerate(self.blocks):
            block_cache = None if kv_cache is None else kv_cache.blocks[index]
            is_kept = block_cache is not None and block_cache.key is not None
            mllm_tokens = None if is_kept else run(self.mllm_embedder, encoder_hidden_states[:, index])
            arguments = (block_temb, cache.rotary, cache.num_video_tokens, prompt_tokens, block_cache)
            tokens = run(block, tokens, mllm_tokens, *arguments)

        # 4. Output. References are cut off after the projection, when context parallelism has gathered all tokens.
        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).to(tokens.device).chunk(2, dim=1)
        tokens = (self.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        tokens = self.proj_out(tokens)[:, : math.prod(video_grid)]

        tokens = tokens.reshape(batch_size, *video_grid, patch_frames, patch_height, patch_width, -1)
        output = tokens.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

        if not return_dict:
            return (output,)
        return Transformer2DModelOutput(sample=output)


if "_module" in globals():
    # The classes are those of the package.
    globals().update(vars(_module))
