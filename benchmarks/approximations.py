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
"""How fast LoomVideo-nano can be before it gets worse at what it does: `python -m benchmarks.approximations`."""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.nano import MODEL, OPTIONS
from loomvideo_diffusers.nano.evaluation import NUM_EXAMPLES, SEEDS, call, measure
from loomvideo_diffusers.nano.tasks import TASKS, sample_held_out

from .results import Result, Table, default_file, describe_machine, today, write_result


NUM_REPETITIONS = 5
MOST_LOST = 0.02  # of any task's success rate

# From 60 results, a rate as far from 0 and 1 as that of outlines is known to 5 points; from 600, to 2.
NUM_SEEDS = {task: len(SEEDS) for task in TASKS} | {"outline": 10 * len(SEEDS)}


@dataclass
class Setting:
    """How the model is loaded, and what its calls are passed."""

    dtype: torch.dtype = torch.float32
    is_compiled: bool = False
    options: dict[str, Any] = field(default_factory=dict)


PLAIN = f"{OPTIONS['num_inference_steps']} steps"

SETTINGS = {
    "bfloat16, compiled, 8 steps": Setting(torch.bfloat16, True, {"num_inference_steps": 8}),
    "bfloat16, compiled, 12 steps": Setting(torch.bfloat16, True, {"num_inference_steps": 12}),
    PLAIN: Setting(),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.approximations", description=__doc__)
    parser.add_argument(
        "--json", type=Path, default=default_file("approximations"), help="where the result is written"
    )
    file = parser.parse_args(arguments).json
    ratios, rates = time_calls(), {}
    for name in SETTINGS:
        rates[name] = measure_rates(name)
        result = make_result(ratios, rates)
        write_result(result, file)  # what was measured is kept, if the rest fails
    print(f"\n{result.to_markdown()}\n\nWrote {file}.")


def make_result(ratios: dict[str, float], rates: dict[str, dict[str, float]]) -> Result:
    """Of the settings whose rates are known."""
    notes = []
    if PLAIN in rates:
        found = find_fastest(rates, ratios)
        notes = [
            f"Fastest with every rate within {100 * MOST_LOST:.0f} points: {found}, {1 / ratios[found]:.2f}x as fast."
        ]
    rows = [["time of a call", *(f"{ratios[name]:.2f}x" for name in rates)]]
    rows += [[task, *(f"{rates[name][task]:.0%}" for name in rates)] for task in TASKS]
    return Result(
        "How fast LoomVideo-nano can be before it gets worse at what it does",
        "by `python -m benchmarks.approximations`",
        today(),
        describe_machine(),
        notes,
        [Table(["", *rates], rows)],
        {"ratios": ratios, "rates": rates},
    )


def find_fastest(rates: dict[str, dict[str, float]], ratios: dict[str, float]) -> str:
    """The setting of the shortest calls in which no task's rate is further below the plain one than `MOST_LOST`."""
    plain = rates[PLAIN]
    kept = [name for name in rates if max(plain[task] - rates[name][task] for task in plain) <= MOST_LOST]
    return min(kept, key=ratios.__getitem__)


def load(name: str) -> LoomVideoPipeline:
    setting = SETTINGS[name]
    pipe = LoomVideoPipeline.from_pretrained(MODEL, dtype=setting.dtype)
    if setting.is_compiled:
        # What is evaluated has many shapes.
        torch._dynamo.config.recompile_limit = 64
        pipe.transformer.compile_repeated_blocks(fullgraph=True)
    return pipe


def measure_rates(name: str) -> dict[str, float]:
    """The share of successes of each task."""
    tqdm.write(f"{name}:", file=sys.stderr)
    jobs: dict[Any, tuple[str, int, Path | None, dict[str, Any]]] = {}
    for task in TASKS:
        for first in range(0, NUM_SEEDS[task], len(SEEDS)):
            seeds = tuple(range(first, first + len(SEEDS)))
            jobs[task, seeds] = (task, NUM_EXAMPLES, None, SETTINGS[name].options | {"seeds": seeds})
    successes = defaultdict(list)
    for (task, _), means in measure(load, name, jobs):
        successes[task].append(means["success"])
    return {task: statistics.mean(successes[task]) for task in TASKS}


def time_calls() -> dict[str, float]:
    """Whole calls of an edit in turn; medians of how many times as long as the plain one they take."""
    pipes = {name: load(name) for name in SETTINGS}
    examples = (sample_held_out("recolor", np.random.default_rng(0)),)
    times = {name: [] for name in SETTINGS}
    for repetition in tqdm(range(2 + NUM_REPETITIONS), desc="Timing"):
        for name, setting in SETTINGS.items():
            start = time.perf_counter()
            call(pipes[name], examples, **dict[str, Any](OPTIONS) | setting.options)
            # The first two of each are to warm up, and to compile.
            if repetition >= 2:
                times[name].append(time.perf_counter() - start)
    return {
        name: statistics.median([one / plain for one, plain in zip(of_setting, times[PLAIN])])
        for name, of_setting in times.items()
    }


if __name__ == "__main__":
    main()
