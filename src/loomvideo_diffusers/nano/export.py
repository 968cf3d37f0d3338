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

import statistics
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, ConfigMixin
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file
from transformers import Qwen3VLModel

from ..media.files import replace_folder, write_whole
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from ..pipelines import LoomVideoPipeline
from . import OPTIONS
from .evaluation import EVALUATIONS, NUM_COMPARED, NUM_EXAMPLES, SEEDS
from .world import BACKGROUNDS, COLORS, SHAPES, SIZES


PARTS = ("transformer", "text_encoder", "vae")


def load_trained(untrained: Path, run: Path) -> LoomVideoPipeline:
    """
    Loads what was trained, in float32.

    Args:
        untrained: folder of the pipeline that the training began with.
        run: output folder of the training.
    """
    return LoomVideoPipeline.from_pretrained(
        untrained,
        dtype=torch.float32,
        transformer=LoomVideoTransformer3DModel.from_pretrained(run / "transformer"),
        text_encoder=Qwen3VLModel.from_pretrained(run / "text_encoder"),
    )


def assemble(pipe: LoomVideoPipeline, vae: Path, folder: Path) -> None:
    """
    Writes the model in float16, unless the folder is there.

    It is weights and settings alone, as part of the package; the pipeline's `save_pretrained` would add the code.

    Args:
        pipe: the trained pipeline.
        vae: folder of the autoencoder to put in the place of its own.
        folder: the folder to make.
    """
    if folder.exists():
        return
    pipe.register_modules(vae=AutoencoderKLWan.from_pretrained(vae))
    # Not where it was trained
    for part in (pipe, pipe.components["transformer"], pipe.components["vae"]):
        part.register_to_config(_name_or_path=folder.name)
    pipe.register_to_config(transformer=("loomvideo_diffusers", LoomVideoTransformer3DModel.__name__))
    pipe.to(torch.float16)

    def save(target: Path) -> None:
        for name, part in pipe.components.items():
            part.save_pretrained(target / name)
        ConfigMixin.save_config(pipe, target)

    replace_folder(folder, save)


def write_card(folder: Path, results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Writes the card, `README.md`, of what `evaluate` measured and of the pictures in the folder's `samples`."""
    weights = {name: [load_file(file) for file in (folder / name).glob("*.safetensors")] for name in PARTS}
    card = ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="diffusers",
            pipeline_tag="text-to-video",
            tags=["text-to-video", "video-to-video", "diffusers", "loomvideo"],
        ),
        template_str=files("loomvideo_diffusers.model_cards").joinpath("nano.md").read_text(encoding="utf-8"),
        parameters={
            name: sum(tensor.numel() for file in state for tensor in file.values()) for name, state in weights.items()
        },
        megabytes=sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6,
        shapes=", ".join(SHAPES),
        colors=", ".join(COLORS),
        backgrounds=", ".join(BACKGROUNDS),
        sizes=", ".join(SIZES),
        num_examples=NUM_EXAMPLES,
        num_compared=NUM_COMPARED,
        num_seeds=len(SEEDS),
        options=OPTIONS,
        whole={task: _cells(means) for task, means in results["whole"].items()},
        constancies=_constancies(results["whole"]),
        evaluations=list(EVALUATIONS),
        compared={task: [_success(results[name].get(task)) for name in EVALUATIONS] for task in results["whole"]},
        sheets=sorted(file.stem for file in (folder / "samples").glob("*-*.png")),
    )
    write_whole(folder / "README.md", card.save)


def _cells(means: dict[str, float]) -> list[str]:
    """A row of the table: the success, what it is made of, and the PSNR of what should have stayed."""
    shares = [f"{means[name]:.0%}" for name in ("shape", "color", "size", "background", "nothing else")]
    motion = [f"{name} {means[name]:.0%}" for name in ("path", "place", "direction") if name in means]
    untouched = f"{means['untouched']:.1f}" if "untouched" in means else ""
    return [f"**{means['success']:.0%}**", *shares, ", ".join(motion), untouched]


def _constancies(whole: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    """By shape, how well filled and outlined things keep their form, as a share of how well drawn ones do."""

    def mean(name: str) -> str:
        values = [means[name] for means in whole.values() if name in means]
        return f"{statistics.mean(values):.3f}" if values else ""

    return {shape: [mean(f"constancy of {style} {shape}") for style in ("filled", "outlined")] for shape in SHAPES}


def _success(means: dict[str, float] | None) -> str:
    if means is None:
        return ""
    return f"{means['success']:.0%}" + (f" (path {means['path']:.0%})" if "path" in means else "")
