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
"""Cascaded guidance and temporal windows: which branches run at a step, on which frames, and how much each counts."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance

from .loomvideo_errors import LoomVideoInputError


# Guidance's branches: the name of each one's hidden states, and whether it sees the source and the references.
BRANCHES = {
    "cond": ("prompt_embeds", True),
    "visual": ("visual_prompt_embeds", True),
    "uncond": ("negative_prompt_embeds", False),
}

# Makes the guided velocity of those of the branches that run
Combine = Callable[[list[torch.Tensor]], torch.Tensor]


def guidance_coefficients(
    guidance_scale: float, guidance_scale_visual: float, has_visual_input: bool
) -> dict[str, float]:
    """
    What each branch's velocity is multiplied by; branches that do not count are left out (architecture: Guidance).

    With visual input, `u + s_v (v - u) + s_t (c - v)` for the unconditional, visual and full branch; without,
    `u + s_t (c - u)`.
    """
    if guidance_scale <= 1 and guidance_scale_visual <= 1:
        return {"cond": 1.0}
    if has_visual_input:
        coefficients = {
            "cond": guidance_scale,
            "visual": guidance_scale_visual - guidance_scale,
            "uncond": 1 - guidance_scale_visual,
        }
    else:
        coefficients = {"cond": guidance_scale, "uncond": 1 - guidance_scale}
    return {branch: coefficient for branch, coefficient in coefficients.items() if coefficient != 0}


def weigh(predictions: Iterable[torch.Tensor], coefficients: Iterable[float]) -> torch.Tensor:
    """The weighted sum of the branches' velocities, float32."""
    velocity: Any = 0.0
    for prediction, coefficient in zip(predictions, coefficients):
        velocity = velocity + coefficient * prediction.float()
    return velocity


def follow(guider: BaseGuidance, has_visual_input: bool) -> tuple[list[str], Combine]:
    """
    Asks a guider, whose state is set, which branches it wants.

    Returns:
        Them, and what makes the guided velocity of their velocities.
    """
    # Guiders of diffusers take the first of the values, and maybe the second.
    values = ("cond", "uncond", "visual") if has_visual_input else ("cond", "uncond")
    states = guider.prepare_inputs({"branch": values})

    def combine(predictions: list[torch.Tensor]) -> torch.Tensor:
        for state, prediction in zip(states, predictions):
            state.noise_pred = prediction.float()
        return guider(states)[0]

    return [state.branch for state in states], combine


def guided_steps(num_steps: int, guidance_interval: tuple[float, float]) -> range:
    """Which of the denoising steps are guided, by the shares of them at which guidance begins and ends."""
    first, last = (round(share * num_steps) for share in guidance_interval)
    return range(first, last)


def divide_into_windows(
    num_frames: int, window_frames: int = 121, window_overlap: int | None = None, frames_per_latent: int = 4
) -> list[tuple[slice, torch.Tensor]]:
    """
    Divides a video evenly into windows that overlap.

    Args:
        num_frames: frames of the video, 4k + 1.
        window_frames: frames of a window at most, 4k + 1.
        window_overlap: frames that neighbours share at least, 4k; None for a quarter of a window.
        frames_per_latent: how many frames one latent frame stands for, after the first.

    Returns:
        For each window its latent frames, and their weights, float32 `[latent frames of the window]`. Weights fall
        towards the ends of a window, where its neighbour takes over; those of a frame sum to 1 over the windows.
    """
    length, window = ((count - 1) // frames_per_latent + 1 for count in (num_frames, window_frames))
    overlap = window // 4 if window_overlap is None else window_overlap // frames_per_latent
    count = math.ceil(max(length - window, 0) / (window - overlap)) + 1
    window = min(window, length)
    starts = [round(index * (length - window) / max(count - 1, 1)) for index in range(count)]
    places = torch.arange(1, window + 1)
    ramp = torch.minimum(places, places.flip(0)).clamp(max=overlap + 1).float()
    total = torch.zeros(length)
    for start in starts:
        total[start : start + window] += ramp
    frames = [slice(start, start + window) for start in starts]
    return [(part, ramp / total[part]) for part in frames]


def exchange_predictions(predictions: list[torch.Tensor], group: torch.distributed.ProcessGroup) -> None:
    """Fills in what other processes of a group predicted: the first branch is the first's, and so on in turn."""
    for index, prediction in enumerate(predictions):
        predictions[index] = prediction.contiguous()
        torch.distributed.broadcast(predictions[index], group_src=index % group.size(), group=group)


class BranchCaches:
    """What the transformer keeps over the steps of one call, for each branch: see `LoomVideoKVCache`."""

    def __init__(self, create_kv_cache: Callable[..., Any]):
        self.create_kv_cache = create_kv_cache
        # Of each branch, the hidden states that its cache was filled with, and the cache
        self.branches: dict[str, tuple[torch.Tensor, Any]] = {}
        # What branches share that see the same source and references
        self.tokens: dict[bool, Any] = {}

    def of(self, branch: str, encoder_hidden_states: torch.Tensor, has_visual_input: bool) -> Any:
        """The cache of a branch: a new one if its hidden states are not those that it was filled with."""
        filled_with, cache = self.branches.get(branch, (None, None))
        if filled_with is not encoder_hidden_states:
            cache = self.create_kv_cache(self.tokens.get(has_visual_input))
            self.tokens[has_visual_input] = cache.tokens
            self.branches[branch] = (encoder_hidden_states, cache)
        return cache

    def leave_window(self) -> None:
        """Forgets the source's tokens, which are all that differs from window to window."""
        for tokens in self.tokens.values():
            tokens.source = None

    @property
    def nbytes(self) -> int:
        """The memory that all of it takes, in bytes."""
        return sum(cache.nbytes for cache in (*self.tokens.values(), *(cache for _, cache in self.branches.values())))


def check_sigmas(sigmas: Any) -> None:
    """Raises a LoomVideoInputError if these are no noise levels to pass through, one after the other."""
    are_numbers = isinstance(sigmas, (list, tuple)) and sigmas and all(isinstance(sigma, Real) for sigma in sigmas)
    if not are_numbers or not sigmas[0] <= 1 or not sigmas[-1] > 0 or any(a <= b for a, b in pairwise(sigmas)):
        raise LoomVideoInputError(
            "`sigmas` must be a list of falling numbers above 0 and at most 1, such as [1.0, 0.75, 0.5, 0.25], but is "
            f"{sigmas}."
        )
