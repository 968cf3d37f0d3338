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
"""The training objective: timesteps, and the loss of samples."""

import pytest
import torch
from transformers import Qwen3VLModel

from loomvideo_diffusers import LoomVideoTransformer3DModel
from loomvideo_diffusers.training.batches import Draw, TrainingDataset
from loomvideo_diffusers.training.data import read_clip, read_records
from loomvideo_diffusers.training.features import Encoders
from loomvideo_diffusers.training.objective import (
    TransformerWithTextEncoder,
    add_noise,
    dynamic_shift,
    group_by_shape,
    sample_timestep,
    squared_error,
    velocity_target,
)
from loomvideo_diffusers.training.step import SampleMaker


pytest_plugins = ["training_fixtures"]


def test_timesteps():
    """Logit-normal where nothing is shifted, and towards noise where there are many tokens."""
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.tensor([sample_timestep(1.0, generator) for _ in range(4000)])
    logits = timesteps.logit()
    assert logits.mean().item() == pytest.approx(0, abs=0.06)
    assert logits.std().item() == pytest.approx(1, abs=0.04)
    shifted = sample_timestep(dynamic_shift(4096), torch.Generator().manual_seed(1))
    plain = sample_timestep(dynamic_shift(64), torch.Generator().manual_seed(1))
    assert dynamic_shift(4096) == 4.0
    assert shifted == pytest.approx(4 * plain / (1 + 3 * plain))


def test_noise_and_target():
    """A thousandth of the noise stays at timestep 0, and the target is the path's derivative."""
    latents, noise = torch.full((3, 1, 1, 1, 1), 2.0), torch.full((3, 1, 1, 1, 1), 3.0)
    noised = add_noise(latents, noise, torch.tensor([0.0, 0.5, 1.0]))
    assert noised.flatten().tolist() == pytest.approx([2.003, 2.5015, 3.0], rel=1e-6)
    assert velocity_target(latents, noise).flatten().tolist() == pytest.approx([0.997] * 3, rel=1e-6)


def test_timestep_shift(make_config, model_folder):
    """A shift of the settings takes the place of that by the number of tokens."""
    encoders = Encoders(str(model_folder), 4, torch.device("cpu"), torch.float32)
    item = TrainingDataset(read_records(make_config().data)[0], read_clip, 0.0, 0.0)[Draw(1, 5)]
    own, plain, shifted = (
        SampleMaker(encoders, (1, 2, 2), shift, {}, torch.device("cpu")).make(item).timestep
        for shift in (None, 1.0, 4.0)
    )
    assert own == plain
    assert shifted == pytest.approx(4 * plain / (1 + 3 * plain))


def test_text_encoder_and_transformer_as_one_model(make_config, model_folder):
    """Trained with its MLLM, a batch of prompts of any lengths has the loss that it has with embeds made before."""
    config = make_config(lora=None)
    items = {}
    for num_layers in (None, 4):
        encoders = Encoders(str(model_folder), num_layers, torch.device("cpu"), torch.float32)
        dataset = TrainingDataset(read_records(config.data)[0], read_clip, 0.0, 0.0)
        maker = SampleMaker(encoders, (1, 2, 2), None, {}, torch.device("cpu"))
        items[num_layers] = [maker.make(dataset[Draw(row, row)]) for row in (0, 2, 4)]
    transformer = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")
    text_encoder = Qwen3VLModel.from_pretrained(model_folder, subfolder="text_encoder")
    as_one = TransformerWithTextEncoder(transformer, text_encoder)
    for group, embedded in zip(group_by_shape(items[None]), group_by_shape(items[4])):
        error = squared_error(as_one, group)
        assert error.item() == pytest.approx(squared_error(transformer, embedded).item(), rel=1e-5)
        error.backward()
    assert text_encoder.language_model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
    assert text_encoder.visual.blocks[0].mlp.linear_fc1.weight.grad.abs().max() > 0
