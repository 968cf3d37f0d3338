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
"""How much a step has to compute, and a product that tells how fast this machine multiplies."""

from collections.abc import Callable
from typing import Any

import torch


def count_operations(config: dict[str, Any], num_tokens: int, num_prompt_tokens: int, is_first: bool) -> int:
    """
    The floating-point operations of one branch of a step, of its matrix products, two for each multiplication.

    Args:
        config: of the transformer.
        num_tokens: of the video and the references.
        num_prompt_tokens: of the MLLM.
        is_first: whether keys and values of the prompt are computed, as in the first step.
    """
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    projections = 2 * num_tokens * (4 * dim**2 + 2 * dim**2 + 2 * dim * config["ffn_dim"])
    attention = 4 * dim * num_tokens * (num_tokens + num_prompt_tokens)
    prompt = 2 * num_prompt_tokens * (4 * dim * (config["mllm_dim"] + dim) + 2 * dim**2)
    patch = config["patch_size"][0] * config["patch_size"][1] * config["patch_size"][2]
    ends = 2 * num_tokens * dim * patch * (config["in_channels"] + config["out_channels"])
    return config["num_layers"] * (projections + attention + (prompt if is_first else 0)) + ends


def matrix_product(config: dict[str, Any], num_tokens: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A product as large as the first of a feed-forward layer, to measure how fast this machine multiplies."""
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    tokens = torch.randn(num_tokens, dim, dtype=dtype)
    weight = torch.randn(config["ffn_dim"], dim, dtype=dtype)
    return lambda: torch.nn.functional.linear(tokens, weight)
