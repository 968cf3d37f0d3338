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
"""How the weights change: optimizers, learning rates, and the moving average."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .config import OptimizerSettings, TrainingConfig


class Optimization:
    """
    A model with everything that changes its weights.

    Attributes:
        model: prepared by `accelerator`, which wraps it where there are several processes.
        parameters: the weights that are trained.
        optimizers, schedulers: one, or two with Muon; a scheduler for each optimizer.
        ema: the moving average of `parameters`, or None.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, config: TrainingConfig):
        self.accelerator = accelerator
        self.max_grad_norm = config.optimizer.max_grad_norm
        self.model, *self.optimizers = accelerator.prepare(model, *make_optimizers(model, config.optimizer))
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # Not prepared, because that would step them once for each process
        self.schedulers = [make_scheduler(optimizer, config) for optimizer in self.optimizers]
        self.ema = None if config.ema_decay is None else EMAModel(self.parameters, decay=config.ema_decay)

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return float(self.schedulers[0].get_last_lr()[0])

    def clip_gradients(self) -> float:
        """Clips the gradients and returns the norm that they had before."""
        return float(self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm))

    def step(self) -> None:
        """Changes the weights by their gradients, and clears these."""
        for optimizer, scheduler in zip(self.optimizers, self.schedulers):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.parameters)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Replaces the weights by their moving average, if there is one, within a `with` block."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)


def make_optimizers(model: nn.Module, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the matrices and AdamW for the rest, if there is any."""
    if settings.name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as adamw_class
    else:
        adamw_class = torch.optim.AdamW
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers: list[torch.optim.Optimizer] = []
    if settings.name == "muon":
        embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
        matrices = [parameter for parameter in parameters if parameter.ndim == 2 and parameter not in embeddings]
        parameters = [parameter for parameter in parameters if parameter.ndim != 2 or parameter in embeddings]
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                # One learning rate then suits both optimizers.
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if parameters:
        optimizers.append(
            adamw_class(
                parameters,
                lr=settings.learning_rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                eps=settings.eps,
            )
        )
    return optimizers


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> LambdaLR:
    settings, num_steps = config.optimizer, config.steps
    scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=num_steps,
    )
    if settings.lr_decay_steps:
        scheduler.lr_lambdas = [
            lambda step, factor=factor: factor(step) * min(1, (num_steps - step) / settings.lr_decay_steps)
            for factor in scheduler.lr_lambdas
        ]
    return scheduler
