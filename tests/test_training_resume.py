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
"""Training runs that end early, and continue exactly."""

import contextlib
import os
import pty
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_tools import ALL_LAYERS, equal_files, find_features, run_again, start, wait_for, write_config

from loomvideo_diffusers.training import TrainingConfig, train
from loomvideo_diffusers.training.checkpoints import find_checkpoints
from loomvideo_diffusers.training.config import ValidationSample, ValidationSettings
from loomvideo_diffusers.training.validation import Validation


pytest_plugins = ["training_fixtures"]


RESUMED = {
    "lora": {"lora": {"rank": 4, "dropout": 0.1, "target_modules": ALL_LAYERS}, "ema_decay": 0.9},
    "full": {"lora": None, "ema_decay": 0.9},
    "text encoder, muon": {
        "lora": None,
        "train_text_encoder": True,
        "ema_decay": 0.9,
        "optimizer": {"name": "muon", "lr_scheduler": "constant"},
    },
    "checkpointing, accumulation, workers": {
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
        "data": {"num_workers": 1},
    },
}


@pytest.mark.parametrize("kind", RESUMED)
def test_resumed_equals_unbroken(make_config, kind, tmp_path):
    """4 steps, and 2 and 2: the same weights, bit for bit, and the same optimizer."""
    options = RESUMED[kind] | {"checkpoint_every": 2}
    results, text_encoders = [], []
    for name, stages in (("unbroken", [4]), ("resumed", [2, 4])):
        for steps in stages:
            torch.manual_seed(random.randrange(1000))
            result = run_again(
                make_config(**options, steps=steps, output_dir=str(tmp_path / name)), resume=steps > stages[0]
            )
        if result.is_dir():
            if (text_encoder := result.parent / "text_encoder" / "model.safetensors").exists():
                text_encoders.append(text_encoder)
            result = result / "diffusion_pytorch_model.safetensors"
        results.append((result, tmp_path / name / "checkpoints" / "step-000004"))
    (unbroken, unbroken_checkpoint), (resumed, resumed_checkpoint) = results
    assert equal_files(unbroken, resumed)
    assert len(text_encoders) == (2 if options.get("train_text_encoder") else 0)
    assert not text_encoders or equal_files(*text_encoders)
    for file in unbroken_checkpoint.glob("*.safetensors"):
        assert equal_files(file, resumed_checkpoint / file.name)
    for file in unbroken_checkpoint.glob("optimizer*.bin"):
        states = [torch.load(path, weights_only=True)["state"] for path in (file, resumed_checkpoint / file.name)]
        for index, state in states[0].items():
            assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())


def kill_and_resume(config: TrainingConfig, times: int, tmp_path: Path, seed: int) -> int:
    """Kills a run as often while it writes a checkpoint, resumes it each time, and returns how often it was killed."""
    checkpoints = Path(config.output_dir) / "checkpoints"
    rng = random.Random(seed)
    killed = 0
    for _ in range(times):
        process = start(config, tmp_path / "killed", "--resume")
        began = len(find_checkpoints(checkpoints))
        last = find_checkpoints(checkpoints)[-1:]
        skipped = rng.randrange(3)
        while process.is_alive():
            if any(checkpoints.glob(".unfinished-*")) and find_checkpoints(checkpoints)[-1:] != last:
                skipped -= 1
                last = find_checkpoints(checkpoints)[-1:]
                if skipped < 0:
                    time.sleep(rng.uniform(0, 0.03))
                    process.kill()
                    break
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL), (tmp_path / "killed.err").read_text()
        assert len(find_checkpoints(checkpoints)) >= min(began, 1)
    return killed


@pytest.mark.slow
def test_killed_while_writing_checkpoints(make_config, tmp_path):
    """There is always a whole checkpoint, and going on from it gives what an unbroken run gives, bit for bit."""
    times = 20
    options = {"lora": {"rank": 4, "target_modules": ALL_LAYERS}, "checkpoint_every": 1, "steps": 10 * times}
    expected = run_again(make_config(**options, output_dir=str(tmp_path / "unbroken")))
    config = make_config(**options, output_dir=str(tmp_path / "killed"))
    assert kill_and_resume(config, times, tmp_path, seed=times) == times
    result = run_again(config, resume=True)
    assert equal_files(result, expected)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_killed_at_random_moments(make_config, clips, tmp_path):
    """Whatever it was doing, the run goes on, gives what an unbroken one gives, and leaves nothing behind."""
    sample = {"prompt": "a cat", "video": str(clips / "cat-1.mp4"), "height": 64, "width": 64}
    options = {
        "lora": {"rank": 4},
        "checkpoint_every": 2,
        "steps": 120,
        "validation": {"samples": [sample], "every": 10, "num_inference_steps": 2},
    }
    folders = {name: tmp_path / name for name in ("unbroken", "killed")}
    configs = {
        name: make_config(**options, output_dir=str(folder), data={"features": str(tmp_path / f"{name}-features")})
        for name, folder in folders.items()
    }
    expected = run_again(configs["unbroken"])
    rng, num_killed = random.Random(0), 0
    for number in range(15):
        process = start(configs["killed"], tmp_path / "process", "--resume")
        if number < 3:
            # While it computes features
            features = tmp_path / "killed-features"
            wait_for(lambda: len(find_features(features)) > number, process)  # noqa: B023, called here
        else:
            wait_for((tmp_path / "process.out").read_text, process)
        time.sleep(rng.uniform(0, 0.5 if number >= 3 else 0.1))
        process.kill()
        process.join()
        num_killed += process.exitcode == -signal.SIGKILL
    assert num_killed >= 10
    assert equal_files(run_again(configs["killed"], resume=True), expected)
    for folder in (folders["killed"], tmp_path / "killed-features"):
        assert not list(folder.rglob(".*"))
    for sheet in (folders["unbroken"] / "samples").iterdir():
        again = folders["killed"] / "samples" / sheet.name
        assert again.read_bytes() == sheet.read_bytes() or sheet.suffix == ".mp4"


@pytest.mark.slow
def test_two_processes_are_terminated(make_config, tmp_path):
    """They end at the same step, though they learn of it at different moments."""
    config = make_config(steps=100_000, checkpoint_every=100_000)
    path = write_config(config, tmp_path / "config.yaml")
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    process = subprocess.Popen(
        [*run, "-m", "loomvideo_diffusers.training", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    while not (line := process.stdout.readline()).startswith("Training"):
        assert line
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    (checkpoint,) = find_checkpoints(Path(config.output_dir) / "checkpoints")
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"terminated after step {step}; its checkpoint is written" in errors
    assert {file.name for file in checkpoint.glob("random_states_*")} == {"random_states_0.pkl", "random_states_1.pkl"}


def test_running_twice(make_config, tmp_path):
    config = make_config(steps=2)
    train(config)
    with pytest.raises(ValueError, match="has checkpoints already: continue from the last one with --resume"):
        run_again(config)
    with pytest.raises(ValueError, match=r"`optimizer\.learning_rate` is 0\.5, but was 0\.001 when .*step-000002"):
        run_again(make_config(steps=4, optimizer={"learning_rate": 0.5}), resume=True)
    with pytest.raises(ValueError, match=r"Processes times `gradient_accumulation_steps` are 2, but were 1"):
        run_again(make_config(steps=4, gradient_accumulation_steps=2), resume=True)
    with pytest.raises(ValueError, match=r"`steps` is 1, but .*step-000002 is beyond that"):
        run_again(make_config(steps=1), resume=True)
    options = {"optimizer": {"lr_scheduler": "cosine"}, "output_dir": str(tmp_path / "cosine")}
    run_again(make_config(steps=3, **options))
    with pytest.raises(ValueError, match=r"`steps` is 4, but was 3"):
        run_again(make_config(steps=4, **options), resume=True)
    with pytest.raises(ValueError, match="`hub_model_id` is missing"):
        run_again(config, push=True)
    with pytest.raises(ValueError, match=r"`data\.features` is missing"):
        run_again(config, precompute_only=True)


def test_records_that_changed(make_config, clips, tmp_path):
    for line in ('{"text": "a cat", "path": "cat-0.mp4"}', '{"text": "a dog", "path": "cat-0.mp4"}'):
        (tmp_path / "r.jsonl").write_text(line)
        config = make_config(steps=2, data={"datasets": [{"records": str(tmp_path), "root": str(clips)}]})
        if "dog" in line:
            with pytest.raises(ValueError, match=r"The records are not those that .*step-000002 was written with"):
                run_again(config, resume=True)
        else:
            train(config)


@pytest.mark.parametrize(
    "name", ["optimizer.bin", "random_states_0.pkl", "trainer_state.json", "pytorch_lora_weights.safetensors"]
)
def test_damaged_checkpoints(make_config, run_of_three_steps, name):
    """They are named, and with the newest deleted, the run goes on from the one before."""
    config = make_config(steps=3, checkpoint_every=1)
    shutil.copytree(run_of_three_steps, config.output_dir)
    result = load_file(run_of_three_steps / "pytorch_lora_weights.safetensors")
    newest = find_checkpoints(Path(config.output_dir) / "checkpoints")[-1]
    file = newest / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        ValueError, match=r"step-000003 is damaged .*: delete it, and --resume continues from the one before it"
    ):
        run_again(config, resume=True)
    if name == "trainer_state.json":
        file.write_text("{}")
        with pytest.raises(ValueError, match="step-000003 is damaged"):
            run_again(config, resume=True)
    shutil.rmtree(newest)
    again = load_file(run_again(config, resume=True))
    assert all(torch.equal(tensor, again[name]) for name, tensor in result.items())


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_terminated(make_config, tmp_path, num_workers):
    """By SIGTERM, a run writes a checkpoint of the step that it is at, and goes on from that, exactly."""
    data = {"num_workers": num_workers}
    options = {"lora": {"rank": 4, "dropout": 0.1}, "steps": 12, "checkpoint_every": 3, "ema_decay": 0.9}
    options["keep_checkpoints"] = 1
    expected = run_again(make_config(**options, data=data, output_dir=str(tmp_path / "unbroken")))
    config = make_config(**options, data=data)
    checkpoints = Path(config.output_dir) / "checkpoints"
    process = start(config, tmp_path / "run")
    wait_for(lambda: find_checkpoints(checkpoints), process)
    # As schedulers do: all processes of the job, those that read data too
    os.killpg(process.pid, signal.SIGTERM)
    process.join(timeout=60)
    errors = (tmp_path / "run.err").read_text()
    assert process.exitcode == 143, errors
    (checkpoint,) = find_checkpoints(checkpoints)
    step = int(checkpoint.name.removeprefix("step-"))
    assert 3 <= step < 12
    assert errors.splitlines()[-1] == (
        f"loomvideo: terminated after step {step}; its checkpoint is written: continue with --resume."
    )
    assert not (Path(config.output_dir) / ".lock").exists()
    assert equal_files(run_again(config, resume=True), expected)


def test_terminated_while_it_validates(make_config, tmp_path):
    """Samples that take long are given up, and made when the run goes on."""
    sample = {"prompt": "a cat", "height": 128, "width": 128, "num_frames": 1}
    validation = {"samples": [sample], "every": 2, "num_inference_steps": 1000}
    config = make_config(steps=4, validation=validation)
    outer, inner = pty.openpty()  # where bars show at once what is being done
    process = start(config, tmp_path / "run", terminal=os.ttyname(inner))
    seen = b""
    while b"Sample 1" not in seen:
        seen += os.read(outer, 65536)
    os.close(inner)
    process.terminate()
    with contextlib.suppress(OSError):  # the end, on Linux
        while os.read(outer, 65536):
            pass
    os.close(outer)
    process.join()
    assert process.exitcode == 143
    (checkpoint,) = find_checkpoints(Path(config.output_dir) / "checkpoints")
    assert checkpoint.name == "step-000002"
    assert not list((Path(config.output_dir) / "samples").glob("*"))
    run_again(make_config(steps=4, validation=validation | {"num_inference_steps": 1}), resume=True)
    assert {path.name for path in (Path(config.output_dir) / "samples").iterdir()} == {
        "step-000002-1.png", "step-000004-1.png"
    }  # fmt: skip


def test_samples_that_are_given_up(edit, tmp_path):
    """Once it is asked to stop, no further sample is begun."""
    sample = ValidationSample(prompt="a cat", height=64, width=64, num_frames=1)
    settings = ValidationSettings(samples=[sample, sample], num_inference_steps=2)
    validation, asked = Validation(settings, 4, 0, 1, {}), []
    validation.prepare(lambda: edit)
    sheets = validation.run(
        edit.transformer, edit.vae, edit.scheduler, tmp_path, 1, should_stop=lambda: asked.append(1) is None
    )
    assert (sheets, len(asked)) == ({}, 1)


def test_two_runs_in_one_folder(make_config, tmp_path):
    """The second is refused at the start, until the first has ended or was killed; what that left is removed."""
    config = make_config(steps=100_000, checkpoint_every=5)
    folder = Path(config.output_dir)
    process = start(config, tmp_path / "first")
    wait_for(lambda: len(find_checkpoints(folder / "checkpoints")) > 0, process)
    again = make_config(steps=len(find_checkpoints(folder / "checkpoints")))
    with pytest.raises(ValueError, match=f"Another run is writing to {folder}: wait until it has ended"):
        train(again, resume=True)
    process.kill()
    process.join()
    for name in (".unfinished-lora", "checkpoints/.unfinished-000009", "samples/.unfinished-a.mp4~12345678"):
        (folder / name).mkdir(parents=True)
    last = int(find_checkpoints(folder / "checkpoints")[-1].name.removeprefix("step-"))
    run_again(make_config(steps=last + 1, checkpoint_every=5), resume=True)
    assert not list(folder.rglob(".*"))


def test_full_disk(make_config):
    """A checkpoint that does not fit leaves the previous one as it was, and the run goes on from that."""
    config = make_config(lora=None, steps=1, checkpoint_every=1)
    train(config)
    checkpoints = Path(config.output_dir) / "checkpoints"
    before = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    longer = make_config(lora=None, steps=2, checkpoint_every=1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with pytest.raises(OSError, match=r"checkpoint of step 2 could not be written .*from the previous one"):
            run_again(longer, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()} == before
    assert run_again(longer, resume=True).exists()


def test_validation_that_was_interrupted(make_config):
    """A run that ended between its last checkpoint and its last samples makes them when it is resumed."""
    sample = {"prompt": "a cat", "height": 64, "width": 64, "num_frames": 1}
    config = make_config(steps=2, validation={"samples": [sample], "num_inference_steps": 1})
    train(config)
    sheet = Path(config.output_dir) / "samples" / "step-000002-1.png"
    sheet.unlink()
    run_again(config, resume=True)
    assert sheet.exists()
