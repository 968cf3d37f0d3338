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
"""Trains a model of LoomVideo-nano on what is drawn as it is needed, and goes on where it was interrupted."""

import csv
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers import get_wsd_schedule

from ..media import write_whole


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What is drawn is drawn by processes of their own, as many as keep up.
NUM_WORKERS = 1 if DEVICE == "cpu" else os.cpu_count() or 1
WARMUP_STEPS = 50
CHECKPOINT_EVERY = 200


def fit(
    model: nn.Module,
    batches: Dataset,
    compute: Callable[[Any, int], tuple[torch.Tensor, dict[str, float]]],
    learning_rate: float,
    result: Path,
    ema_decay: float | None = None,
    decay_share: float = 1.0,
) -> None:
    """
    Trains what of a model needs gradients.

    Args:
        model: the model, on `DEVICE`.
        batches: by the number of the step, from 0, what it learns from.
        compute: makes of a batch and the number of its step, from 1, the loss and what else is logged.
        learning_rate: the highest.
        result: names the checkpoint, `.pt`, to go on from and to delete at the end, and the log, `.csv`.
        ema_decay: of a moving average of the weights, which takes their place at the end.
        decay_share: in how many of the steps, at the end, the learning rate falls to 0 in a cosine.
    """
    result.parent.mkdir(parents=True, exist_ok=True)
    checkpoint, log = result.with_suffix(".pt"), result.with_suffix(".csv")
    steps = len(batches)  # type: ignore[arg-type]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, optimizers = _make_optimizers(model, learning_rate)
    decay_steps = round(decay_share * max(0, steps - WARMUP_STEPS))
    schedulers = [get_wsd_schedule(optimizer, WARMUP_STEPS, decay_steps, steps) for optimizer in optimizers]
    ema = None if ema_decay is None else EMAModel(parameters, decay=ema_decay, foreach=True)
    first_step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=DEVICE)
        first_step = state["step"]
        model.load_state_dict(state["model"])
        for place, optimizer in enumerate(optimizers):
            optimizer.load_state_dict(state["optimizers"][place])
            schedulers[place].load_state_dict(state["schedulers"][place])
        if ema is not None:
            ema.load_state_dict(state["ema"])
            ema.to(DEVICE)
    rows = _read_log(log, first_step)

    remaining = DataLoader(Subset(batches, range(first_step, steps)), batch_size=None, num_workers=NUM_WORKERS)
    progress_bar = tqdm(remaining, total=steps, initial=first_step, desc=f"Training the {result.name}")
    for step, batch in enumerate(progress_bar, start=first_step + 1):
        with torch.autocast(DEVICE, torch.bfloat16):
            loss, values = compute(batch, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for weight, matrix in matrices.items():
            # In single pictures, nothing is convolved over time.
            matrix.grad = None if weight.grad is None else weight.grad.movedim(1, -1).flatten(1)
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            scheduler.step()
        model.zero_grad()
        if ema is not None:
            ema.step(parameters)
        rows.append({"step": step, "loss": loss.item()} | values)
        progress_bar.set_postfix({name: f"{value:.3f}" for name, value in rows[-1].items() if name != "step"})
        if step % CHECKPOINT_EVERY == 0 or step == steps:
            state = {
                "step": step,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "schedulers": [scheduler.state_dict() for scheduler in schedulers],
                "ema": None if ema is None else ema.state_dict(),
            }
            # First what may have rows too many
            write_whole(log, partial(_write_log, rows=rows))
            write_whole(checkpoint, partial(_write_checkpoint, state=state))
    if ema is not None:
        ema.copy_to(parameters)


def _make_optimizers(
    model: nn.Module, learning_rate: float
) -> tuple[dict[nn.Parameter, nn.Parameter], list[torch.optim.Optimizer]]:
    """
    Muon for matrices and convolutions, which learn in a third of the steps that AdamW needs, and AdamW for the rest.

    Muon takes matrices alone: returns for each weight the matrix that shares its memory, and the two optimizers.
    """
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices, others = {}, []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or parameter in embeddings or min(parameter.shape[0], parameter[0].numel()) < 16:
            others.append(parameter)
            continue
        # Channels last is what convolutions compute with, and what makes a matrix of a kernel without a copy.
        parameter.data = parameter.data.movedim(1, -1).contiguous().movedim(-1, 1)
        matrices[parameter] = nn.Parameter(parameter.data.movedim(1, -1).flatten(1))
    muon = torch.optim.Muon(matrices.values(), lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return matrices, [muon, torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)]


def _write_checkpoint(path: str, state: dict[str, Any]) -> None:
    with open(path, "wb") as file:  # torch takes no name that begins with a dot
        torch.save(state, file)


def _read_log(path: Path, last_step: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) <= last_step]


def _write_log(path: str, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
