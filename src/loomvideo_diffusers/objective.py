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
"""The training objective (spec: training objective)."""

import math

import torch


# Keeps a trace of noise in the clean end of the path.
EPS = 1e-3


def dynamic_shift(num_tokens: int) -> float:
    """How far the timesteps of a sample of so many latent tokens, references included, are shifted towards noise."""
    return min(max(1 + 0.5 * math.log2(num_tokens / 64), 1.0), 8.0)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Noises clean latents `[B, C, T, H, W]` at timesteps `[B]` in [0, 1]; the model is told `1000 * timesteps`."""
    timesteps = timesteps.view(-1, 1, 1, 1, 1)
    return (1 - timesteps) * latents + (EPS + (1 - EPS) * timesteps) * noise


def velocity_target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the model is to predict, at any timestep."""
    return (1 - EPS) * noise - latents


def flow_matching_loss(predictions: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
    """The mean squared error over all elements of samples of any shapes, in float32."""
    errors = [(prediction.float() - target.float()).square().sum() for prediction, target in zip(predictions, targets)]
    return torch.stack(errors).sum() / sum(target.numel() for target in targets)
