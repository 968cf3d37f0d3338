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
"""Pictures of what a run is becoming, while it runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..media import VIDEO_SUFFIXES, write_image, write_video
from ..media.files import check_output_path
from ..media.images import IMAGE_SUFFIXES


if TYPE_CHECKING:
    import torch

STEPS_BETWEEN_PICTURES = 4

# As many as the transformer sees at once by default
MOST_LATENT_FRAMES = 31


class Watch:
    """
    A `callback_on_step_end` that decodes what a run is becoming, every few steps.

    Between two steps the latents move along the velocity, so that where they are heading to is known:
    `x_0 = x_i - sigma_i * (x_i - x_(i-1)) / (sigma_i - sigma_(i-1))` (architecture: Parts, flow prediction).

    Args:
        show: gets the number of the step, from 1, and the frames, uint8 `[F, H, W, 3]`, of a batch the first's.
        num_latent_frames: how many latent frames to decode, from the beginning.
        every: show the result of every so many steps.
    """

    def __init__(
        self,
        show: Callable[[int, np.ndarray], Any],
        num_latent_frames: int = MOST_LATENT_FRAMES,
        every: int = STEPS_BETWEEN_PICTURES,
    ):
        self.show = show
        self.num_latent_frames = num_latent_frames
        self.every = every
        self.latents: torch.Tensor | None = None
        self.sigma = 0.0

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        before, sigma_before = self.latents, self.sigma
        self.latents = tensors["latents"][:1, :, : self.num_latent_frames].clone()
        self.sigma = float(pipe.scheduler.sigmas[pipe.scheduler.step_index])
        is_due = (step + 1) % self.every == 0 and self.sigma not in (0, sigma_before)
        if before is not None and is_due:
            velocity = (self.latents - before) / (self.sigma - sigma_before)
            clean = self.latents - self.sigma * velocity
            chunks = [(chunk[0].float().cpu() / 2 + 0.5) * 255 for chunk in pipe.decode_in_chunks(clean)]
            frames = np.concatenate([chunk.round().byte().permute(1, 2, 3, 0).numpy() for chunk in chunks])
            self.show(step + 1, frames)
        return {}


def watch_in(path: Path) -> Watch:
    """
    A `Watch` that keeps a file up to date: of a picture it holds the first frame, of a video all.

    Args:
        path: ends in one of `VIDEO_SUFFIXES` or `IMAGE_SUFFIXES`; it is whole whenever it is read.

    Raises:
        LoomVideoError: if there can be no such file.
    """
    check_output_path(path, (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Watch(partial(_write_first, path), num_latent_frames=1)
    return Watch(lambda step, frames: write_video(path, frames))


def _write_first(path: Path, step: int, frames: np.ndarray) -> None:
    write_image(path, frames[0])
