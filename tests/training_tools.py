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
"""Clips, settings and processes of training runs: fixtures and helpers of the tests of training."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from conftest import FIXTURES
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loomvideo_diffusers.cli import main
from loomvideo_diffusers.media.images import read_image
from loomvideo_diffusers.media.video import read_video, write_image, write_video
from loomvideo_diffusers.training import TrainingConfig, train


ALL_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "linear_1", "linear_2", "time_proj"]
ALL_LAYERS += ["patch_embedding", "source_patch_embedding", "proj_out"]


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Clips of a cat, their negatives, pictures, and records of all tasks."""
    folder = tmp_path_factory.mktemp("clips")
    frames = read_video(FIXTURES / "cat.mp4")
    for index in range(4):
        clip = frames[4 * index : 4 * index + 9, 10 * index : 10 * index + 96, 20 * index : 20 * index + 96]
        write_video(folder / f"cat-{index}.mp4", clip)
        write_video(folder / f"negative-{index}.mp4", 255 - clip)
    coffee = read_image(FIXTURES / "coffee.jpg")
    write_image(folder / "coffee.png", coffee)
    write_image(folder / "portrait.jpg", coffee.resize((64, 96)))
    records = [
        {"text": "a cat", "path": "cat-0.mp4"},
        {"text": "a cup of coffee", "path": "coffee.png"},
        {"instruction": "invert it", "source_video_path": "cat-1.mp4", "target_video_path": "negative-1.mp4"},
        {"instruction": "crop it", "source_image_path": "coffee.png", "target_image_path": "portrait.jpg"},
        {
            "instruction": "a cat (@Image 1) and a cup (@Image 2)",
            "reference_image_paths": ["portrait.jpg", "coffee.png"],
            "target_video_path": "cat-2.mp4",
        },
        {
            "instruction": "invert it, with the cup",
            "reference_image_paths": ["coffee.png"],
            "source_video_path": "cat-3.mp4",
            "target_video_path": "negative-3.mp4",
        },
    ]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    (folder / "cats.json").write_text(json.dumps([{"text": f"cat {i}", "path": f"cat-{i}.mp4"} for i in range(4)]))
    return folder


@pytest.fixture
def make_config(model_folder, clips, tmp_path):
    """Settings of a small run, on all tasks if nothing else is said; nested ones as `data={"key": value}`."""

    def make(**options) -> TrainingConfig:
        values = {
            "model": str(model_folder),
            "output_dir": str(tmp_path / "run"),
            "data": {"datasets": [{"records": str(clips / "records.jsonl")}], "sizes": [[64, 64]], "num_workers": 0},
            "lora": {"rank": 4},
            "optimizer": {"learning_rate": 1e-3, "lr_warmup_steps": 0},
            "steps": 4,
            "mixed_precision": "no",
            "gradient_checkpointing": False,
        }
        for key, value in options.items():
            values[key] = (
                values[key] | value if isinstance(value, dict) and isinstance(values.get(key), dict) else value
            )
        return TrainingConfig.model_validate(values).with_defaults({})

    yield make
    reset_process()


def reset_process() -> None:
    """Runs configure their process, and the next one does so anew, as if it had a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def run_again(config: TrainingConfig, **options) -> Path | None:
    reset_process()
    return train(config, **options)


def start(
    config: TrainingConfig, path: Path, *options: str, stderr: int | None = None, **environment: str
) -> ForkProcess:
    """
    Starts `loomvideo train` in a process and a group of its own, forked so that nothing has to be imported again.

    Its settings are in `path`.yaml; what it prints goes to `path`.out and `path`.err, or to the descriptor `stderr`.
    """

    def run() -> None:
        os.setsid()
        os.environ.update(environment)
        # As of data loaders: threads do not survive a fork.
        torch.set_num_threads(1)
        reset_process()
        for stream, number in (("out", 1), ("err", 2)):
            if stderr is None or number == 1:
                os.dup2(os.open(f"{path}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        if stderr is not None:
            os.dup2(stderr, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.exit(main(["train", str(write_config(config, path.with_suffix(".yaml"))), *options]))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def wait_for(condition: Callable[[], Any], process: ForkProcess) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def write_config(config: TrainingConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return path


def equal_files(first: Path, second: Path) -> bool:
    first, second = load_file(first), load_file(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def read_log(config: TrainingConfig, name: str) -> list[float]:
    log = EventAccumulator(str(Path(config.output_dir) / "logs" / "loomvideo"))
    log.Reload()
    return [event.value for event in log.Scalars(name)]
