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
"""Puts LoomVideo-nano together, as a folder that `from_pretrained` loads, and writes its card."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from transformers import Qwen3VLModel

from ..pipelines import LoomVideoPipeline
from ..training.checkpoints import replace_folder
from ..transformer_loomvideo import LoomVideoTransformer3DModel


def assemble(untrained: Path, run: Path, vae: Path, folder: Path) -> None:
    """
    Writes the model in float16, with its own code, unless the folder is there.

    Args:
        untrained: folder of the pipeline that the training began with.
        run: output folder of the training.
        vae: folder of the autoencoder.
        folder: the folder to make.
    """
    if folder.exists():
        return
    pipe = LoomVideoPipeline.from_pretrained(
        untrained,
        transformer=LoomVideoTransformer3DModel.from_pretrained(run / "transformer"),
        text_encoder=Qwen3VLModel.from_pretrained(run / "text_encoder"),
        vae=AutoencoderKLWan.from_pretrained(vae),
    )
    replace_folder(folder, pipe.to(torch.float16).save_pretrained)
