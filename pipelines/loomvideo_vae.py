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
"""Pixels to latents and back, by the Wan VAE: whole clips, or a few frames at a time."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from types import ModuleType

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKLWan


def speed_up(vae: AutoencoderKLWan) -> None:
    """Gives a VAE layers that compute the same in fewer passes, if this Diffusers has those that they replace."""
    try:
        from .loomvideo_vae_layers import use_fast_layers
    except ImportError:
        return
    use_fast_layers(vae)


def to_pixel_values(frames: Sequence[PIL.Image.Image | np.ndarray]) -> torch.Tensor:
    """Frames of uint8, as `[1, 3, F, H, W]` in [-1, 1]."""
    return (
        torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(3, 0, 1, 2)[None].float() / 127.5
        - 1
    )


def encode(vae: AutoencoderKLWan, pixel_values: torch.Tensor) -> torch.Tensor:
    """Encodes `[B, 3, F, H, W]` in [-1, 1] as the normalized mode of the posterior, float32 `[B, C, T, h, w]`."""
    return _normalize(vae, vae.encode(pixel_values.to(vae.dtype)).latent_dist.mode())


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decodes normalized latents `[B, C, T, h, w]` to `[B, 3, F, H, W]` in [-1, 1]."""
    return vae.decode(_denormalize(vae, latents), return_dict=False)[0]


def encode_in_chunks(
    vae: AutoencoderKLWan, frames: Iterable[np.ndarray], device: torch.device, chunk_size: int = 1
) -> torch.Tensor:
    """
    Encodes a clip while its frames come in, as `encode` does.

    Args:
        vae: without tiling.
        frames: 4k + 1 of uint8, `[H, W, 3]`.
        device: where the VAE runs.
        chunk_size: how many latent frames to encode at once, after the first alone.

    Returns:
        Normalized latents, float32 `[1, C, T, h, w]`.
    """
    wan = _import_wan()
    feature_cache = _make_feature_cache(vae.encoder, wan)
    latents: list[torch.Tensor] = []
    frames = iter(frames)
    while chunk := list(islice(frames, chunk_size * vae.config.scale_factor_temporal if latents else 1)):
        pixel_values = to_pixel_values(chunk).to(device, vae.dtype)
        if vae.config.patch_size is not None:
            pixel_values = wan.patchify(pixel_values, patch_size=vae.config.patch_size)
        _onload(vae)
        encoded = vae.encoder(pixel_values, feat_cache=feature_cache, feat_idx=[0])
        latents.append(_normalize(vae, vae.quant_conv(encoded).chunk(2, dim=1)[0]))
    return torch.cat(latents, dim=2)


def decode_in_chunks(vae: AutoencoderKLWan, latents: torch.Tensor, chunk_size: int = 1) -> Iterator[torch.Tensor]:
    """
    Decodes normalized latents `[B, C, T, h, w]` some latent frames at a time, as `decode` does.

    Args:
        vae: without tiling.
        latents: normalized, `[B, C, T, h, w]`.
        chunk_size: how many latent frames to decode at once, after the first alone.

    Yields:
        The frames of each chunk, `[B, 3, f, H, W]` in [-1, 1]: one of the first latent frame, and four of each other.
    """
    wan = _import_wan()
    feature_cache = _make_feature_cache(vae.decoder, wan)
    for start in (0, *range(1, latents.shape[2], chunk_size)):
        _onload(vae)
        chunk = latents[:, :, start : start + chunk_size if start else 1]
        chunk = vae.post_quant_conv(_denormalize(vae, chunk))
        frames = vae.decoder(chunk, feat_cache=feature_cache, feat_idx=[0], first_chunk=start == 0)
        if vae.config.patch_size is not None:
            frames = wan.unpatchify(frames, patch_size=vae.config.patch_size)
        yield frames.clamp(-1, 1)


def _normalize(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _mean_and_std(vae, latents.device)
    return (latents.float() - mean) / std


def _denormalize(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _mean_and_std(vae, latents.device)
    return (latents * std + mean).to(vae.dtype)


def _mean_and_std(vae: AutoencoderKLWan, device: torch.device) -> list[torch.Tensor]:
    statistics = (vae.config.latents_mean, vae.config.latents_std)
    return [torch.tensor(values, device=device).view(1, -1, 1, 1, 1) for values in statistics]


def _onload(vae: AutoencoderKLWan) -> None:
    """Brings an offloaded VAE to its device, as its `encode` and `decode` do."""
    if hasattr(vae, "_hf_hook"):
        vae._hf_hook.pre_forward(vae)


def _import_wan() -> ModuleType:
    """The module of the VAE, of whose inside chunks need a few names."""
    from diffusers.models.autoencoders import autoencoder_kl_wan

    missing = [name for name in ("WanCausalConv3d", "patchify", "unpatchify") if not hasattr(autoencoder_kl_wan, name)]
    if missing:
        raise ImportError(f"This diffusers has no {missing[0]}: clips in chunks need diffusers 0.42.")
    return autoencoder_kl_wan


def _make_feature_cache(coder: torch.nn.Module, wan: ModuleType) -> list[torch.Tensor | None]:
    """An empty cache for what the encoder or the decoder keeps of one chunk of frames for the next."""
    return [None] * sum(isinstance(layer, wan.WanCausalConv3d) for layer in coder.modules())
