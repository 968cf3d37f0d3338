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
"""What the processes of a training decide together."""

import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object


def share(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """Makes something in the main process and gives it to all; if it fails, the main process alone says why."""
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


def gather(failures: dict[str, str]) -> dict[str, str]:
    """The failures of all processes."""
    return dict(gather_object(list(failures.items())))


class Termination:
    """Notes that a process is asked to end by SIGTERM, in place of ending it, within a `with`."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.is_requested = False

    def __enter__(self) -> None:
        # Python allows only its main thread to do this.
        self.before = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._note)

    def __exit__(self, *_) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def _note(self, *_) -> None:
        self.is_requested = True

    def is_agreed(self) -> bool:
        """Whether any process is asked to end; all of them learn it at the same step."""
        is_requested = torch.tensor(float(self.is_requested), device=self.accelerator.device)
        return self.accelerator.reduce(is_requested).item() > 0
