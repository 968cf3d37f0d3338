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
"""LoomVideo-nano: the architecture at small dimensions, trained on coloured shapes, for laptops and tests."""

from pathlib import Path


# The folder of the trained model, which is part of the package
MODEL = Path(__file__).parent / "loomvideo-nano"

# A tiny decoder of its latents
TINY_DECODER = Path(__file__).parent / "tiny_decoder.safetensors"

# What it was trained on: the sides in pixels and the frames of its videos
SIDE = 96
NUM_FRAMES = 17

# With what it is best called. Equal scales leave two of the three branches of guidance.
OPTIONS = {"num_inference_steps": 20, "guidance_scale": 2.5, "guidance_scale_visual": 2.5}

# What its folder says of that, for the command line and for training
DEFAULT_OPTIONS = OPTIONS | {"height": SIDE, "width": SIDE, "num_frames": NUM_FRAMES}
DEFAULT_OPTIONS |= {"window_frames": NUM_FRAMES, "window_overlap": 8}

# Of everything that is random in making it
SEED = 0
