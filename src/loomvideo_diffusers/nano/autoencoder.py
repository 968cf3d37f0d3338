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

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ..media import write_whole
from ..media.files import replace_folder
from . import NUM_FRAMES, SEED, SIDE
from .denoised import NUM_BATCHES, read_denoised
from .world import STYLES, Scene, add_thing, draw_frame, frame_times, render, sample_scene


CONFIG = {
    "base_dim": 32,
    "decoder_base_dim": 32,
    "z_dim": 16,
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

WARMUP_STEPS = 50
CHECKPOINT_EVERY = 200


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
    Stage(steps=800, batch_size=16, num_frames=1, side=64, noise=0.0),
    Stage(steps=900, batch_size=8, num_frames=9, side=64, noise=0.05),
    Stage(steps=120, batch_size=8, num_frames=NUM_FRAMES, side=SIDE, noise=0.05),
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

    def __init__(self) -> None:
        self.stages = [stage for stage in STAGES for _ in range(stage.steps)]

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
    top, left = rng.integers(0, SIDE - stage.side + 1, 2)
    start = rng.integers(0, NUM_FRAMES - stage.num_frames + 1)
    times = frame_times(NUM_FRAMES)[start : start + stage.num_frames]
    frames = np.stack([draw_frame(scene, time) for time in times])
    return frames[:, top : top + stage.side, left : left + stage.side]


def sample_any_scene(rng: np.random.Generator) -> Scene:
    """A scene as the tasks have them: half with a second thing, a quarter in each of the other styles."""
    scene = sample_scene(rng)
    if rng.random() < 0.5:
        scene, _ = add_thing(scene, rng)
    return Scene(scene.things, scene.background, str(rng.choice(STYLES, p=[0.5, 0.25, 0.25])))


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
    vae = AutoencoderKLWan(**CONFIG)
    with torch.no_grad():
        vae.quant_conv.bias[CONFIG["z_dim"] :] = FIRST_LOG_VARIANCE

    def encode_and_decode(
        batch: tuple[torch.Tensor, float], step: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pixels, noise = batch
        pixels = pixels.to(memory_format=torch.channels_last_3d)
        generator = torch.Generator().manual_seed(2**32 * SEED + step)
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.sample(generator)
        latents = latents + noise * latents.std().detach() * torch.randn(latents.shape, generator=generator)
        return pixels, vae.decode(latents).sample, posterior.kl().sum() / pixels.numel()

    _train(vae, Batches(), encode_and_decode, LEARNING_RATE, result)
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
    vae = AutoencoderKLWan.from_pretrained(autoencoder)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )

    def decode(batch: tuple[torch.Tensor, torch.Tensor], step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        latents, pixels = batch
        latents = (latents * std + mean).to(memory_format=torch.channels_last_3d)
        return pixels, vae.decode(latents).sample, torch.zeros(())

    _train(vae, DenoisedBatches(denoised), decode, DECODER_LEARNING_RATE, result)
    replace_folder(result, vae.save_pretrained)
    result.with_suffix(".pt").unlink()
    return result


def _train(
    vae: AutoencoderKLWan,
    batches: Batches | DenoisedBatches,
    decode: Callable[[Any, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    learning_rate: float,
    result: Path,
) -> None:
    """
    Trains what of the autoencoder needs gradients, with a checkpoint and a log named like the result.

    Of a batch and the number of its step, `decode` makes pixels, what they are decoded to, and the divergence (KL) of
    the latents from a normal distribution.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    checkpoint, log = result.with_suffix(".pt"), result.with_suffix(".csv")
    steps = len(batches)
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    matrices, optimizers = _make_optimizers(parameters, learning_rate)
    schedulers = [get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps) for optimizer in optimizers]
    first_step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first_step = state["step"]
        vae.load_state_dict(state["vae"])
        for place, optimizer in enumerate(optimizers):
            optimizer.load_state_dict(state["optimizers"][place])
            schedulers[place].load_state_dict(state["schedulers"][place])
    rows = _read_log(log, first_step)

    remaining = DataLoader(Subset(batches, range(first_step, steps)), batch_size=None, num_workers=1)
    progress_bar = tqdm(remaining, total=steps, initial=first_step, desc=f"Training the {result.name}")
    for step, batch in enumerate(progress_bar, start=first_step + 1):
        with torch.autocast("cpu", torch.bfloat16):
            pixels, decoded, kl = decode(batch, step)
        decoded = decoded.float()
        square = F.mse_loss(decoded, pixels)
        loss = F.l1_loss(decoded, pixels) + 2 * square + KL_WEIGHT * kl
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for weight, matrix in matrices.items():
            # In single pictures, nothing is convolved over time.
            matrix.grad = None if weight.grad is None else weight.grad.movedim(1, -1).flatten(1)
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            scheduler.step()
        vae.zero_grad()
        psnr = 10 * np.log10(4 / square.item())
        rows.append((step, loss.item(), psnr, kl.item()))
        progress_bar.set_postfix(psnr=f"{psnr:.1f}", kl=f"{kl.item():.2f}")
        if step % CHECKPOINT_EVERY == 0 or step == steps:
            state = {
                "step": step,
                "vae": vae.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "schedulers": [scheduler.state_dict() for scheduler in schedulers],
            }
            # First what may have rows too many
            write_whole(log, partial(_write_log, rows=rows))
            write_whole(checkpoint, partial(_write_checkpoint, state=state))


def _make_optimizers(
    parameters: list[torch.nn.Parameter], learning_rate: float
) -> tuple[dict[torch.nn.Parameter, torch.nn.Parameter], list[torch.optim.Optimizer]]:
    """
    Muon for the convolutions, which learn in a third of the steps that AdamW needs, and AdamW for the rest.

    Muon takes matrices alone: returns for each kernel the matrix that shares its memory, and the two optimizers.
    """
    matrices, others = {}, []
    for parameter in parameters:
        if parameter.ndim < 4 or min(parameter.shape[0], parameter[0].numel()) < 16:
            others.append(parameter)
            continue
        # Channels last is what convolutions compute with, and what makes a matrix of a kernel without a copy.
        parameter.data = parameter.data.movedim(1, -1).contiguous().movedim(-1, 1)
        matrices[parameter] = torch.nn.Parameter(parameter.data.movedim(1, -1).flatten(1))
    muon = torch.optim.Muon(matrices.values(), lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return matrices, [muon, torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)]


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the standard deviation of each channel over whole clips, float32 `[z_dim]`."""
    modes = []
    for index in tqdm(range(NUM_MEASURED_CLIPS), desc="Measuring latents"):
        clip = render(sample_any_scene(np.random.default_rng([SEED, 1, index])))
        pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        modes.append(vae.encode(pixels).latent_dist.mode()[0].flatten(1))
    latents = torch.cat(modes, dim=1)
    return latents.mean(dim=1), latents.std(dim=1)


def _write_checkpoint(path: str, state: dict[str, Any]) -> None:
    with open(path, "wb") as file:  # torch takes no name that begins with a dot
        torch.save(state, file)


def _read_log(path: Path, last_step: int) -> list[tuple[float, ...]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [(int(step), *map(float, values)) for step, *values in list(csv.reader(file))[1:]]
    return [row for row in rows if row[0] <= last_step]


def _write_log(path: str, rows: list[tuple[float, ...]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("step", "loss", "psnr", "kl"), *rows])
