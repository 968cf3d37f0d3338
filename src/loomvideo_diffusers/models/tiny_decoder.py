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
"""A tiny decoder of latents, whose pictures are nearly those of the VAE, in a fraction of its time and memory."""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..errors import LoomVideoError


NUM_STAGES = 3
BLOCKS_PER_STAGE = 3


class Bound(nn.Module):
    """Keeps latents that are far out within 3 deviations."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return 3 * torch.tanh(latents / 3)


class MemoryBlock(nn.Module):
    """A residual block of frames that sees with each frame the one before it, which is zero before the first."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, hidden_states: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
        """`[B, F, C, h, w]`, and the frame before them, `[B, 1, C, h, w]`."""
        last = torch.zeros_like(hidden_states[:, :1]) if last is None else last
        before = torch.cat([last, hidden_states[:, :-1]], dim=1)
        changed = self.conv(torch.cat([hidden_states, before], dim=2).flatten(0, 1))
        return F.relu_(changed.unflatten(0, hidden_states.shape[:2]) + hidden_states)


class GrowInTime(nn.Module):
    """Makes one or two frames of each."""

    def __init__(self, channels: int, factor: int):
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels, factor * channels, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[N, C, h, w]` as `[N * factor, C, h, w]`."""
        return self.conv(hidden_states).unflatten(1, (self.factor, -1)).flatten(0, 1)


class LoomVideoTinyDecoder(nn.Module):
    """
    The decoder of the TAEHV family of tiny autoencoders, whose public weights for Wan 2.2's latents are called
    `taew2_2`. It takes normalized latents, as the transformer makes them.

    Args:
        latent_channels: channels of the latents.
        widths: channels of the three stages and of the output.
        patch_size: side of the square of pixels that the last layer makes at once.
        scale_factor_spatial, scale_factor_temporal: pixels and frames for one of the latents, as the VAE's
            configuration has them: the last stages scale up.

    Raises:
        LoomVideoError: if three stages cannot scale up by so much.
    """

    def __init__(
        self,
        latent_channels: int = 48,
        widths: tuple[int, int, int, int] = (256, 128, 64, 64),
        patch_size: int = 2,
        scale_factor_spatial: int = 16,
        scale_factor_temporal: int = 4,
    ):
        super().__init__()
        self.latent_channels = latent_channels
        self.patch_size = patch_size
        self.scale_factor_temporal = scale_factor_temporal
        in_space = _doublings(scale_factor_spatial / patch_size)
        in_time = _doublings(scale_factor_temporal)
        layers: list[nn.Module] = [
            Bound(),
            nn.Conv2d(latent_channels, widths[0], 3, padding=1),
            nn.ReLU(inplace=True),
        ]
        for stage in range(NUM_STAGES):
            width, next_width = widths[stage : stage + 2]
            layers += [MemoryBlock(width) for _ in range(BLOCKS_PER_STAGE)]
            layers += [
                nn.Upsample(scale_factor=2 if stage >= NUM_STAGES - in_space else 1),
                GrowInTime(width, 2 if stage >= NUM_STAGES - in_time else 1),
                nn.Conv2d(width, next_width, 3, padding=1, bias=False),
            ]
        layers += [nn.ReLU(inplace=True), nn.Conv2d(widths[-1], 3 * patch_size**2, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, torch.Tensor], scale_factor_spatial: int = 16, scale_factor_temporal: int = 4
    ) -> "LoomVideoTinyDecoder":
        """
        Makes one of the tensors of a file of the family; those of an encoder are left out.

        Raises:
            LoomVideoError: if the tensors are not those of such a decoder.
        """
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("decoder.")}
        convolutions = ("decoder.1.weight", "decoder.8.weight", "decoder.14.weight", "decoder.20.weight")
        missing = [name for name in (*convolutions, "decoder.22.weight") if name not in tensors]
        if missing:
            raise LoomVideoError(f"it has no {missing[0]}, as the decoders of TAEHV have")
        shapes = [tensors[name].shape for name in convolutions]
        tiny = cls(
            shapes[0][1],
            tuple(shape[0] for shape in shapes),  # type: ignore[arg-type]
            math.isqrt(tensors["decoder.22.weight"].shape[0] // 3),
            scale_factor_spatial,
            scale_factor_temporal,
        )
        for name, parameter in tiny.named_parameters():
            # Files can hold what makes two frames of one where one is wanted: the later of them.
            if name in tensors and isinstance(tiny.get_submodule(name.rsplit(".", 2)[0]), GrowInTime):
                tensors[name] = tensors[name][-parameter.shape[0] :]
        try:
            tiny.load_state_dict(tensors)
        except RuntimeError as error:
            raise LoomVideoError(" ".join(str(error).split("\n\t")[1:2]).rstrip(".").lower()) from error
        return tiny.eval().requires_grad_(False)

    def forward(self, latents: torch.Tensor, memory: dict[int, torch.Tensor] | None = None) -> torch.Tensor:
        """
        Decodes normalized latents `[B, C, T, h, w]` to frames `[B, 3, F, H, W]`, about in [-1, 1].

        Args:
            latents: a whole clip, or the next latent frames of one.
            memory: what a call keeps for the next, empty before the first; None for a whole clip.
        """
        memory = {} if memory is None else memory
        is_first = not memory
        batch_size = latents.shape[0]
        hidden_states = latents.to(next(self.parameters())).transpose(1, 2)
        for index, layer in enumerate(self.decoder):
            if isinstance(layer, MemoryBlock):
                last, memory[index] = memory.get(index), hidden_states[:, -1:]
                hidden_states = layer(hidden_states, last)
            else:
                hidden_states = layer(hidden_states.flatten(0, 1)).unflatten(0, (batch_size, -1))
        frames = F.pixel_shuffle(hidden_states, self.patch_size).transpose(1, 2)
        # The first latent frame stands for one frame of pixels, the last of those that are made of it.
        return 2 * frames[:, :, self.scale_factor_temporal - 1 if is_first else 0 :] - 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes normalized latents `[B, C, T, h, w]` to `[B, 3, F, H, W]` in [-1, 1]."""
        return torch.cat(list(self.decode_in_chunks(latents)), dim=2)

    def decode_in_chunks(self, latents: torch.Tensor, chunk_size: int = 1) -> Iterator[torch.Tensor]:
        """Yields the frames of `decode` for so many latent frames at a time, after the first alone."""
        # Where the latents are, without a component of the pipeline: it is as small as a picture.
        self.to(latents.device)
        memory: dict[int, torch.Tensor] = {}
        for start in (0, *range(1, latents.shape[2], chunk_size)):
            chunk = latents[:, :, start : start + chunk_size if start else 1]
            yield self(chunk, memory).clamp(-1, 1)


def _doublings(factor: float) -> int:
    """How many stages must double to scale up by a factor."""
    for number in range(NUM_STAGES + 1):
        if 2**number == factor:
            return number
    raise LoomVideoError(f"three stages cannot scale up by {factor:g}")
