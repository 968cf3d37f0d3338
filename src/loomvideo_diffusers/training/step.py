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
"""The gradients of one step: its samples, their timesteps and noise, and the loss over all of them."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .batches import Item
from .data import Clip
from .features import Encoders, Features
from .objective import TrainingSample, dynamic_shift, group_by_shape, sample_timestep, squared_error


@dataclass(frozen=True)
class SampleMaker:
    """
    Turns items into samples.

    Attributes:
        encoders: of clips; None where features are read from disk.
        patch_size: frames, height and width of a token, in latents.
        timestep_shift: of all samples, or None for the one that a sample's number of tokens calls for.
        vae_config: of the VAE, for the size of the latents.
        device: where the samples go.
    """

    encoders: Encoders | None
    patch_size: tuple[int, int, int]
    timestep_shift: float | None
    vae_config: dict[str, Any]
    device: torch.device

    def make(self, item: Item) -> TrainingSample:
        """Encodes a clip if that is not done, and draws its timestep and its noise by the seed of its draw."""
        features = item.content if self.encoders is None else self.encoders.encode(item.content)
        generator = torch.Generator().manual_seed(item.seed)
        positions = sum(latents[0].numel() for latents in (features.latents, *features.reference_latents))
        shift = self.timestep_shift
        if shift is None:
            shift = dynamic_shift(positions // math.prod(self.patch_size))
        timestep = sample_timestep(shift, generator)
        noise = torch.randn(features.latents.shape, generator=generator)
        return TrainingSample(
            latents=features.latents.to(self.device),
            prompt={name: tensor.to(self.device) for name, tensor in features.prompt.items()},
            noise=noise.to(self.device),
            timestep=timestep,
            source_latents=None if features.source_latents is None else features.source_latents.to(self.device),
            reference_latents=[latents.to(self.device) for latents in features.reference_latents],
        )

    def num_elements(self, content: Clip | Features) -> int:
        """How many elements the latents of a sample have."""
        if isinstance(content, Features):
            return content.latents.numel()
        num_frames, height, width, _ = content.target.shape
        side = self.vae_config["scale_factor_spatial"]
        frames = (num_frames - 1) // self.vae_config["scale_factor_temporal"] + 1
        return self.vae_config["z_dim"] * frames * (height // side) * (width // side)


def compute_gradients(
    accelerator: Accelerator, model: nn.Module, samples: SampleMaker, batches: list[list[Item]]
) -> float:
    """
    Adds the gradients of one step to the weights.

    Returns:
        The loss: the mean squared error over all elements of all samples of all processes, however they are divided.
    """
    num_elements = torch.tensor(
        float(sum(samples.num_elements(item.content) for batch in batches for item in batch)),
        device=accelerator.device,
    )
    num_elements = accelerator.reduce(num_elements).item()
    loss = torch.zeros((), device=accelerator.device)
    for index, batch in enumerate(batches):
        groups = group_by_shape([samples.make(item) for item in batch])
        for group in groups:
            is_last = index == len(batches) - 1 and group is groups[-1]
            with nullcontext() if is_last else accelerator.no_sync(model):
                error = squared_error(model, group) / num_elements
                # The gradients of all processes are averaged.
                accelerator.backward(error * accelerator.num_processes)
            loss += error.detach()
    return accelerator.reduce(loss).item()
