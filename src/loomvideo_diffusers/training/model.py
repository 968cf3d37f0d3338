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
"""The model that is trained, from its folder to the files of the result."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import nn
from transformers import Qwen3VLModel

from ..media.files import replace_folder, write_whole
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from .checkpoints import LORA_FILE, save_lora, save_only_lora
from .config import LoraSettings, TrainingConfig
from .objective import TransformerWithTextEncoder
from .processes import is_sharded


def load_model(
    accelerator: Accelerator, folder: str, config: TrainingConfig, frozen_dtype: torch.dtype
) -> LoomVideoTransformer3DModel | TransformerWithTextEncoder:
    """Loads the transformer, with its LoRA or its MLLM if these are trained, ready to train."""
    transformer = LoomVideoTransformer3DModel.from_pretrained(
        folder,
        subfolder="transformer",
        # What is trained stays in float32, and so does what is sharded together with it.
        dtype=frozen_dtype if config.lora is not None and not is_sharded(accelerator) else torch.float32,
    )
    if config.lora is not None:
        _add_lora(transformer, config.lora)
        save_only_lora(accelerator)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.compile_blocks:
        # Each kind of group is compiled: one sample or many, with and without references, with and without padding.
        torch._dynamo.config.recompile_limit = 64
        transformer.compile_repeated_blocks(dynamic=True)
    if not config.train_text_encoder:
        return transformer.train()
    text_encoder = Qwen3VLModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    if config.compile_blocks:
        for layer in text_encoder.language_model.layers:
            layer.compile(dynamic=True)
    return TransformerWithTextEncoder(transformer, text_encoder).train()


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


def save_result(accelerator: Accelerator, model: nn.Module, config: TrainingConfig) -> Path:
    """Writes the LoRA, or the transformer and the MLLM, into the output folder, each whole or not at all."""
    path = Path(config.output_dir) / (LORA_FILE if config.lora is not None else "transformer")
    state_dict = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model)
        if config.lora is not None:
            write_whole(path, lambda file: save_lora(model, Path(file).parent, state_dict=state_dict))
        else:
            _save_folders(model, state_dict, path)
    accelerator.wait_for_everyone()
    return path


def _save_folders(model: Any, state_dict: dict[str, torch.Tensor], path: Path) -> None:
    if isinstance(model, TransformerWithTextEncoder):
        replace_folder(path.with_name("text_encoder"), model.text_encoder.save_pretrained)
        model, state_dict = model.transformer, model.transformer.state_dict()
    with torch.device("meta"):
        whole = LoomVideoTransformer3DModel.from_config(model.config)
    whole.load_state_dict(state_dict, assign=True)
    replace_folder(path, whole.save_pretrained)
