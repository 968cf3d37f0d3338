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
"""
Fine-tuning: `loomvideo train CONFIG.yaml`, or `accelerate launch -m loomvideo_diffusers.training CONFIG.yaml`.

Read `run` first, a run from top to bottom. `config` holds the settings, `checks` finds what is wrong with them, and
`setup` prepares the rest. `data`, `features` and `batches` lead from records to batches, `objective` and `step` from
these to the loss and its gradients; `model` and `optimization` are the weights and how they change. `checkpoints`,
`validation` and `publishing` write files. `processes` is for several processes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


# Imported when first used, as in the package, so that a command can silence the libraries before.
_MODULES = {"TrainingConfig": ".config", "load_config": ".config", "train": ".run"}

__all__ = ["TrainingConfig", "load_config", "train"]

if TYPE_CHECKING:
    from .config import TrainingConfig, load_config
    from .run import train


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
