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
"""What is trained: the model, its optimizers and schedules, the moving average, and the files that come of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, cast_training_params
from peft import LoraConfig
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Qwen3VLModel

from ..media.files import replace_folder, write_whole
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from .checkpoints import LORA_FILE, save_lora, save_only_lora
from .config import LoraSettings, OptimizerSettings, TrainingConfig
from .objective import TransformerWithTextEncoder


@dataclass
class TrainedModel:
    """
    Attributes:
        module: the transformer, or a `TransformerWithTextEncoder`, as Accelerate prepared it.
        parameters: those that are trained.
        optimizers, schedulers: one or two of each, by the settings.
        ema: the moving average of the parameters, or None.
    """

    module: nn.Module
    parameters: list[nn.Parameter]
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[LambdaLR]
    ema: EMAModel | None

    def step(self) -> float:
        """Changes the parameters by their gradients, which are gone then. Returns the learning rate."""
        learning_rate = self.schedulers[0].get_last_lr()[0]
        for optimizer, scheduler in zip(self.optimizers, self.schedulers):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.parameters)
        return learning_rate

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the moving average in the place of the parameters for a while."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)


def prepare_model(
    accelerator: Accelerator, config: TrainingConfig, folder: str, frozen_dtype: torch.dtype
) -> TrainedModel:
    """Loads what is trained from a model's folder, with what changes it. Seeds the random numbers before and after."""
    set_seed(config.seed)
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    transformer = LoomVideoTransformer3DModel.from_pretrained(
        folder,
        subfolder="transformer",
        # What is trained stays in float32, and so does what is sharded together with it.
        dtype=frozen_dtype if config.lora is not None and not is_sharded else torch.float32,
    )
    if config.lora is not None:
        _add_lora(transformer, config.lora)
        save_only_lora(accelerator)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.compile_blocks:
        # Groups of one sample and of many, with and without references, with and without padding: each is compiled.
        torch._dynamo.config.recompile_limit = 64
        transformer.compile_repeated_blocks(dynamic=True)
    module: nn.Module = transformer
    if config.train_text_encoder:
        text_encoder = Qwen3VLModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
        if config.compile_blocks:
            for layer in text_encoder.language_model.layers:
                layer.compile(dynamic=True)
        module = TransformerWithTextEncoder(transformer, text_encoder)
    module.train()
    module, *optimizers = accelerator.prepare(module, *_make_optimizers(module, config.optimizer))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # Not prepared: that would step it once for each process.
    schedulers = [_make_scheduler(optimizer, config) for optimizer in optimizers]
    ema = None if config.ema_decay is None else EMAModel(parameters, decay=config.ema_decay)
    set_seed(config.seed, device_specific=True)
    return TrainedModel(module, parameters, optimizers, schedulers, ema)


def _add_lora(transformer: LoomVideoTransformer3DModel, settings: LoraSettings) -> None:
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.target_modules,
        )
    )
    cast_training_params(transformer, torch.float32)


def _make_optimizers(model: torch.nn.Module, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    if settings.name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as adamw_class
    else:
        adamw_class = torch.optim.AdamW
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = []
    if settings.name == "muon":
        embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
        matrices = [parameter for parameter in parameters if parameter.ndim == 2 and parameter not in embeddings]
        parameters = [parameter for parameter in parameters if parameter.ndim != 2 or parameter in embeddings]
        # With this, one learning rate suits both.
        options = {"weight_decay": settings.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        optimizers.append(torch.optim.Muon(matrices, lr=settings.learning_rate, **options))
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


def _make_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> LambdaLR:
    settings, num_steps = config.optimizer, config.steps
    scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=num_steps,
    )
    if settings.lr_decay_steps:
        factors = scheduler.lr_lambdas
        scheduler.lr_lambdas = [
            lambda step, factor=factor: factor(step) * min(1, (num_steps - step) / settings.lr_decay_steps)
            for factor in factors
        ]
    return scheduler


def save_result(accelerator: Accelerator, model: torch.nn.Module, config: TrainingConfig, output_dir: Path) -> Path:
    """Writes the LoRA, or the transformer and the MLLM, into the output folder, each whole or not at all."""
    state_dict = accelerator.get_state_dict(model)
    model = accelerator.unwrap_model(model)
    if config.lora is not None:
        path = output_dir / LORA_FILE
        if accelerator.is_main_process:
            write_whole(path, lambda file: save_lora(model, Path(file).parent, state_dict=state_dict))
    else:
        path = output_dir / "transformer"
        if accelerator.is_main_process:
            if config.train_text_encoder:
                replace_folder(output_dir / "text_encoder", model.text_encoder.save_pretrained)
                model, state_dict = model.transformer, model.transformer.state_dict()
            with torch.device("meta"):
                whole = LoomVideoTransformer3DModel.from_config(model.config)
            whole.load_state_dict(state_dict, assign=True)
            replace_folder(path, whole.save_pretrained)
    accelerator.wait_for_everyone()
    return path
