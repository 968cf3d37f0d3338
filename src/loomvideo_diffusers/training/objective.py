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
"""Timesteps, targets, and the loss of samples of any shape (architecture: Training objective)."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3VLModel

from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from ..pipelines.loomvideo_mllm import run_mllm


# A trace of noise stays at timestep 0.
EPS = 1e-3


@dataclass
class TrainingSample:
    """
    What the loss of one sample depends on, apart from the model.

    Attributes:
        latents: the clean target, normalized, float32 `[C, T, h, w]`.
        prompt: `prompt_embeds`, the hidden states of the MLLM, one layer for each block, `[num_layers, L, mllm_dim]`;
            or if the MLLM is trained, its inputs.
        noise: standard normal, of the shape of `latents`.
        timestep: the noise level, in [0, 1].
        source_latents: the clean source, of the shape of `latents`, or None.
        reference_latents: the clean references, each `[C, 1, h, w]`.
    """

    latents: torch.Tensor
    prompt: dict[str, torch.Tensor]
    noise: torch.Tensor
    timestep: float
    source_latents: torch.Tensor | None = None
    reference_latents: list[torch.Tensor] = field(default_factory=list)


def dynamic_shift(num_tokens: int) -> float:
    """How far timesteps are shifted towards noise: from 1 at 64 tokens, references included, to 8."""
    return min(max(1 + 0.5 * math.log2(num_tokens / 64), 1.0), 8.0)


def sample_timestep(shift: float, generator: torch.Generator) -> float:
    """Draws a timestep in [0, 1] from a logit-normal distribution, shifted towards noise if `shift` is above 1."""
    timestep = torch.randn((), generator=generator, dtype=torch.float64).sigmoid().item()
    return shift * timestep / (1 + (shift - 1) * timestep)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Noises clean latents `[B, C, T, H, W]` at timesteps `[B]` in [0, 1]; the model is told `1000 * timesteps`."""
    timesteps = timesteps.view(-1, 1, 1, 1, 1)
    return (1 - timesteps) * latents + (EPS + (1 - EPS) * timesteps) * noise


def velocity_target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What the model learns to predict; it does not depend on the timestep."""
    return (1 - EPS) * noise - latents


def group_by_shape(samples: list[TrainingSample]) -> list[list[TrainingSample]]:
    """Groups samples whose latents and references have the same shapes, so that one forward pass can take them."""
    groups = {}
    for sample in samples:
        shapes = (sample.latents.shape, *(reference.shape for reference in sample.reference_latents))
        groups.setdefault(shapes, []).append(sample)
    return list(groups.values())


def squared_error(model: torch.nn.Module, samples: list[TrainingSample]) -> torch.Tensor:
    """
    The sum of the squared errors over all elements of samples of the same shapes, in float32.

    Prompts are padded to the longest and masked. Beside samples with a source, one without gets zeros in its place, as
    in the published model. The sums of the groups of a batch, divided by the number of its elements, add up to its
    loss. `model` is the transformer, or a `TransformerWithTextEncoder`.
    """
    latents = torch.stack([sample.latents for sample in samples])
    noise = torch.stack([sample.noise for sample in samples])
    timesteps = torch.tensor([sample.timestep for sample in samples], dtype=torch.float32, device=latents.device)

    source_latents = None
    if any(sample.source_latents is not None for sample in samples):
        source_latents = torch.stack(
            [
                torch.zeros_like(sample.latents) if sample.source_latents is None else sample.source_latents
                for sample in samples
            ]
        )
    references = zip(*(sample.reference_latents for sample in samples))

    velocity = model(
        hidden_states=add_noise(latents, noise, timesteps),
        timestep=1000 * timesteps,
        **_collate_prompts([sample.prompt for sample in samples]),
        source_hidden_states=source_latents,
        source_scale=timesteps,
        reference_hidden_states=[torch.stack(place) for place in references],
        return_dict=False,
    )[0]
    return (velocity.float() - velocity_target(latents, noise)).square().sum()


def _collate_prompts(prompts: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """The prompts of a batch as arguments of the model."""
    if "prompt_embeds" in prompts[0]:
        embeds = [prompt["prompt_embeds"].transpose(0, 1) for prompt in prompts]
        lengths = [len(embed) for embed in embeds]
        places = torch.arange(max(lengths), device=embeds[0].device)
        mask = places < torch.tensor(lengths, device=places.device)[:, None]
        return {
            "encoder_hidden_states": pad_sequence(embeds, batch_first=True).transpose(1, 2),
            "encoder_attention_mask": None if len(set(lengths)) == 1 else mask,
        }
    inputs = {}
    for name in {name for prompt in prompts for name in prompt}:
        tensors = [prompt[name] for prompt in prompts if name in prompt]
        # Pixels and grids of all samples follow each other; of the words, each sample has a row.
        if name.startswith(("pixel_values", "image_grid", "video_grid")):
            inputs[name] = torch.cat(tensors)
        else:
            inputs[name] = pad_sequence([tensor[0] for tensor in tensors], batch_first=True)
    return {"prompt_inputs": inputs}


class TransformerWithTextEncoder(nn.Module):
    """
    The transformer and the MLLM, trained as one model.

    It takes the transformer's arguments, but `prompt_inputs`, what the processor returns, in place of
    `encoder_hidden_states` and their mask.
    """

    transformer: LoomVideoTransformer3DModel
    text_encoder: Qwen3VLModel

    def __init__(self, transformer: LoomVideoTransformer3DModel, text_encoder: Qwen3VLModel):
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(self, prompt_inputs: dict[str, torch.Tensor], **inputs: Any) -> tuple[torch.Tensor]:
        hidden_states, mask = run_mllm(self.text_encoder, prompt_inputs, self.transformer.config.num_layers)
        return self.transformer(encoder_hidden_states=hidden_states, encoder_attention_mask=mask, **inputs)
