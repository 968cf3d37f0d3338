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
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


@dataclass
class LoomVideoPipelineOutput(BaseOutput):
    """
    Output of the LoomVideo pipelines.

    Args:
        frames (`np.ndarray`, `torch.Tensor` or `list[list[PIL.Image.Image]]`):
            The videos. An image is a video of one frame. By `output_type`: `"np"`, `[B, F, H, W, 3]` in [0, 1];
            `"pt"`, `[B, F, 3, H, W]` in [0, 1]; `"pil"`, a list of frames for each sample; `"latent"`, the normalized
            latents `[B, C, T, h, w]`.
    """

    frames: np.ndarray | torch.Tensor | list[list[PIL.Image.Image]]
