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
"""A VAE whose pictures several processes share: each has some of their rows."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


def divide_vae(vae: "AutoencoderKLWan", group: dist.ProcessGroup) -> None:
    """
    Divides what the encoder and the decoder do over the processes of a group, which all have to call it alike.

    Each convolution gets the rows beside its own from its neighbors, and attention all of them, so that the result is
    that of one process. Pictures with fewer rows of latents than there are processes are not divided.
    """
    rows = Rows(group)
    scale = vae.config.scale_factor_spatial // (vae.config.patch_size or 1)
    coders: list[tuple[Any, int]] = [(vae.encoder, scale), (vae.decoder, 1)]
    for coder, rows_of_one in coders:
        coder.forward = partial(_run_coder, rows, rows_of_one, coder.forward)
        for layer in coder.modules():
            divided = _divided(layer)
            if divided is not None:
                layer.forward = partial(divided, rows, layer.forward)


def _divided(layer: nn.Module) -> Callable | None:
    """What a layer that looks beyond a pixel does instead."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock

    if isinstance(layer, nn.ZeroPad2d):
        return _pad
    if isinstance(layer, WanAttentionBlock):
        return _attend
    if isinstance(layer, (nn.Conv2d, nn.Conv3d)) and layer.kernel_size[-2] > 1 and layer.stride[-2] == 1:
        return _convolve
    return None


class Rows:
    """
    The rows of this process.

    Attributes:
        shares: how many rows of latents each process has of the picture that is being coded; empty if it is not
            divided.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self.rank = group.rank()
        self.shares: list[int] = []

    def choose(self, num_rows: int) -> None:
        size = self.group.size()
        self.shares = []
        if num_rows >= size:
            self.shares = [num_rows // size + (rank < num_rows % size) for rank in range(size)]

    def mine(self, pictures: torch.Tensor) -> torch.Tensor:
        """Cuts this process's rows out of all."""
        step = pictures.shape[-2] // sum(self.shares)
        start = sum(self.shares[: self.rank]) * step
        return pictures.narrow(-2, start, self.shares[self.rank] * step).contiguous()

    def all(self, pictures: torch.Tensor) -> torch.Tensor:
        """Puts the rows of all processes together."""
        step = pictures.shape[-2] // self.shares[self.rank]
        missing = (max(self.shares) - self.shares[self.rank]) * step
        parts = self._gather(F.pad(pictures, (0, 0, 0, missing)))
        return torch.cat([part.narrow(-2, 0, share * step) for part, share in zip(parts, self.shares)], dim=-2)

    def extend(self, pictures: torch.Tensor) -> torch.Tensor:
        """Adds the neighbors' rows, one above and one below; where there is none, zeros."""
        edges = self._gather(torch.cat([pictures[..., :1, :], pictures[..., -1:, :]], dim=-2))
        above = edges[self.rank - 1][..., 1:, :] if self.rank > 0 else torch.zeros_like(edges[0][..., :1, :])
        is_last = self.rank + 1 == len(edges)
        below = torch.zeros_like(edges[0][..., :1, :]) if is_last else edges[self.rank + 1][..., :1, :]
        return torch.cat([above, pictures, below], dim=-2)

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in self.shares]
        dist.all_gather(gathered, tensor.contiguous(), group=self.group)
        return gathered


def _run_coder(rows: Rows, scale: int, forward: Callable, pictures: torch.Tensor, **options: Any) -> torch.Tensor:
    rows.choose(pictures.shape[-2] // scale)
    if not rows.shares:
        return forward(pictures, **options)
    return rows.all(forward(rows.mine(pictures), **options))


def _convolve(
    rows: Rows, forward: Callable, pictures: torch.Tensor, cache_x: torch.Tensor | None = None
) -> torch.Tensor:
    if not rows.shares:
        return forward(pictures) if cache_x is None else forward(pictures, cache_x)
    extended = [rows.extend(part) for part in (pictures, cache_x) if part is not None]
    return forward(*extended)[..., 1:-1, :]


def _pad(rows: Rows, forward: Callable, pictures: torch.Tensor) -> torch.Tensor:
    """What is padded below, before a stride of two, is the neighbor's row."""
    padded = forward(pictures)
    if rows.shares:
        padded[..., -1, : pictures.shape[-1]] = rows.extend(pictures)[..., -1, :]
    return padded


def _attend(rows: Rows, forward: Callable, pictures: torch.Tensor) -> torch.Tensor:
    return rows.mine(forward(rows.all(pictures))) if rows.shares else forward(pictures)
