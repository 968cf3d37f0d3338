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
"""Training runs in this process and in others, and what they write, for the tests of training."""

import glob
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from loomvideo_diffusers.cli import main
from loomvideo_diffusers.training import TrainingConfig, train


ALL_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "linear_1", "linear_2", "time_proj"]
ALL_LAYERS += ["patch_embedding", "source_patch_embedding", "proj_out"]
FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload(["loomvideo_diffusers.cli", "loomvideo_diffusers.training.run"])


def reset_process() -> None:
    """Runs configure their process, and the next one does so anew, as if it had a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def run_again(config: TrainingConfig, **options) -> Path | None:
    reset_process()
    return train(config, **options)


def start(
    config: TrainingConfig, path: Path, *options: str, terminal: str | None = None, **environment: str
) -> ForkServerProcess:
    """
    Starts `loomvideo train` in a process and a group of its own, forked from one that has imported everything, but has
    no threads yet, which may hang a fork.

    Its settings are in `path`.yaml; what it prints goes to `path`.out, and to `path`.err or a terminal.
    """
    arguments = ["train", str(write_config(config, path.with_suffix(".yaml"))), *options]
    streams = [f"{path}.out", terminal or f"{path}.err"]
    for stream in streams:
        Path(stream).touch()
    process = FORK_SERVER.Process(target=_run, args=(arguments, streams, os.environ | environment))
    process.start()
    return process


def _run(arguments: list[str], streams: list[str], environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    for number, stream in enumerate(streams, 1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_NOCTTY | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    # Only now: the error would keep the data loader, whose workers this process waits for at its end.
    sys.exit(code)


def wait_for(condition: Callable[[], Any], process: ForkServerProcess) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def find_features(folder: Path) -> list[Path]:
    """The whole files under a folder that another process may be writing to: unlike `Path.rglob`, `glob` passes over
    hidden folders, where unfinished files are, and over those that vanish while it looks."""
    return [Path(file) for file in glob.glob(str(folder / "**" / "*.safetensors"), recursive=True)]


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
