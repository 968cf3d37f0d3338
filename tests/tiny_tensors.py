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
"""Files of tiny decoders."""

import torch


def make_tensors(latent_channels=48, widths=(256, 128, 64, 64), growth=(1, 2, 2), patch_size=2):
    """Random tensors with the names and shapes of the public `taew2_2`, and one of its encoder."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.0": (64, 12, 3), "decoder.1": (widths[0], latent_channels, 3)}
    for stage in range(3):
        width, first = widths[stage], 3 + 6 * stage
        for block in range(first, first + 3):
            shapes |= {f"decoder.{block}.conv.0": (width, 2 * width, 3)}
            shapes |= {f"decoder.{block}.conv.{layer}": (width, width, 3) for layer in (2, 4)}
        shapes[f"decoder.{first + 4}.conv"] = (growth[stage] * width, width, 1)
        shapes[f"decoder.{first + 5}"] = (widths[stage + 1], width, 3)
    shapes["decoder.22"] = (3 * patch_size**2, widths[-1], 3)
    tensors = {}
    for name, (out, into, side) in shapes.items():
        weight = torch.randn(out, into, side, side, generator=generator) / (into * side**2) ** 0.5
        tensors[f"{name}.weight"] = weight
        if name not in (
            "decoder.7.conv",
            "decoder.8",
            "decoder.13.conv",
            "decoder.14",
            "decoder.19.conv",
            "decoder.20",
        ):
            tensors[f"{name}.bias"] = torch.randn(out, generator=generator) / 10
    return tensors
