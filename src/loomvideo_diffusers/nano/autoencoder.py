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
"""Trains LoomVideo-nano's autoencoder on scenes that are drawn as they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch.utils.data import Dataset
from tqdm import tqdm

from ..media.files import replace_folder
from . import NUM_FRAMES, SEED, SIDE
from .denoised import NUM_BATCHES, read_denoised
from .fitting import DEVICE, fit
from .world import Scene, draw_frame, frame_times, render, sample_scene


CONFIG = {
    "base_dim": 32,
    "decoder_base_dim": 32,
    "z_dim": 24,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}


@dataclass(frozen=True)
class Stage:
    """A number of steps on crops of so many frames and of such a side."""

    steps: int
    batch_size: int
    num_frames: int
    side: int
    noise: float


# Single pictures teach the convolutions most of what they need, and crops of clips the rest, at a fraction of the cost
# of whole clips. Decoding has to bear what denoising leaves over, so at last noise is added to the latents: a share
# of their own deviation.
STAGES = (
    Stage(steps=1000, batch_size=16, num_frames=1, side=64, noise=0.0),
    Stage(steps=4800, batch_size=8, num_frames=9, side=64, noise=0.02),
    Stage(steps=200, batch_size=8, num_frames=NUM_FRAMES, side=SIDE, noise=0.02),
)
LEARNING_RATE = 2e-3
DECODER_STEPS = 600
DECODER_LEARNING_RATE = 1e-3

# Small enough to cost the pictures nothing, large enough to keep the latents in bounds.
KL_WEIGHT = 3e-5
# Without it, the posterior's noise drowns the latents at first.
FIRST_LOG_VARIANCE = -10.0
NUM_MEASURED_CLIPS = 64


class Batches(Dataset):
    """For each step random scenes in all styles, float32 `[B, 3, F, H, W]` in [-1, 1], and the noise to add."""

    def __init__(self, stages: Sequence[Stage]):
        self.stages = [stage for stage in stages for _ in range(stage.steps)]

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
        stage = self.stages[index]
        rng = np.random.default_rng([SEED, index])
        clips = [_crop(sample_any_scene(rng), stage, rng) for _ in range(stage.batch_size)]
        return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1, stage.noise


class DenoisedBatches(Dataset):
    """For each step the latents that `write_denoised` wrote, and the pixels that they should be decoded to."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __len__(self) -> int:
        return DECODER_STEPS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return read_denoised(self.folder, index % NUM_BATCHES)


def _crop(scene: Scene, stage: Stage, rng: np.random.Generator) -> np.ndarray:
    """Cuts a part out of a clip, around one of its things mostly: there is more to learn than beside them."""
    start = rng.integers(0, NUM_FRAMES - stage.num_frames + 1)
    times = frame_times(NUM_FRAMES)[start : start + stage.num_frames]
    left, top = rng.integers(0, SIDE - stage.side + 1, 2)
    if rng.random() < 0.8:
        center = scene.things[rng.integers(len(scene.things))].center(float(times[len(times) // 2]))
        left, top = (
            int(np.clip(middle - stage.side / 2 + rng.integers(-12, 13), 0, SIDE - stage.side)) for middle in center
        )
    frames = np.stack([draw_frame(scene, time) for time in times])
    return frames[:, top : top + stage.side, left : left + stage.side]


def sample_any_scene(rng: np.random.Generator) -> Scene:
    """A scene as the tasks have them: of its things a third outlines, and a sixth of all scenes inverted."""
    scene, _ = sample_scene(rng)
    things = tuple(replace(thing, is_outline=rng.random() < 1 / 3) for thing in scene.things)
    return replace(scene, things=things, is_inverted=rng.random() < 1 / 6)


def train_autoencoder(output_dir: Path) -> Path:
    """
    Trains the autoencoder from nothing, or on from its last checkpoint, and measures its latents.

    Args:
        output_dir: the folder for the checkpoint, the log `autoencoder.csv` and the result.

    Returns:
        The folder of the `AutoencoderKLWan`, with its latents' mean and standard deviation in its config.
    """
    result = output_dir / "autoencoder"
    if result.exists():
        return result
    torch.manual_seed(SEED)
    vae = AutoencoderKLWan(**CONFIG).to(DEVICE)
    with torch.no_grad():
        vae.quant_conv.bias[CONFIG["z_dim"] :] = FIRST_LOG_VARIANCE

    def compute(batch: tuple[torch.Tensor, float], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, level = batch
        pixels = pixels.to(DEVICE, memory_format=torch.channels_last_3d)
        generator = torch.Generator(DEVICE).manual_seed(2**32 * SEED + step)
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.sample(generator)
        noise = level * torch.randn(latents.shape, generator=generator, device=DEVICE)
        latents = latents + latents.std().detach() * noise
        kl = posterior.kl().sum() / pixels.numel()
        loss, psnr = compare(vae.decode(latents).sample, pixels)
        return loss + KL_WEIGHT * kl, {"psnr": psnr, "kl": kl.item()}

    fit(vae, Batches(STAGES), compute, LEARNING_RATE, result)
    mean, std = measure_latents(vae)
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    replace_folder(result, vae.save_pretrained)
    result.with_suffix(".pt").unlink()
    return result


def refine_decoder(autoencoder: Path, denoised: Path, output_dir: Path) -> Path:
    """
    Trains the decoder of a trained autoencoder on, alone, so that all that was learned of its latents stays right: it
    learns to draw what comes out of denoising as sharp as it should be, in clips of full length.

    Args:
        autoencoder: folder of the `AutoencoderKLWan`.
        denoised: folder that `write_denoised` wrote.
        output_dir: the folder for the checkpoint, the log `decoder.csv` and the result.

    Returns:
        The folder of the whole `AutoencoderKLWan`.
    """
    result = output_dir / "decoder"
    if result.exists():
        return result
    vae = AutoencoderKLWan.from_pretrained(autoencoder).to(DEVICE)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    mean, std = (
        torch.tensor(values, device=DEVICE).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )

    def compute(batch: tuple[torch.Tensor, torch.Tensor], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        latents, pixels = (part.to(DEVICE) for part in batch)
        latents = (latents * std + mean).to(memory_format=torch.channels_last_3d)
        loss, psnr = compare(vae.decode(latents).sample, pixels)
        return loss, {"psnr": psnr}

    fit(vae, DenoisedBatches(denoised), compute, DECODER_LEARNING_RATE, result)
    replace_folder(result, vae.save_pretrained)
    result.with_suffix(".pt").unlink()
    return result


def compare(decoded: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The loss between what was decoded and what it should be, and the PSNR in dB."""
    decoded = decoded.float()
    square = F.mse_loss(decoded, pixels)
    return F.l1_loss(decoded, pixels) + 2 * square, 10 * np.log10(4 / square.item())


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the standard deviation of each channel over whole clips, float32 `[z_dim]`."""
    modes = []
    for index in tqdm(range(NUM_MEASURED_CLIPS), desc="Measuring latents"):
        clip = torch.from_numpy(render(sample_any_scene(np.random.default_rng([SEED, 1, index]))))
        pixels = clip.permute(3, 0, 1, 2)[None].to(DEVICE).float() / 127.5 - 1
        modes.append(vae.encode(pixels).latent_dist.mode()[0].flatten(1))
    latents = torch.cat(modes, dim=1)
    return latents.mean(dim=1), latents.std(dim=1)
