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
"""Measures how the transformer's work changes from step to step, which MagCache needs to know of a model."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors import LoomVideoError
from .media.files import write_text


if TYPE_CHECKING:
    from .pipelines import LoomVideoEditPipeline, LoomVideoPipeline


def measure_ratios(pipe: "LoomVideoPipeline | LoomVideoEditPipeline", run: Callable[[], Any]) -> list[float]:
    """
    Measures a call without caches.

    Args:
        pipe: the pipeline, whose calls have one window.
        run: calls it once.

    Returns:
        For each step the mean over tokens and branches of `|r_i| / |r_(i-1)|`, where `r_i` is what the blocks add to
        the tokens at step i (MagCache, arXiv 2506.09045); 1 for the first.
    """
    blocks: Any = pipe.transformer.blocks
    begun: list[torch.Tensor] = []
    # By the branch of guidance, of which each keeps the cache of its keys
    magnitudes: dict[int, list[torch.Tensor]] = {}
    ratios: dict[int, list[float]] = {}

    def begin(block: Any, arguments: tuple) -> None:
        begun[:] = [arguments[0]]

    def end(block: Any, arguments: tuple, output: torch.Tensor) -> None:
        branch = id(arguments[-1])
        magnitude = (output - begun.pop()).float().norm(dim=-1)
        before = magnitudes.get(branch)
        ratios.setdefault(branch, []).append(1.0 if before is None else (magnitude / before[0]).mean().item())
        magnitudes[branch] = [magnitude]

    hooks = [blocks[0].register_forward_pre_hook(begin), blocks[-1].register_forward_hook(end)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [sum(values) / len(values) for values in zip(*ratios.values())]


def write_ratios(path: Path, ratios: Sequence[float]) -> None:
    """Writes a file that `--cache magcache:FILE` reads."""
    write_text(path, json.dumps({"mag_ratios": [round(ratio, 5) for ratio in ratios]}) + "\n")


def read_ratios(path: Path) -> list[float]:
    """
    Reads what `write_ratios` wrote.

    Raises:
        LoomVideoError: if it is no such file.
    """
    try:
        ratios = json.loads(path.read_text(encoding="utf-8"))["mag_ratios"]
        numbers = [float(ratio) for ratio in ratios]
        if not numbers or not all(0 < number < float("inf") for number in numbers):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LoomVideoError(f"{path} holds no ratios for MagCache: write it by `loomvideo calibrate`.") from error
    return numbers
