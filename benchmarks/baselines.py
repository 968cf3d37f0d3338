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
"""Other ways to compute a step with the same weights: as published, and with the source as additional tokens."""

import math

import torch
import torch.nn as nn
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from loomvideo_diffusers import LoomVideoTransformer3DModel
from loomvideo_diffusers.models.transformer_loomvideo import LoomVideoKVCache


def published_blocks(transformer: LoomVideoTransformer3DModel) -> nn.ModuleList:
    """The transformer's blocks as the published code has them: those of Wan in Diffusers, with the same weights."""
    config = transformer.config
    with torch.device("meta"):
        blocks = nn.ModuleList(
            WanTransformerBlock(
                config.num_attention_heads * config.attention_head_dim,
                config.ffn_dim,
                config.num_attention_heads,
                qk_norm="rms_norm_across_heads",
                cross_attn_norm=config.cross_attn_norm,
                eps=config.eps,
            )
            for _ in transformer.blocks
        )
    blocks.load_state_dict(transformer.blocks.state_dict(), assign=True)
    return blocks.eval()


def published_step(
    transformer: LoomVideoTransformer3DModel,
    blocks: nn.ModuleList,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    source_hidden_states: torch.Tensor,
    source_scale: torch.Tensor,
    reference_hidden_states: list[torch.Tensor],
) -> torch.Tensor:
    """
    One branch of a step as the published code goes about it: every token has modulation rows of its own, and whatever
    the prompt, the source and the references are made into is computed anew. `blocks` are its `published_blocks`.
    """
    video_grid, references = _grids(transformer, hidden_states, reference_hidden_states)
    tokens = transformer.patch_embedding(hidden_states)
    tokens = tokens + source_scale.view(-1, 1, 1, 1, 1) * transformer.source_patch_embedding(source_hidden_states)
    tokens = _join(tokens.type_as(hidden_states), [transformer.patch_embedding(x) for x in reference_hidden_states])
    num_video_tokens = math.prod(video_grid)

    cos, sin, is_reference = transformer.rope(video_grid, references, hidden_states.device)
    # Wan has an angle for each channel, not for each pair.
    rotary_emb = (cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1))
    temb, block_temb = transformer.condition_embedder(timestep, transformer.scale_shift_table.dtype, tokens.dtype)
    rows = torch.where(is_reference, 0, temb[:, None])
    block_rows = torch.where(is_reference[..., None], 0, block_temb[:, None])
    for index, block in enumerate(blocks):
        mllm_tokens = transformer.mllm_embedder(encoder_hidden_states[:, index])
        tokens = block(tokens, mllm_tokens, block_rows, rotary_emb)
    return _output(transformer, tokens[:, :num_video_tokens], rows[:, :num_video_tokens], video_grid)


def concatenated_step(
    transformer: LoomVideoTransformer3DModel,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    source_hidden_states: torch.Tensor,
    kv_cache: LoomVideoKVCache,
) -> torch.Tensor:
    """
    One branch of an edit's step in which the source is no addend but as many tokens again, with the same places and
    modulation, as in most editing models. All that this package saves is saved here too.
    """
    video_grid, _ = _grids(transformer, hidden_states, [])
    cache = kv_cache.tokens
    if cache.source is None:
        cache.source = transformer.patch_embedding(source_hidden_states)
        cos, sin, _ = transformer.rope(video_grid, [], hidden_states.device)
        cache.rotary = (torch.cat([cos, cos], dim=1), torch.cat([sin, sin], dim=1))
    tokens = _join(transformer.patch_embedding(hidden_states), [cache.source])
    temb, block_temb = transformer.condition_embedder(timestep, transformer.scale_shift_table.dtype, tokens.dtype)
    for index, block in enumerate(transformer.blocks):
        block_cache = kv_cache.blocks[index]
        mllm_tokens = None
        if block_cache.key is None:
            mllm_tokens = transformer.mllm_embedder(encoder_hidden_states[:, index])
        tokens = block(tokens, mllm_tokens, block_temb, cache.rotary, kv_cache=block_cache)
    return _output(transformer, tokens[:, : math.prod(video_grid)], temb[:, None], video_grid)


def _grids(
    transformer: LoomVideoTransformer3DModel, hidden_states: torch.Tensor, references: list[torch.Tensor]
) -> tuple[tuple[int, int, int], list[tuple[int, int]]]:
    _, patch_height, patch_width = transformer.config.patch_size
    num_frames, height, width = hidden_states.shape[2:]
    grids = [(image.shape[-2] // patch_height, image.shape[-1] // patch_width) for image in references]
    return (num_frames, height // patch_height, width // patch_width), grids


def _join(tokens: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten(2) for part in (tokens, *others)], dim=2).transpose(1, 2).contiguous()


def _output(
    transformer: LoomVideoTransformer3DModel,
    tokens: torch.Tensor,
    rows: torch.Tensor,
    video_grid: tuple[int, int, int],
) -> torch.Tensor:
    shift, scale = (transformer.scale_shift_table + rows.unsqueeze(2)).unbind(2)
    tokens = transformer.proj_out((transformer.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens))
    tokens = tokens.reshape(len(tokens), *video_grid, *transformer.config.patch_size, -1)
    return tokens.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
