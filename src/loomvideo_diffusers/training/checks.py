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
"""What can be wrong with a training's settings, found before it begins."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import LoomVideoError
from ..media.files import check_writable
from ..media.video import MAX_FRAMES, read_image, read_video
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from .checkpoints import find_checkpoints, read_state
from .config import LoraSettings, TrainingConfig, ValidationSettings
from .publishing import find_license


# What may change between a checkpoint and its continuation without changing what the steps compute.
FREE_KEYS = ("output_dir", "data.num_workers", "validation", "gradient_checkpointing", "checkpoint_every")
FREE_KEYS += ("compile_blocks", "keep_checkpoints", "tracker", "hub_model_id", "license")


def check_settings(
    config: TrainingConfig, batches_per_step: int, is_sharded: bool, resume: bool, push: bool, precompute_only: bool
) -> None:
    """
    Checks everything but the records and the model, before hours have gone into it.

    Raises:
        LoomVideoError: if settings are missing, do not go together, or are not those of the checkpoints.
        OSError: if the output folder cannot be written.
    """
    if push and config.hub_model_id is None:
        raise LoomVideoError("`hub_model_id` is missing in the settings: name the repository to push to.")
    if push and not find_license(config):
        raise LoomVideoError(
            f"The card of {config.model} states no licence: say one by `license`, such as apache-2.0."
        )
    if precompute_only and config.data.features is None:
        raise LoomVideoError("`data.features` is missing in the settings: name the folder to keep features in.")
    checkpoints = Path(config.output_dir) / "checkpoints"
    found = find_checkpoints(checkpoints)
    if found and not (resume or precompute_only):
        raise LoomVideoError(
            f"{config.output_dir} has checkpoints already: go on from the last one with --resume, or choose another "
            "`output_dir`."
        )
    if found and resume:
        _check_same(config, batches_per_step, found[-1])
    check_writable(checkpoints / "step")
    for kind in ("latents", "prompts") if config.data.features is not None else ():
        check_writable(Path(config.data.features) / kind / "features")
    _check_optimizer(config, is_sharded)
    if config.validation is not None:
        _check_validation_files(config.validation)


def _check_optimizer(config: TrainingConfig, is_sharded: bool) -> None:
    for key in ("ema_decay", "train_text_encoder"):
        if getattr(config, key) and is_sharded:
            raise LoomVideoError(f"`{key}` does not work with FSDP: leave it out.")
    name = config.optimizer.name
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise LoomVideoError(f"`optimizer.name` muon needs PyTorch 2.9, this is {torch.__version__}: choose adamw.")
    if name == "muon" and is_sharded:
        raise LoomVideoError("`optimizer.name` muon does not work with FSDP: choose adamw.")
    if name == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise LoomVideoError(
            "`optimizer.name` adamw8bit needs bitsandbytes: install it with `pip install bitsandbytes`."
        )


def _check_validation_files(settings: ValidationSettings) -> None:
    for index, sample in enumerate(settings.samples):
        images = [*([] if sample.image is None else [sample.image]), *sample.reference_images]
        for file in [*([] if sample.video is None else [sample.video]), *images]:
            if not Path(file).is_file():
                raise LoomVideoError(f"`validation.samples.{index}` names {file}, which is not there.")
        try:
            if sample.video is not None:
                read_video(sample.video, max_frames=MAX_FRAMES)
            for file in images:
                read_image(file)
        except LoomVideoError as error:
            raise LoomVideoError(f"`validation.samples.{index}`: {error}") from error


def _check_same(config: TrainingConfig, batches_per_step: int, path: Path) -> None:
    """Raises LoomVideoError if settings that steps depend on are not what they were when a checkpoint was written."""
    state = read_state(path)
    advice = "set it back, or choose another `output_dir` to begin anew"
    # How many batches make a step is compared below, as processes count too.
    free = {*FREE_KEYS, "gradient_accumulation_steps"}
    now, before = flatten(config.model_dump(mode="json")), flatten(state["config"])
    # What a constant learning rate has led to does not depend on when it falls.
    has_decayed = state["step"] > before["steps"] - before.get("optimizer.lr_decay_steps", 0)
    if config.optimizer.lr_scheduler.startswith("constant") and not has_decayed:
        free |= {"steps", "optimizer.lr_decay_steps"}
    for key in sorted({*now, *before}):
        if not {key, key.split(".")[0]} & free and now.get(key) != before.get(key):
            raise LoomVideoError(
                f"`{key}` is {now.get(key)}, but was {before.get(key)} when {path} was written: {advice}."
            )
    if batches_per_step != state["batches_per_step"]:
        raise LoomVideoError(
            f"Processes times `gradient_accumulation_steps` are {batches_per_step}, but were "
            f"{state['batches_per_step']} when {path} was written: {advice}."
        )
    if config.steps < state["step"]:
        raise LoomVideoError(f"`steps` is {config.steps}, but {path} is beyond that: {advice}.")


def check_targets(settings: LoraSettings, model_config: dict[str, Any]) -> None:
    with torch.device("meta"):
        transformer = LoomVideoTransformer3DModel.from_config(model_config)
    names = [name for name, module in transformer.named_modules() if isinstance(module, (nn.Linear, nn.Conv3d))]
    for target in settings.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise LoomVideoError(f"`lora.target_modules`: no layer is called {target}, there are {', '.join(names)}.")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Settings by their whole keys, as trackers and people read them."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (str, int, float, bool)) else json.dumps(value)
    return flat
