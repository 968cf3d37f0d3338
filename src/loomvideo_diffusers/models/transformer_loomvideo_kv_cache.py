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
"""What the LoomVideo transformer computes once for all steps of a call."""

import torch


class LoomVideoBlockCache:
    """Keys and values of one block's cross-attention, `[B, L, heads, head_dim]`, which depend on the prompt alone."""

    def __init__(self) -> None:
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None


class LoomVideoTokenCache:
    """What all guidance branches that see the same source and references share: their tokens, and rotary tables."""

    def __init__(self) -> None:
        self.source: torch.Tensor | None = None
        self.references: list[torch.Tensor] | None = None
        self.rotary: tuple[torch.Tensor, torch.Tensor] | None = None
        # How many of this process's tokens are the video's, the others being references; None without references
        self.num_video_tokens: int | None = None

    @property
    def nbytes(self) -> int:
        """The memory that it takes, in bytes."""
        tensors = [self.source, *(self.references or []), *(self.rotary or [])]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class LoomVideoKVCache:
    """
    What does not change over the steps of one guidance branch: cross-attention's keys and values, and what is in
    `tokens`. The first forward fills it, later ones with the same inputs read it.
    """

    def __init__(self, num_layers: int, tokens: LoomVideoTokenCache | None = None):
        self.blocks = [LoomVideoBlockCache() for _ in range(num_layers)]
        self.tokens = LoomVideoTokenCache() if tokens is None else tokens
        # Of a batch whose prompts are padded
        self.prompt_lengths: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """The memory that keys and values take, in bytes; that of the tokens is `tokens.nbytes`."""
        tensors = [tensor for block in self.blocks for tensor in (block.key, block.value)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
