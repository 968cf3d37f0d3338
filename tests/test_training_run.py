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
"""Training runs: what they learn, log, validate, save and push."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import messages
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file
from training_tools import ALL_LAYERS, equal_files, read_log, reset_process, run_again, start, write_config
from transformers import Qwen3VLModel

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.cli import main
from loomvideo_diffusers.media import read_video
from loomvideo_diffusers.media.images import read_image
from loomvideo_diffusers.training import train
from loomvideo_diffusers.training.batches import Draw, TrainingDataset
from loomvideo_diffusers.training.checkpoints import find_checkpoints
from loomvideo_diffusers.training.data import read_records, record_of
from loomvideo_diffusers.training.features import FeatureStore, hash_inputs
from loomvideo_diffusers.training.objective import (
    squared_error,
)
from loomvideo_diffusers.training.publishing import find_license
from loomvideo_diffusers.training.step import SampleMaker


pytest_plugins = ["training_fixtures"]


@pytest.mark.parametrize(("steps", "share"), [(20, 0.9), pytest.param(200, 0.4, marks=pytest.mark.slow)])
def test_lora_learns(make_config, clips, model_folder, tmp_path, pipe, steps, share):
    """A LoRA of rank 8 on four clips: its loss falls, in 200 steps by 60 %; its file changes what is generated."""
    config = make_config(
        data={
            "datasets": [{"records": str(clips / "cats.json")}],
            "features": str(tmp_path / "features"),
            "drop_all": 0.0,
            "drop_text": 0.0,
        },
        lora={"rank": 8, "target_modules": ALL_LAYERS},
        optimizer={"learning_rate": 1e-2},
        steps=steps,
    )
    path = train(config)
    records, _ = read_records(config.data)
    files = [file for row in records for file in record_of(row).files]
    digests = hash_inputs(config.model, files)
    store = FeatureStore(config.data.features, digests, 4, torch.float32, config.data.variants())
    dataset = TrainingDataset(records, store.read, 0.0, 0.0)
    maker = SampleMaker(None, (1, 2, 2), None, {}, torch.device("cpu"))
    samples = [maker.make(dataset[Draw(seed % 4, 1000 + seed)]) for seed in range(32)]

    @torch.no_grad()
    def loss() -> float:
        return squared_error(pipe.transformer, samples).item() / sum(sample.latents.numel() for sample in samples)

    call = {"prompt": "cat 1", "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 4}

    def generate() -> np.ndarray:
        return pipe(**call, generator=torch.Generator().manual_seed(0), output_type="latent").frames.numpy()

    loss_before, latents_before = loss(), generate()
    pipe.load_lora_weights(path)
    assert loss() < share * loss_before
    latents = generate()
    assert np.abs(latents - latents_before).max() > 0.1
    pipe.fuse_lora()
    assert np.abs(generate() - latents).max() < 1e-4


def test_two_processes_equal_twice_the_accumulation(make_config, tmp_path):
    """The gradients of the first step, out of the optimizer's averages, and the weights after three."""
    options = {"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 3, "gradient_checkpointing": True}
    options["lora"] = {"target_modules": ALL_LAYERS}
    alone = make_config(**options, gradient_accumulation_steps=2, output_dir=str(tmp_path / "alone"))
    train(alone)
    sample = {"prompt": "a cat", "height": 64, "width": 64, "num_frames": 1}
    together = make_config(
        **options,
        output_dir=str(tmp_path / "together"),
        data={"features": str(tmp_path / "features")},
        validation={"samples": [sample, sample], "num_inference_steps": 1},
    )

    def launch(*arguments: str) -> None:
        """As torchrun does: each process learns from its environment which it is, and where they meet."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        environment = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        processes = [
            start(
                together, tmp_path / f"process-{rank}", *arguments, **environment, RANK=str(rank), LOCAL_RANK=str(rank)
            )
            for rank in range(2)
        ]
        for rank, process in enumerate(processes):
            process.join(timeout=200)
            assert process.exitcode == 0, (tmp_path / f"process-{rank}.err").read_text()

    launch()
    # One process has to make its sample again, which the other waits for.
    sheet = tmp_path / "together" / "samples" / "step-000003-1.png"
    sheet.unlink()
    launch("--resume")
    assert sheet.exists()
    gradients = []
    for config in (alone, together):
        checkpoint = Path(config.output_dir) / "checkpoints" / "step-000001"
        state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
        gradients.append([average["exp_avg"] / 0.1 for average in state.values()])
    assert sum(gradient.abs().sum() for gradient in gradients[0]) > 0
    for first, second in zip(*gradients):
        assert (first - second).abs().max() < 1e-5
    weights = [load_file(Path(config.output_dir) / "pytorch_lora_weights.safetensors") for config in (alone, together)]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-5


def test_bfloat16(make_config, tmp_path):
    """The frozen weights are in bfloat16, the trained ones in float32, and the loss is about the same."""
    losses = []
    for precision in ("no", "bf16"):
        config = make_config(
            mixed_precision=precision,
            tracker="tensorboard",
            output_dir=str(tmp_path / precision),
            validation={
                "samples": [{"prompt": "a cat", "height": 64, "width": 64, "num_frames": 1}],
                "num_inference_steps": 2,
            },
        )
        result = run_again(config)
        assert {tensor.dtype for tensor in load_file(result).values()} == {torch.float32}
        losses.append(read_log(config, "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.slow
def test_compiled_blocks(make_config, tmp_path):
    """Those of transformer and MLLM compute what the others compute, and are saved under the same names."""
    results = {}
    for compile_blocks in (False, True):
        settings = {"lora": None, "train_text_encoder": True, "compile_blocks": compile_blocks}
        torch._dynamo.utils.clear_compilation_metrics()
        folder = run_again(make_config(**settings, output_dir=str(tmp_path / str(compile_blocks))))
        compiled = {Path(metrics.co_filename).stem for metrics in torch._dynamo.utils.get_compilation_metrics()}
        # Some versions of Transformers call the MLLM's layers through a class in a module of its own.
        assert bool(compiled & {"modeling_qwen3_vl", "modeling_layers"}) == compile_blocks
        assert ("transformer_loomvideo" in compiled) == compile_blocks
        transformer = load_file(folder / "diffusion_pytorch_model.safetensors")
        results[compile_blocks] = transformer | load_file(folder.parent / "text_encoder" / "model.safetensors")
    assert results[True].keys() == results[False].keys()
    for name, tensor in results[False].items():
        torch.testing.assert_close(results[True][name], tensor, atol=1e-4, rtol=1e-3)


def test_validation_and_result(make_config, clips, tmp_path):
    samples = [
        {"prompt": "a cat", "height": 64, "width": 64, "num_frames": 9},
        {"prompt": "invert it", "video": str(clips / "cat-1.mp4"), "reference_images": [str(clips / "coffee.png")]},
        {"prompt": "crop it", "image": str(clips / "coffee.png"), "height": 64, "width": 64},
    ]
    validation = {"samples": samples, "every": 2, "num_inference_steps": 1, "guidance_scale": 2.0}
    settings = {"validation": validation, "tracker": "tensorboard", "steps": 4, "ema_decay": 0.5}
    config = make_config(**settings, data={"features": str(tmp_path / "features")})
    result = train(config)
    folder = Path(config.output_dir)
    names = {path.name for path in (folder / "samples").iterdir()}
    assert names == {f"step-00000{step}-{n}.png" for step in (2, 4) for n in (1, 2, 3)} | {
        f"step-00000{step}-{n}.mp4" for step in (2, 4) for n in (1, 2)
    }
    assert read_video(folder / "samples" / "step-000004-2.mp4").shape == (9, 96, 96, 3)
    assert read_image(folder / "samples" / "step-000004-2.png").height == 2 * 128
    assert len(read_log(config, "loss")) == 4

    assert result == folder / "pytorch_lora_weights.safetensors"
    card = (folder / "README.md").read_text()
    assert "base_model" not in card.split("---")[1]
    assert str(config.model) not in card
    assert "![a cat](samples/step-000004-1.png)" in card
    assert "rank: 4" in card


def test_full_fine_tune(make_config, model_folder):
    result = train(make_config(lora=None, steps=2))
    trained = LoomVideoTransformer3DModel.from_pretrained(result)
    before = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer").state_dict()
    changed = [name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])]
    assert set(changed) == set(before)
    pipe = LoomVideoEditPipeline.from_pretrained(model_folder, transformer=trained)
    assert pipe.transformer is trained


def test_training_the_text_encoder(make_config, clips, model_folder, tmp_path):
    """It learns too, from features on disk as from clips, is shown as it is then, and loads with the transformer."""
    options = {"lora": None, "train_text_encoder": True, "optimizer": {"learning_rate": 1e-2}}
    sample = {"prompt": "invert it", "video": str(clips / "cat-1.mp4"), "height": 64, "width": 64}
    options["validation"] = {"samples": [sample], "every": 1, "num_inference_steps": 1}
    options["steps"] = 2
    result = train(make_config(**options))
    trained = load_file(result.parent / "text_encoder" / "model.safetensors")
    before = load_file(model_folder / "text_encoder" / "model.safetensors")
    assert trained.keys() == before.keys()
    assert (
        trained["language_model.embed_tokens.weight"] - before["language_model.embed_tokens.weight"]
    ).abs().max() > 0
    sheets = sorted((tmp_path / "run" / "samples").glob("*.png"))
    assert len(sheets) == 2
    assert sheets[0].read_bytes() != sheets[1].read_bytes()
    stored = make_config(**options, data={"features": str(tmp_path / "features")}, output_dir=str(tmp_path / "stored"))
    again = run_again(stored)
    assert equal_files(result / "diffusion_pytorch_model.safetensors", again / "diffusion_pytorch_model.safetensors")
    pipe = LoomVideoPipeline.from_pretrained(
        model_folder,
        transformer=LoomVideoTransformer3DModel.from_pretrained(result),
        text_encoder=Qwen3VLModel.from_pretrained(result.parent / "text_encoder"),
    )
    assert pipe("a cat", height=64, width=64, num_frames=1, num_inference_steps=1).frames.shape == (1, 1, 64, 64, 3)


def test_lora_with_muon(make_config):
    """All of an adapter is matrices, so that AdamW has nothing to do beside it."""
    adapter = load_file(run_again(make_config(optimizer={"name": "muon"}, steps=2)))
    assert all(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_learning_rate(make_config):
    config = make_config(
        optimizer={"lr_warmup_steps": 2, "lr_scheduler": "linear", "learning_rate": 1e-3}, tracker="tensorboard"
    )
    train(config)
    assert read_log(config, "learning_rate") == pytest.approx([0, 5e-4, 1e-3, 5e-4])


def test_learning_rate_that_falls_in_the_end(make_config):
    """A run may be made longer, and decide when its rate is to fall, until it has begun to fall."""
    options = {"lr_warmup_steps": 1, "learning_rate": 1e-3}
    train(make_config(steps=2, optimizer=options))
    config = make_config(steps=5, checkpoint_every=1, optimizer=options | {"lr_decay_steps": 2}, tracker="tensorboard")
    run_again(config, resume=True)
    assert read_log(config, "learning_rate") == pytest.approx([1e-3, 1e-3, 5e-4])
    with pytest.raises(ValueError, match=r"`optimizer\.lr_decay_steps` is 3, but was 2"):
        run_again(make_config(steps=6, optimizer=options | {"lr_decay_steps": 3}), resume=True)


def test_licence_of_a_card(make_config, model_folder, hub, tmp_path):
    """That of the settings, or of the model's card; none where there is no card, here or on the Hub."""
    shutil.copytree(model_folder, tmp_path / "model")
    config = make_config(model=str(tmp_path / "model"))
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert find_license(config) == {"license": "mit"}
    assert find_license(make_config(model=str(tmp_path / "model"), license="apache-2.0")) == {"license": "apache-2.0"}
    (tmp_path / "model" / "README.md").unlink()
    assert find_license(config) == {}
    assert find_license(config.model_copy(update={"model": "me/nothing"})) == {}


def test_push(make_config, hub, tmp_path, monkeypatch, capsys):
    """The LoRA and its card arrive, checkpoints and logs do not, and the token is never shown."""
    settings = {"steps": 2, "hub_model_id": "me/cats"}
    with pytest.raises(ValueError, match="states no licence: set `license`"):
        train(make_config(**settings), push=True)
    config = make_config(**settings, license="mit")

    def push(**environment: str) -> tuple[int, str, str]:
        process = start(config, tmp_path / "push", "--push-to-hub", **environment)
        process.join()
        return process.exitcode, (tmp_path / "push.out").read_text(), (tmp_path / "push.err").read_text()

    exit_code, output, errors = push()
    assert exit_code == 0, errors
    assert f"Pushed: {hub.address}/me/cats" in output
    assert "hf_mine" not in output + errors
    assert hub.files("me/cats") == {"README.md", "pytorch_lora_weights.safetensors"}
    lora = (tmp_path / "run" / "pytorch_lora_weights.safetensors").read_bytes()
    assert hub.read("me/cats", "pytorch_lora_weights.safetensors") == lora
    card = ModelCard.load("me/cats")
    assert 'pipe.load_lora_weights("me/cats")' in card.text
    assert re.search(r"\| LoRA \| [\d,]+ \| float32 \| [\d.]+ MB \|", card.text)
    assert card.data.license == "mit"

    shutil.rmtree(tmp_path / "run")
    exit_code, _, errors = push(HF_TOKEN="hf_wrong")
    assert exit_code == 2
    assert "401" in errors
    assert "hf_wrong" not in errors
    # Read from the environment when the client is imported
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    reset_process()
    assert main(["train", str(write_config(config, tmp_path / "push.yaml")), "--push-to-hub"]) == 2
    assert "me/cats cannot be created on the Hub" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_loss_that_is_no_number(make_config):
    config = make_config(optimizer={"learning_rate": 1e30}, steps=10, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"of step \d is no longer a number: .* last good checkpoint is .*step-00000"):
        train(config)
    checkpoints = find_checkpoints(Path(config.output_dir) / "checkpoints")
    last = load_file(checkpoints[-1] / "pytorch_lora_weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_command(make_config, tmp_path):
    """The command line: a run, what it prints, and one line for bad input."""
    config = make_config(steps=2)
    command = [sys.executable, "-m", "loomvideo_diffusers.training", str(write_config(config, tmp_path / "c.yaml"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    title, images, videos, plan, written = result.stdout.splitlines()
    assert title == "Clips by width x height x frames:"
    assert [images.split(), videos.split()] == [["64", "x", "64", "x", "1", "2"], ["64", "x", "64", "x", "9", "4"]]
    # A batch of the images, of the videos with a reference and with two, and of the others
    assert re.fullmatch(r"Training [\d,]+ parameters from step 0 to 2\. Samples: 6\. Batches an epoch: .*", plan)
    assert plan.endswith("Batches an epoch: 4, a step: 1. Epochs: 0.5.")
    assert written == f"Wrote {tmp_path / 'run' / 'pytorch_lora_weights.safetensors'}."
    assert "Checking clips" in result.stderr
    assert "Training: 100%" in result.stderr
    # Nothing but bars, and what torchao says of a torch that it was not built for
    lines = [line.strip() for line in re.split(r"[\r\n]", result.stderr) if "torchao" not in line]
    assert [line for line in lines if line and not re.match(r"[\w .()=]+: +\d+%", line.replace("\x1b[A", ""))] == []
    again = start(config, tmp_path / "again")
    again.join()
    assert again.exitcode == 2
    (error,) = messages((tmp_path / "again.err").read_text())
    assert error.startswith("loomvideo: error: ")


def test_plan(make_config, clips, capsys):
    """A clip has 3 x 2 x 2 tokens, and batches hold as many as the settings say."""
    data = {"datasets": [{"records": str(clips / "cats.json")}], "tokens_per_batch": 24}
    train(make_config(data=data, steps=1))
    assert "Samples: 4. Batches an epoch: 2, a step: 1. Epochs: 0.5." in capsys.readouterr().out
