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
"""Clips, records and settings of small training runs."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import FIXTURES
from training_tools import reset_process

from loomvideo_diffusers.media import read_video, write_image, write_video
from loomvideo_diffusers.media.images import read_image
from loomvideo_diffusers.training import TrainingConfig, train


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


def build_config(model_folder: Path, clips: Path, folder: Path, **options) -> TrainingConfig:
    """Settings of a small run, on all tasks if nothing else is said; nested ones as `data={"key": value}`."""
    values = {
        "model": str(model_folder),
        "output_dir": str(folder),
        "data": {"datasets": [{"records": str(clips / "records.jsonl")}], "sizes": [[64, 64]], "num_workers": 0},
        "lora": {"rank": 4},
        "optimizer": {"learning_rate": 1e-3, "lr_warmup_steps": 0},
        "steps": 4,
        "mixed_precision": "no",
        "gradient_checkpointing": False,
    }
    for key, value in options.items():
        values[key] = values[key] | value if isinstance(value, dict) and isinstance(values.get(key), dict) else value
    return TrainingConfig.model_validate(values).with_defaults({})


@pytest.fixture
def make_config(model_folder, clips, tmp_path) -> Iterator[Callable[..., TrainingConfig]]:
    """`build_config` of a run in this test's folder."""
    yield partial(build_config, model_folder, clips, tmp_path / "run")
    reset_process()


@pytest.fixture(scope="session")
def run_of_three_steps(model_folder, clips, tmp_path_factory) -> Path:
    """The output folder of a run with a checkpoint of each step. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(build_config(model_folder, clips, folder, steps=3, checkpoint_every=1))
    reset_process()
    return folder
