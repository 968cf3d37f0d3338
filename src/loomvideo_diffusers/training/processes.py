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
"""Several processes as one run: what one of them does for all, and how they end together."""

import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)

from .config import TrainingConfig


# How long processes wait for each other: one may have many more features to compute than the others.
PROCESS_TIMEOUT = timedelta(hours=4)

Result = TypeVar("Result")


def make_accelerator(config: TrainingConfig) -> Accelerator:
    return Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.tracker,
        project_dir=Path(config.output_dir) / "logs",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT),
            # The vision tower gets no gradients from a batch without images.
            DistributedDataParallelKwargs(find_unused_parameters=config.train_text_encoder),
        ],
    )


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the model is divided among the processes (FSDP)."""
    return accelerator.distributed_type == DistributedType.FSDP


def share(accelerator: Accelerator, make: Callable[[], Result]) -> Result:
    """Calls `make` in the main process and returns its result in all; if it fails, only the main process says why."""
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = make()
        except (ValueError, OSError) as raised:
            error = raised
    result, has_failed = broadcast_object_list([result, error is not None])
    if error is not None:
        raise error
    if has_failed:
        raise SystemExit(2)
    return result


def gather_failures(failures: dict[str, str]) -> dict[str, str]:
    """Merges the failures of all processes."""
    return dict(gather_object(list(failures.items())))


class Termination:
    """In a `with` block, notes a SIGTERM instead of ending the process."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.is_requested = False
        self.previous_handler: Any = None

    def __enter__(self) -> None:
        # Python lets only the main thread set a handler.
        if threading.current_thread() is threading.main_thread():
            self.previous_handler = signal.signal(signal.SIGTERM, self._note)

    def __exit__(self, *_: Any) -> None:
        if self.previous_handler is not None:
            signal.signal(signal.SIGTERM, self.previous_handler)

    def _note(self, *_: Any) -> None:
        self.is_requested = True

    def is_agreed(self) -> bool:
        """Whether any process was asked to end; all processes get the same answer at the same step."""
        is_requested = torch.tensor(float(self.is_requested), device=self.accelerator.device)
        return self.accelerator.reduce(is_requested).item() > 0
