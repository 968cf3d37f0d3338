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
"""What can be wrong with the settings of a run, found before hours have gone into it."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..errors import LoomVideoError
from ..media import MAX_FRAMES, read_video
from ..media.files import check_writable
from ..media.images import read_image
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from .checkpoints import find_checkpoints, read_state
from .config import LoraSettings, TrainingConfig, ValidationSample
from .processes import is_sharded
from .publishing import find_license


# Settings that may change when a run is resumed, because the steps do not depend on them
FREE_KEYS = {
    "output_dir",
    "data.num_workers",
    "validation",
    "gradient_checkpointing",
    "checkpoint_every",
    "compile_blocks",
    "keep_checkpoints",
    "tracker",
    "hub_model_id",
    "license",
}


def check_settings(
    config: TrainingConfig, accelerator: Accelerator, resume: bool, push: bool, precompute_only: bool
) -> None:
    """Raises LoomVideoError for what is wrong with the settings, apart from the records and the model's layers."""
    if push and config.hub_model_id is None:
        raise LoomVideoError("`hub_model_id` is missing in the settings: name the repository to push to.")
    if push and not find_license(config):
        raise LoomVideoError(f"The card of {config.model} states no licence: set `license`, for example apache-2.0.")
    if precompute_only and config.data.features is None:
        raise LoomVideoError("`data.features` is missing in the settings: name the folder to keep features in.")
    checkpoints = Path(config.output_dir) / "checkpoints"
    found = find_checkpoints(checkpoints)
    if found and not (resume or precompute_only):
        raise LoomVideoError(
            f"{config.output_dir} has checkpoints already: continue from the last one with --resume, or choose "
            "another `output_dir`."
        )
    if found and resume:
        check_unchanged(config, config.gradient_accumulation_steps * accelerator.num_processes, found[-1])
    check_writable(checkpoints / "step")
    if config.data.features is not None:
        for kind in ("latents", "prompts"):
            check_writable(Path(config.data.features) / kind / "features")
    _check_support(config, is_sharded(accelerator))
    for index, sample in enumerate(config.validation.samples if config.validation is not None else []):
        _check_sample(sample, f"`validation.samples.{index}`")


def _check_support(config: TrainingConfig, sharded: bool) -> None:
    """Raises LoomVideoError for settings that do not work with FSDP or with what is installed."""
    for key in ("ema_decay", "train_text_encoder"):
        if getattr(config, key) and sharded:
            raise LoomVideoError(f"`{key}` does not work with FSDP: leave it out.")
    if config.optimizer.name == "muon" and sharded:
        raise LoomVideoError("`optimizer.name` muon does not work with FSDP: choose adamw.")
    if config.optimizer.name == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise LoomVideoError(
            "`optimizer.name` adamw8bit needs bitsandbytes: install it with `pip install bitsandbytes`."
        )


def _check_sample(sample: ValidationSample, name: str) -> None:
    images = [*([] if sample.image is None else [sample.image]), *sample.reference_images]
    for file in [*([] if sample.video is None else [sample.video]), *images]:
        if not Path(file).is_file():
            raise LoomVideoError(f"{name} names {file}, which is not there.")
    try:
        if sample.video is not None:
            read_video(sample.video, max_frames=MAX_FRAMES)
        for file in images:
            read_image(file)
    except ValueError as error:
        raise LoomVideoError(f"{name}: {error}") from error


def check_unchanged(config: TrainingConfig, batches_per_step: int, path: Path) -> None:
    """Raises LoomVideoError if settings that the steps depend on differ from those of a checkpoint."""
    state = read_state(path)
    advice = "set it back, or choose another `output_dir` to start anew"
    # Batches a step are compared below, where the number of processes counts too.
    free = FREE_KEYS | {"gradient_accumulation_steps"}
    now, before = flatten(config.model_dump(mode="json")), flatten(state["config"])
    # What a constant learning rate has led to does not depend on when it will fall.
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
    """Raises LoomVideoError if the transformer has no layer of one of the names to adapt."""
    with torch.device("meta"):
        transformer = LoomVideoTransformer3DModel.from_config(model_config)
    names = [name for name, module in transformer.named_modules() if isinstance(module, (nn.Linear, nn.Conv3d))]
    for target in settings.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise LoomVideoError(f"`lora.target_modules`: no layer is called {target}, there are {', '.join(names)}.")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full keys, such as `data.num_workers`, as trackers and people read them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (str, int, float, bool)) else json.dumps(value)
    return flat
