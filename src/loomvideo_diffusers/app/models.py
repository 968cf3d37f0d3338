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
"""The models and LoRAs that the page offers, of which one model is loaded at a time."""

import threading
from collections.abc import Sequence
from typing import Any

from ..acceleration import NO_LEVERS
from ..errors import LoomVideoError
from ..loading import check_loras, find_model, load_pipeline
from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline


class Models:
    """
    What is offered, checked when it is made.

    Args:
        models: folders, repositories or `nano`, the first of them the default.
        loras: files, folders or repositories, which fit all the models.
        options: of `load_pipeline`.

    Raises:
        LoomVideoError, LoomVideoInputError: if there is no such model, or a LoRA does not fit.
    """

    def __init__(self, models: Sequence[str], loras: Sequence[str] = (), **options: Any):
        self.names = tuple(models)
        self.loras = tuple(loras)
        self.options = options
        self.levers = options.get("levers", NO_LEVERS)
        for model in models:
            check_loras(find_model(model), loras, options.get("lora_partial", False))
        self._lock = threading.Lock()
        self._loaded: tuple[str, LoomVideoPipeline] | None = None

    def check(self, model: str, loras: Sequence[str]) -> None:
        """Raises a LoomVideoError if something else is asked for than what is offered."""
        for name, offered in [(model, self.names), *((lora, self.loras) for lora in loras)]:
            if name not in offered:
                raise LoomVideoError("That model or LoRA is not offered here: choose one from the list.")

    def load(self, model: str, loras: Sequence[str]) -> LoomVideoPipeline:
        """Returns the pipeline of a model with some of the LoRAs, for one run at a time, and loads it if need be."""
        with self._lock:
            return self._load(model, loras)

    def _load(self, model: str, loras: Sequence[str]) -> LoomVideoPipeline:
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None  # before another takes its memory
            self._loaded = model, load_pipeline(LoomVideoPipeline, model, loras=self.loras, **self.options)
        pipe = self._loaded[1]
        if self.loras:
            names = pipe.get_list_adapters()["transformer"]
            chosen = [name for name, lora in zip(names, self.loras) if lora in loras]
            pipe.enable_lora() if chosen else pipe.disable_lora()
            if chosen:
                pipe.set_adapters(chosen)
        return pipe


def edit_pipeline_of(pipe: LoomVideoPipeline) -> LoomVideoEditPipeline:
    """The editing pipeline of the same weights and with the same progress bars."""
    edit = LoomVideoEditPipeline.from_pipe(pipe)
    edit.progress_bar = pipe.progress_bar
    return edit
