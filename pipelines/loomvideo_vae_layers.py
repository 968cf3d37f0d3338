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
"""The layers of the Wan VAE with fewer passes over its pictures, which take as long as its convolutions otherwise."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import DupUp3D, WanCausalConv3d, WanRMS_norm, WanUpsample
from torch import nn


def use_fast_layers(vae: AutoencoderKLWan) -> None:
    """Gives the layers of a VAE methods that compute the same in fewer passes, and copy less."""
    for layer in vae.modules():
        layer.__class__ = FAST_LAYERS.get(type(layer), type(layer))


def compile_norms(vae: AutoencoderKLWan) -> None:
    """Compiles the norms of a VAE with fast layers, of which a compiler makes one pass."""
    for layer in vae.modules():
        if isinstance(layer, FastRMSNorm):
            layer.compile(dynamic=True)


def norm_by_sum(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The norm over a dimension, float32. On CPUs, this takes a tenth of the time unless it is the last dimension."""
    return x.float().square().sum(dim, keepdim=True).clamp_min(1e-24).sqrt()


def norm_at_once(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The norm over a dimension, float32, in one pass."""
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32).clamp_min(1e-12)


class FastRMSNorm(WanRMS_norm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dim = 1 if self.channel_first else -1
        norm = norm_by_sum(x, dim) if x.device.type == "cpu" else norm_at_once(x, dim)
        normed = x * (self.scale / norm).to(x.dtype)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return normed * self.gamma + self.bias
        normed *= self.gamma
        return normed if isinstance(self.bias, float) else normed.add_(self.bias)


class FastSiLU(nn.SiLU):
    """In place, as it follows a norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class FastCausalConv3d(WanCausalConv3d):
    """Leaves it to a GPU's kernels to pad rows and columns; those of CPUs take longer then than to copy."""

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, cache_x) if x.device.type == "cpu" else self.pad_in_the_kernel(x, cache_x)

    def pad_in_the_kernel(self, x: torch.Tensor, cache_x: torch.Tensor | None) -> torch.Tensor:
        columns, _, rows, _, num_missing, _ = self._padding
        if cache_x is not None and num_missing > 0:
            x = torch.cat([cache_x.to(x.device), x], dim=2)
            num_missing -= cache_x.shape[2]
        if num_missing > 0:
            x = F.pad(x, (0, 0, 0, 0, num_missing, 0))
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, rows, columns))


class FastUpsample(WanUpsample):
    """Repeats pixels, which is exact in any precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Upsample.forward(self, x)


class FastDupUp3D(DupUp3D):
    """Copies once."""

    def forward(self, x: torch.Tensor, first_chunk: bool = False) -> torch.Tensor:
        batch_size, _, num_frames, height, width = x.shape
        if self.repeats == self.factor:
            shape = (self.out_channels, 1, 1, 1)
        elif self.repeats == self.factor_s**2:
            shape = (self.out_channels, self.factor_t, 1, 1)
        else:
            return super().forward(x, first_chunk)
        factors = (self.factor_t, self.factor_s, self.factor_s)
        x = x.view(batch_size, *shape, num_frames, height, width)
        x = x.expand(batch_size, self.out_channels, *factors, num_frames, height, width)
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return x[:, :, self.factor_t - 1 :] if first_chunk else x


FAST_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    WanRMS_norm: FastRMSNorm,
    nn.SiLU: FastSiLU,
    WanCausalConv3d: FastCausalConv3d,
    WanUpsample: FastUpsample,
    DupUp3D: FastDupUp3D,
}
