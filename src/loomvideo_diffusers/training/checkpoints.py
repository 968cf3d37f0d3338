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
"""Checkpoints, written whole or not at all, from which a run continues exactly."""

import json
import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, load
from diffusers.training_utils import EMAModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import LoomVideoError
from ..media.files import reason_of_full_disk
from ..pipelines import LoomVideoPipeline


STATE_FILE = "trainer_state.json"
STATE_KEYS = {"step", "batches", "batches_per_step", "num_processes", "records", "schedulers", "failures", "config"}
EMA_FILE = "ema.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"


def save_only_lora(accelerator: Accelerator) -> None:
    """Makes checkpoints hold the adapter, as a file that pipelines load, without the frozen weights."""

    def save(models: list[torch.nn.Module], weights: list[dict], output_dir: str) -> None:
        weights.clear()
        save_lora(accelerator.unwrap_model(models[0]), output_dir, accelerator.is_main_process)

    def restore(models: list[torch.nn.Module], input_dir: str) -> None:
        tensors = load_file(Path(input_dir) / LORA_FILE)
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        set_peft_model_state_dict(accelerator.unwrap_model(models.pop()), tensors)

    if accelerator.distributed_type != DistributedType.FSDP:
        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(restore)


def save_lora(
    transformer: Any,
    folder: str | os.PathLike,
    is_main_process: bool = True,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes a transformer's adapter, or that in a gathered state dict, with its configuration as metadata."""
    LoomVideoPipeline.save_lora_weights(
        folder,
        get_peft_model_state_dict(transformer, state_dict),
        is_main_process=is_main_process,
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )


def save_checkpoint(
    accelerator: Accelerator, folder: Path, step: int, state: dict[str, Any], ema: EMAModel | None, keep: int
) -> None:
    """
    Writes a checkpoint under a temporary name, renames it once all of it is on disk, and then removes old ones.

    Args:
        accelerator: of this process; all processes call this.
        folder: of the checkpoints.
        step: after which it is written.
        state: what `read_state` will return.
        ema: the moving average, or None.
        keep: how many of the latest checkpoints stay.

    Raises:
        OSError: if it cannot be written; earlier checkpoints stay.
    """
    unfinished = folder / f".unfinished-{step:06d}"
    try:
        accelerator.save_state(str(unfinished))
        if accelerator.is_main_process:
            if ema is not None:
                save_file(
                    {str(index): tensor for index, tensor in enumerate(ema.shadow_params)}, unfinished / EMA_FILE
                )
                state = state | {"ema_optimization_step": ema.optimization_step}
            (unfinished / STATE_FILE).write_text(json.dumps(state, indent=2), encoding="utf-8")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for path in [*unfinished.rglob("*"), unfinished]:
                _sync(path)
            os.replace(unfinished, folder / f"step-{step:06d}")
            _sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        # PyTorch reports a full disk as a RuntimeError with another message.
        reason = reason_of_full_disk(error, unfinished) or error
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(
            f"The checkpoint of step {step} could not be written to {folder} ({reason}): make room, and continue from "
            "the previous one with --resume."
        ) from error
    if accelerator.is_main_process:
        for old in find_checkpoints(folder)[:-keep]:
            # Removing takes time, and a half-removed checkpoint must not look like a whole one.
            removed = old.with_name(f".removed-{old.name}")
            os.replace(old, removed)
            shutil.rmtree(removed)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, path: Path, state: dict[str, Any], ema: EMAModel | None) -> None:
    """
    Puts everything back as it was when a checkpoint was written; `state` is what `read_state` returned.

    Raises:
        LoomVideoError: if a file of the checkpoint is missing or damaged.
    """
    try:
        if accelerator.process_index < state["num_processes"]:
            # Accelerate would continue without it if it cannot be read.
            load(path / f"random_states_{accelerator.process_index}.pkl")
        accelerator.load_state(str(path))
        if ema is not None:
            tensors = load_file(path / EMA_FILE)
            for index, shadow in enumerate(ema.shadow_params):
                shadow.copy_(tensors[str(index)])
            ema.optimization_step = state["ema_optimization_step"]
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError, UnpicklingError) as error:
        raise _damaged(path, error) from error


def read_state(path: Path) -> dict[str, Any]:
    """Reads the `state` of a checkpoint, or raises LoomVideoError if it is damaged."""
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(state, dict) or not state.keys() >= STATE_KEYS:
        raise _damaged(path, f"{STATE_FILE} is not complete")
    return state


def _damaged(path: Path, reason: Exception | str) -> LoomVideoError:
    return LoomVideoError(
        f"The checkpoint {path} is damaged ({reason}): delete it, and --resume continues from the one before it."
    )


def find_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the earliest first."""
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _sync(path: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot sync folders, nor files that are open for reading.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
