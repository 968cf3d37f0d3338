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
"""Numbers of training runs, each computed here a second time from its definition."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training_tools import equal_files, read_log, run_again

from loomvideo_diffusers import LoomVideoTransformer3DModel
from loomvideo_diffusers.training import TrainingConfig, train
from loomvideo_diffusers.training.batches import Item, TokenBatchSampler, load_batches, make_sampler
from loomvideo_diffusers.training.checks import FREE_KEYS, check_unchanged
from loomvideo_diffusers.training.data import read_clip, read_records, record_of
from loomvideo_diffusers.training.features import Encoders, Features
from loomvideo_diffusers.training.model import load_model
from loomvideo_diffusers.training.objective import dynamic_shift
from loomvideo_diffusers.training.optimization import make_optimizers
from loomvideo_diffusers.training.processes import make_accelerator
from loomvideo_diffusers.training.step import SampleMaker


pytest_plugins = ["training_fixtures"]


def test_loss_and_gradients_of_a_step(make_config, model_folder):
    """The mean squared error over all elements of two batches, and the norm of its gradients, before and after."""
    config = make_config(
        lora=None,
        steps=1,
        seed=5,
        gradient_accumulation_steps=2,
        timestep_shift=3.0,
        data={"drop_all": 0.0, "drop_text": 0.0, "tokens_per_batch": 36},
        optimizer={"max_grad_norm": 0.01, "betas": [0.9, 0.95]},
        tracker="tensorboard",
    )
    train(config)

    records = [record_of(row) for row in read_records(config.data)[0]]
    shapes = [record.shape for record in records]
    sampler = TokenBatchSampler(shapes, [0] * len(records), None, (4, 32), 36, seed=5)
    encoders = Encoders(str(model_folder), 4, torch.device("cpu"), torch.float32)
    transformer = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer").train()
    draws = [draw for batch in sampler.epoch(0)[:2] for draw in batch]
    assert len(draws) > 2
    error, num_elements = 0, 0
    for draw in draws:
        features = encoders.encode(read_clip(records[draw.row], "nothing"))
        generator = torch.Generator().manual_seed(draw.seed)
        plain = 1 / (1 + math.exp(-torch.randn((), generator=generator, dtype=torch.float64).item()))
        timestep = torch.tensor([3 * plain / (1 + 2 * plain)])
        noise = torch.randn(features.latents.shape, generator=generator)
        has_source = features.source_latents is not None
        velocity = transformer(
            hidden_states=((1 - timestep) * features.latents + (0.001 + 0.999 * timestep) * noise)[None],
            timestep=1000 * timestep,
            encoder_hidden_states=features.prompt["prompt_embeds"][None],
            source_hidden_states=features.source_latents[None] if has_source else None,
            source_scale=timestep,
            reference_hidden_states=[reference[None] for reference in features.reference_latents],
        ).sample[0]
        error = error + (velocity - (0.999 * noise - features.latents)).square().sum()
        num_elements += noise.numel()
    loss = error / num_elements
    loss.backward()
    norm = math.sqrt(sum(weight.grad.square().sum().item() for weight in transformer.parameters()))
    assert read_log(config, "loss") == pytest.approx([loss.item()], rel=1e-4)
    assert read_log(config, "grad_norm") == pytest.approx([norm], rel=1e-3)

    # AdamW's average after one step is a tenth of the gradients, clipped.
    checkpoint = Path(config.output_dir) / "checkpoints" / "step-000001"
    averages = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"].values()
    clipped = math.sqrt(sum((average["exp_avg"] / 0.1).square().sum().item() for average in averages))
    assert clipped == pytest.approx(0.01, rel=1e-3)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert (state["step"], state["batches"], state["batches_per_step"], state["num_processes"]) == (1, 2, 2, 1)


def test_moving_average(make_config):
    """Its decay is (1 + n) / (10 + n) after n steps, until that reaches the one of the settings; it is the result."""
    config = make_config(steps=4, ema_decay=0.2, checkpoint_every=1, keep_checkpoints=4)
    result = load_file(train(config))
    checkpoints = Path(config.output_dir) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [f"step-00000{step}" for step in (1, 2, 3, 4)]
    weights = [load_file(path / "pytorch_lora_weights.safetensors") for path in sorted(checkpoints.iterdir())]
    for name, average in weights[0].items():
        for decay, later in zip((2 / 11, 0.2, 0.2), weights[1:]):
            average = decay * average + (1 - decay) * later[name]
        torch.testing.assert_close(result[name], average, atol=1e-7, rtol=1e-5)


def test_checkpoints_that_are_due_and_kept(make_config):
    """Every second step and the last, of which the latest two stay; adapters say what they are."""
    config = make_config(steps=5, checkpoint_every=2, lora={"rank": 4, "dropout": 0.25})
    result = train(config)
    checkpoints = Path(config.output_dir) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000004", "step-000005"]
    with safe_open(result, "pt") as file:
        adapter = json.loads(file.metadata()["lora_adapter_metadata"])
        assert file.get_slice(next(name for name in file.keys() if "lora_A" in name)).get_shape()[0] == 4  # noqa: SIM118
    assert [adapter[f"transformer.{key}"] for key in ("r", "lora_alpha", "lora_dropout")] == [4, 4, 0.25]


def test_seed(make_config, tmp_path):
    """The same seed leads to the same weights, and another to others, of the adapter's beginning too."""
    results = [
        run_again(make_config(steps=1, seed=seed, output_dir=str(tmp_path / name)))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert equal_files(results[0], results[1])
    first, other = load_file(results[0]), load_file(results[2])
    # A step of AdamW moves a weight by no more than the learning rate of 1e-3.
    assert all((first[name] - other[name]).abs().max() > 0.01 for name in first if "lora_A" in name)


def test_shift_grows_with_tokens():
    """From 1 to 8 by 0.5 for each doubling beyond 64; references count, and a token is 2 x 2 latents."""
    assert [dynamic_shift(number) for number in (16, 64, 128, 2**18, 2**20, 2**22)] == [1, 1, 1.5, 7, 8, 8]
    features = Features(torch.zeros(8, 5, 16, 16), {}, None, [torch.zeros(8, 1, 16, 16)])
    own, plain = (
        SampleMaker(None, (1, 2, 2), shift, {}, torch.device("cpu")).make(Item(features, 7)).timestep
        for shift in (None, 1.0)
    )
    shift = 1 + 0.5 * math.log2(6 * 64 / 64)
    assert own == pytest.approx(shift * plain / (1 + (shift - 1) * plain))


def test_settings_of_optimizers(make_config):
    """Those of the settings, each where it belongs."""
    options = {"learning_rate": 0.5, "betas": [0.7, 0.8], "weight_decay": 0.25, "eps": 1e-5}
    model = torch.nn.Sequential(torch.nn.Embedding(2, 2), torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    (adamw,) = make_optimizers(model, make_config(optimizer=options).optimizer)
    (group,) = adamw.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.5, (0.7, 0.8), 0.25, 1e-5)
    muon, adamw = make_optimizers(model, make_config(optimizer=options | {"name": "muon"}).optimizer)
    assert muon.param_groups[0]["params"] == [model[1].weight]
    assert (muon.param_groups[0]["lr"], muon.param_groups[0]["weight_decay"]) == (0.5, 0.25)
    rest = adamw.param_groups[0]["params"]
    assert [id(weight) for weight in rest] == [
        id(weight) for weight in (model[0].weight, model[1].bias, model[2].weight, model[2].bias)
    ]


def test_batches_of_the_settings(make_config):
    """Conditions are dropped, and batches filled, as the settings say; workers change nothing."""
    config = make_config(data={"drop_all": 0.3, "drop_text": 0.6, "tokens_per_batch": 24}, seed=3)
    records = read_records(config.data)[0]
    sampler = make_sampler(make_accelerator(config), config, records, (4, 32), first_batch=0)
    assert sampler.batch_sizes == {(9, 64, 64, 0): 2, (9, 64, 64, 1): 1, (9, 64, 64, 2): 1, (1, 64, 64, 0): 6}
    orders = []
    for num_workers in (0, 1):
        data = config.data.model_copy(update={"num_workers": num_workers})
        batches = load_batches(config.model_copy(update={"data": data}), records, read_dropped, sampler)
        orders.append([item for _ in range(300) for item in next(batches)])
    assert orders[0] == orders[1]
    dropped = np.array([item.content for item in orders[0]])
    shares = [(dropped == kind).mean() for kind in ("all", "text", "nothing")]
    assert shares == pytest.approx([0.3, 0.6, 0.1], abs=0.06)


def read_dropped(record, dropped):
    return dropped


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_precision_of_weights(make_config, model_folder, precision):
    """What is frozen is in the given precision, apart from what the model keeps in float32; an adapter in float32."""
    accelerator = make_accelerator(make_config(mixed_precision=precision))
    frozen_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = load_model(accelerator, str(model_folder), make_config(), frozen_dtype)
    trained = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}
    assert model.blocks[0].attn1.to_q.base_layer.weight.dtype == frozen_dtype
    whole = load_model(accelerator, str(model_folder), make_config(lora=None), frozen_dtype)
    assert {weight.dtype for weight in whole.parameters()} == {torch.float32}
    assert all(weight.requires_grad for weight in whole.parameters())


def test_what_may_change_between_a_checkpoint_and_its_continuation(make_config, tmp_path):
    """What steps do not depend on, and a constant learning rate's end as long as it has not begun to fall."""
    config = make_config(steps=9, optimizer={"lr_decay_steps": 3})
    state = {"batches": 6, "num_processes": 1, "records": "", "schedulers": [], "failures": {}}
    state |= {"step": 6, "batches_per_step": 1, "config": config.model_dump(mode="json")}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))

    def changed(key: str, value) -> TrainingConfig:
        values = config.model_dump(mode="json")
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[name] = value
        return TrainingConfig.model_validate(values)

    free = {
        "output_dir": "b",
        "data.num_workers": 1,
        "validation": {"samples": [{"prompt": "a"}]},
        "gradient_checkpointing": True,
        "checkpoint_every": 3,
        "compile_blocks": True,
        "keep_checkpoints": 3,
        "tracker": "wandb",
        "hub_model_id": "a/b",
        "license": "mit",
    }
    assert free.keys() == FREE_KEYS
    for key, value in (free | {"steps": 20, "optimizer.lr_decay_steps": 2}).items():
        check_unchanged(changed(key, value), 1, tmp_path)
    # Two processes with half the accumulation
    check_unchanged(changed("gradient_accumulation_steps", 2), 1, tmp_path)
    for key, value in {
        "model": "b",
        "seed": 1,
        "ema_decay": 0.5,
        "timestep_shift": 2.0,
        "lora.rank": 2,
        "data.drop_all": 0.2,
        "data.tokens_per_batch": 1,
        "data.max_frames": 5,
        "optimizer.eps": 1e-3,
        "mixed_precision": "bf16",
    }.items():
        with pytest.raises(ValueError, match=f"`{key}` is .*, but was .*: set it back"):
            check_unchanged(changed(key, value), 1, tmp_path)
    # Step 7 was the first of lower learning rates.
    (tmp_path / "trainer_state.json").write_text(json.dumps(state | {"step": 7}))
    with pytest.raises(ValueError, match="`steps` is 20, but was 9"):
        check_unchanged(changed("steps", 20), 1, tmp_path)
