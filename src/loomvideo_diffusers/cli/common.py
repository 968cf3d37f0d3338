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
"""What several commands need."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import nano
from ..errors import LoomVideoError


class Stopwatch:
    """Remembers how long each stage of a command took."""

    def __init__(self):
        self.seconds = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())


def silence_imports() -> None:
    """Has libraries that are imported later say nothing then but errors: the user can do nothing about the rest."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def silence_libraries() -> None:
    """Has libraries say nothing but errors, and leave the bars to the command."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()


def find_model(model: str) -> str:
    if model == "nano":
        model = str(nano.MODEL)
    folder = Path(model)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise LoomVideoError(f"{model} has no model_index.json: make a model folder with `loomvideo convert`.")
    if not folder.exists() and (len(folder.parts) != 2 or folder.is_absolute()):
        raise LoomVideoError(f"{model} is neither a folder here nor the name of a repository (OWNER/NAME).")
    return model


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is that, in the words of any device."""
    words = ("out of memory", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, MemoryError) or any(these in str(error) for these in words)
