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
"""What denoising makes of clips for training, so that the decoder can learn to draw that as sharp as it should be."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from ..media import write_whole
from ..pipelines import LoomVideoPipeline
from . import NUM_FRAMES, OPTIONS, SEED, SIDE
from .evaluation import call
from .fitting import DEVICE
from .tasks import TASKS, Example, sample_example
from .world import render


VIDEO_TASKS = tuple(task for task in TASKS if task not in ("text to image", "image"))
NUM_BATCHES = 300
BATCH_SIZE = 6
# The clips get noise and lose it again. With less noise than this it is as good as none, with more the model may well
# decide on another clip.
LEAST_NOISE, MOST_NOISE = 0.2, 0.8
NUM_STEPS = 4


class LateScheduler(UniPCMultistepScheduler):
    """Begins where there is but a share of noise, its `level`."""

    level = 1.0

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        shift = self.config.flow_shift
        first = self.level / (shift - (shift - 1) * self.level)  # before it is shifted
        super().set_timesteps(sigmas=np.linspace(first, 0, num_inference_steps + 1)[:-1], device=device)


def sample_batch(index: int) -> list[Example]:
    """Draws examples of one task and one size and length, nothing held out among them."""
    rng = np.random.default_rng([SEED, 2, index])
    task = VIDEO_TASKS[index % len(VIDEO_TASKS)]
    examples: list[Example] = []
    while len(examples) < BATCH_SIZE:
        example = sample_example(task, rng)
        if (example.target.width, example.num_frames) == (SIDE, NUM_FRAMES):
            examples.append(example)
    return examples


@torch.no_grad()
def write_denoised(pipe: LoomVideoPipeline, folder: Path) -> None:
    """
    Gives clips noise and has the model take it away, and keeps the latents of each batch, unless they are there.

    Args:
        pipe: the model.
        folder: for the files that `read_denoised` reads, of `NUM_BATCHES` batches.
    """
    scheduler = LateScheduler.from_config(pipe.scheduler.config)
    pipe = LoomVideoPipeline(**pipe.components | {"scheduler": scheduler}).to(DEVICE)
    for index in tqdm(range(NUM_BATCHES), desc="Denoising clips"):
        path = _path(folder, index)
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(2**32 * SEED + index)
        scheduler.level = level = np.random.default_rng([SEED, 3, index]).uniform(LEAST_NOISE, MOST_NOISE)
        examples = sample_batch(index)
        latents = pipe.encode_pixels(draw_targets(examples).to(DEVICE))
        noise = torch.randn(latents.shape, generator=generator).to(DEVICE)
        with torch.autocast(DEVICE, torch.bfloat16):
            options: dict[str, Any] = OPTIONS | {"num_inference_steps": NUM_STEPS, "output_type": "latent"}
            latents = call(pipe, examples, latents=(1 - level) * latents + level * noise, **options)
        write_whole(path, partial(save_file, {"latents": latents.half().cpu().contiguous()}))


def read_denoised(folder: Path, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch: the latents, normalized, float32 `[B, C, T, h, w]`, and the pixels that they should be decoded to."""
    return load_file(_path(folder, index))["latents"].float(), draw_targets(sample_batch(index))


def draw_targets(examples: list[Example]) -> torch.Tensor:
    """Draws what examples ask for as float32 `[B, 3, F, H, W]` in [-1, 1]."""
    clips = np.stack([render(example.target, example.num_frames) for example in examples])
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.safetensors"
