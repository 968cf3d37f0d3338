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
"""Trains a tiny decoder of LoomVideo-nano's latents."""

from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

from ..media import write_whole
from ..models.tiny_decoder import LoomVideoTinyDecoder
from ..pipelines.loomvideo_vae import decode, encode
from . import SEED
from .autoencoder import Batches, Stage, compare
from .fitting import DEVICE, fit


WIDTHS = (96, 64, 32, 32)
STAGES = (
    Stage(steps=800, batch_size=16, num_frames=1, side=64, noise=0.05),
    Stage(steps=1600, batch_size=8, num_frames=9, side=64, noise=0.05),
)
LEARNING_RATE = 4e-3


def train_tiny_decoder(autoencoder: Path, output_dir: Path) -> Path:
    """
    Trains a tiny decoder from nothing, or on from its last checkpoint, on what the autoencoder makes of drawn clips.

    Args:
        autoencoder: folder of the `AutoencoderKLWan`.
        output_dir: the folder for the checkpoint, the log `tiny_decoder.csv` and the result.

    Returns:
        The file of the decoder, which `load_vae_decoder` takes.
    """
    result = output_dir / "tiny_decoder.safetensors"
    if result.exists():
        return result
    torch.manual_seed(SEED)
    vae = AutoencoderKLWan.from_pretrained(autoencoder).to(DEVICE).eval().requires_grad_(False)
    factors = (vae.config.scale_factor_spatial, vae.config.scale_factor_temporal)
    tiny = LoomVideoTinyDecoder(vae.config.z_dim, WIDTHS, vae.config.patch_size, *factors).to(DEVICE)

    def compute(batch: tuple[torch.Tensor, float], step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, level = batch
        pixels = pixels.to(DEVICE)
        generator = torch.Generator(DEVICE).manual_seed(2**32 * SEED + step)
        with torch.no_grad():
            latents = encode(vae, pixels)
            latents += level * torch.randn(latents.shape, generator=generator, device=DEVICE)
            decoded = decode(vae, latents).float()
        loss, psnr = compare(tiny(latents), decoded)
        return loss, {"psnr": psnr}

    fit(tiny, Batches(STAGES), compute, LEARNING_RATE, result.with_suffix(""))
    tensors = {name: tensor.half().cpu().contiguous() for name, tensor in tiny.state_dict().items()}
    write_whole(result, partial(save_file, tensors))
    result.with_suffix(".pt").unlink()
    return result
