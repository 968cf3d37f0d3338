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
"""
Lays out the unfinished training of the next LoomVideo-nano, so that `make nano` goes on with it.

The weights of the transformer and of the MLLM are here in 8 bits with a scale for each row, and those of the
autoencoder in float16. `trained.csv` is the log of the steps that were taken.
"""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file
from transformers import Qwen3VLProcessor

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.nano.__main__ import OUTPUT_DIR
from loomvideo_diffusers.nano.untrained import make_text_encoder, make_untrained


FOLDER = Path(__file__).parent


def main() -> None:
    untrained, language = OUTPUT_DIR / "untrained", OUTPUT_DIR / "language"
    OUTPUT_DIR.mkdir(parents=True)
    for log in ("autoencoder.csv", "language.csv"):
        shutil.copy(FOLDER / log, OUTPUT_DIR)
    shutil.copytree(FOLDER / "processor", language / "processor")
    vae = AutoencoderKLWan.from_pretrained(FOLDER / "vae", torch_dtype=torch.float32)
    vae.save_pretrained(OUTPUT_DIR / "autoencoder")
    text_encoder = make_text_encoder(Qwen3VLProcessor.from_pretrained(FOLDER / "processor").tokenizer)
    text_encoder.save_pretrained(language / "text_encoder")
    make_untrained(untrained, OUTPUT_DIR / "autoencoder", language)
    pipe = LoomVideoPipeline.from_pretrained(untrained, dtype=torch.float32)
    for name in ("transformer", "text_encoder"):
        part = getattr(pipe, name)
        part.load_state_dict(read_weights(FOLDER / f"{name}.safetensors"))
        part.save_pretrained(untrained / name)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads weights in 8 bits as float32."""
    stored = load_file(path)
    return {
        name: tensor.float() * stored[f"{name}.scale"].float() if f"{name}.scale" in stored else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith(".scale")
    }


if __name__ == "__main__":
    main()
