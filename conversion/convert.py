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
"""Conversion of the three published sources of LoomVideo into one folder for diffusers."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from huggingface_hub import snapshot_download
from tqdm import tqdm
from transformers import Qwen3VLModel, Qwen3VLProcessor

from ..pipelines import LoomVideoPipeline
from ..pipelines.loomvideo_hub import write_remote_code
from ..transformer_loomvideo import LoomVideoTransformer3DModel
from ..video import check_writable


CHECKPOINT_NAME = "gen_model.pth"


def convert(
    loomvideo: str | os.PathLike,
    mllm: str | os.PathLike,
    wan: str | os.PathLike,
    output_dir: str | os.PathLike,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """
    Converts the published weights into a folder that `LoomVideoPipeline.from_pretrained` loads.

    One component is in memory at a time. The folder appears when all of it is written, and not before.

    Args:
        loomvideo: folder or repository with `gen_model.pth`, or that file (released: `MSALab/LoomVideo`).
        mllm: folder or repository of the Qwen3-VL model (released: `Qwen/Qwen3-VL-8B-Instruct`).
        wan: folder or repository of Wan2.2 in the format of diffusers, for the VAE, the scheduler and the sizes of the
            transformer (released: `Wan-AI/Wan2.2-TI2V-5B-Diffusers`).
        output_dir: the folder to make; its parents are made too.
        dtype: precision of transformer and MLLM. The VAE keeps its own.

    Returns:
        The folder.

    Raises:
        ValueError: if a source lacks what is needed, or `output_dir` is there already.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} is there already: choose another folder, or remove it first.")
    check_writable(output_dir)
    loomvideo = _find(loomvideo, CHECKPOINT_NAME, [CHECKPOINT_NAME])
    checkpoint = loomvideo if loomvideo.is_file() else loomvideo / CHECKPOINT_NAME
    mllm = _find(mllm, "config.json", ["*.json", "*.jinja", "*.txt", "*.safetensors"])
    wan = _find(wan, "vae/config.json", ["vae/*", "scheduler/*", "transformer/config.json"])

    def convert_transformer(folder: Path) -> None:
        transformer = LoomVideoTransformer3DModel.from_single_file(
            checkpoint, config=wan, subfolder="transformer", dtype=dtype
        )
        transformer.save_pretrained(folder)

    # Each writes one component. Nothing keeps what it loaded, so that memory holds one at a time.
    components = {
        "text_encoder": lambda folder: Qwen3VLModel.from_pretrained(mllm, dtype=dtype).save_pretrained(folder),
        "processor": lambda folder: Qwen3VLProcessor.from_pretrained(mllm).save_pretrained(folder),
        "vae": lambda folder: AutoencoderKLWan.from_pretrained(wan, subfolder="vae").save_pretrained(folder),
        "scheduler": lambda folder: UniPCMultistepScheduler.from_pretrained(
            wan, subfolder="scheduler"
        ).save_pretrained(folder),
        "transformer": convert_transformer,
    }
    index = {
        "_class_name": LoomVideoPipeline.__name__,
        "text_encoder": ["transformers", Qwen3VLModel.__name__],
        "processor": ["transformers", Qwen3VLProcessor.__name__],
        "vae": ["diffusers", AutoencoderKLWan.__name__],
        "scheduler": ["diffusers", UniPCMultistepScheduler.__name__],
    }

    made = [parent for parent in output_dir.absolute().parents if not parent.exists()]
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=output_dir.parent))
    try:
        for name, convert_component in (progress := tqdm(components.items(), unit="component")):
            progress.set_description(f"Converting the {name.replace('_', ' ')}")
            convert_component(unfinished / name)
        (unfinished / "model_index.json").write_text(json.dumps(index))
        write_remote_code(unfinished, LoomVideoPipeline, LoomVideoTransformer3DModel)
        unfinished.chmod(0o755)
        unfinished.replace(output_dir)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in made:
            parent.rmdir()
        raise
    return output_dir


def _find(source: str | os.PathLike, needed: str, patterns: list[str]) -> Path:
    """The local folder (or file) of a source, downloaded if it is a repository."""
    path = Path(source)
    if not path.exists():
        if len(path.parts) != 2 or path.is_absolute():
            raise ValueError(f"{source} is neither a file or folder here nor the name of a repository (OWNER/NAME).")
        path = Path(snapshot_download(str(source), allow_patterns=patterns))
    if path.is_dir() and not (path / needed).is_file():
        raise ValueError(f"{source} has no {needed}: is it the right source?")
    return path
