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
"""The layers of the VAE that make fewer passes compute what Diffusers' do."""

import copy
import pickle

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import DupUp3D, WanCausalConv3d, WanRMS_norm, WanUpsample
from torch import nn

from loomvideo_diffusers.pipelines.loomvideo_vae_layers import FAST_LAYERS, norm_at_once, norm_by_sum, use_fast_layers


def randn(*shape, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        (WanRMS_norm(8, images=False), [randn(2, 8, 3, 4, 6)]),
        (WanRMS_norm(8, bias=True), [randn(2, 8, 4, 6)]),
        (WanRMS_norm(6, channel_first=False), [randn(2, 8, 4, 6)]),
        (nn.SiLU(), [randn(2, 8, 3, 4, 6)]),
        (WanCausalConv3d(8, 4, 3, padding=1), [randn(2, 8, 3, 4, 6)]),
        (WanCausalConv3d(8, 4, 3, padding=1), [randn(2, 8, 3, 4, 6), randn(2, 8, 1, 4, 6)]),
        (WanCausalConv3d(8, 4, 3, padding=1), [randn(2, 8, 3, 4, 6), randn(2, 8, 2, 4, 6)]),
        (WanCausalConv3d(8, 4, (3, 1, 1), stride=(2, 1, 1)), [randn(2, 8, 3, 4, 6), randn(2, 8, 2, 4, 6)]),
        (WanCausalConv3d(8, 4, 1), [randn(2, 8, 3, 4, 6)]),
        (WanUpsample(scale_factor=(2.0, 2.0), mode="nearest-exact"), [randn(2, 8, 4, 6)]),
        (DupUp3D(8, 8, 2, 2), [randn(2, 8, 3, 4, 6)]),
        (DupUp3D(8, 4, 2, 2), [randn(2, 8, 3, 4, 6), True]),
        (DupUp3D(8, 4, 1, 2), [randn(2, 8, 3, 4, 6)]),
        (DupUp3D(8, 2, 1, 2), [randn(2, 8, 3, 4, 6)]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers(layer, arguments, grad, dtype):
    layer = copy.deepcopy(layer).to(dtype)
    for parameter in layer.parameters():
        parameter.data = randn(*parameter.shape, dtype=dtype)
    arguments = [value.to(dtype) if isinstance(value, torch.Tensor) else value for value in arguments]
    with torch.set_grad_enabled(grad):
        expected = layer(*copy.deepcopy(arguments))
        use_fast_layers(nn.ModuleList([layer]))
        assert type(layer) in FAST_LAYERS.values()
        result = layer(*copy.deepcopy(arguments))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2 * expected.abs().max().item()
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=0)
    assert result.requires_grad == (grad and any(True for _ in layer.parameters()))


@pytest.mark.parametrize("num_cached", [0, 1, 2])
def test_padding_in_the_kernel(num_cached):
    """What GPUs do gives what Diffusers' layer does."""
    layer = WanCausalConv3d(8, 4, 3, padding=1)
    x = randn(2, 8, 3, 4, 6)
    cached = randn(2, 8, num_cached, 4, 6) if num_cached else None
    expected = layer(x, cached)
    use_fast_layers(nn.ModuleList([layer]))
    torch.testing.assert_close(layer.pad_in_the_kernel(x, cached), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms(dtype):
    """Those of CPUs and of GPUs are one, of zeros too."""
    x = torch.cat([randn(2, 8, 3, dtype=dtype), torch.zeros(1, 8, 3, dtype=dtype)])
    expected = x.double().norm(dim=1, keepdim=True).clamp_min(1e-12).float()
    for norm in (norm_by_sum, norm_at_once):
        torch.testing.assert_close(norm(x, 1), expected)


def test_a_vae_stays_what_it_is(edit, model_folder, tmp_path):
    """It is saved, copied and pickled as before, and its numbers are those of Diffusers' layers."""
    plain = AutoencoderKLWan.from_pretrained(model_folder, subfolder="vae")
    assert any(type(layer) in FAST_LAYERS.values() for layer in edit.vae.modules())
    pixels = randn(1, 3, 9, 64, 32).clamp(-1, 1)
    with torch.no_grad():
        expected = plain.encode(pixels).latent_dist.mode()
        video = plain.decode(expected).sample
    edit.vae.save_pretrained(tmp_path)
    for vae in (
        edit.vae,
        copy.deepcopy(edit.vae),
        pickle.loads(pickle.dumps(edit.vae)),
        AutoencoderKLWan.from_pretrained(tmp_path),
    ):
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mode()
            torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(vae.decode(expected).sample, video, atol=1e-5, rtol=0)
