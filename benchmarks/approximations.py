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
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.nano import MODEL, OPTIONS
from loomvideo_diffusers.nano.evaluation import NUM_EXAMPLES, call, measure
from loomvideo_diffusers.nano.tasks import TASKS, sample_held_out


OUTPUT_FILE = Path("outputs/benchmarks/approximations.json")
NUM_REPETITIONS = 5
MOST_LOST = 0.02  # of any task's success rate

# From the fastest on
SETTINGS: dict[str, dict[str, Any]] = {
    "8 steps, guided in the first 60%": {"num_inference_steps": 8, "guidance_interval": (0.0, 0.6)},
    "8 steps": {"num_inference_steps": 8},
    "12 steps, guided in the first 60%": {"num_inference_steps": 12, "guidance_interval": (0.0, 0.6)},
    "12 steps": {"num_inference_steps": 12},
}
PLAIN = f"{OPTIONS['num_inference_steps']} steps"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.approximations", description=__doc__)
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        help="what `make nano` measured, as in outputs/nano/results.json",
    )
    arguments = parser.parse_args()
    rates: dict[str, dict[str, float]] = {}
    if arguments.results is None:
        rates[PLAIN] = measure_rates(PLAIN, {})
    else:
        results = json.loads(arguments.results.read_text(encoding="utf-8"))["whole"]
        rates[PLAIN] = {task: results[task]["success"] for task in TASKS}
    found = None
    for name, options in SETTINGS.items():
        rates[name] = measure_rates(name, options)
        lost = max(rates[PLAIN][task] - rates[name][task] for task in TASKS)
        print(f"{name}: at worst {100 * lost:.0f} points less.")
        if lost <= MOST_LOST:
            found = name
            break
    ratios = time_calls(list(rates)[1:])
    OUTPUT_FILE.parent.mkdir(parents=True, exist_ok=True)
    report = {"rates": rates, "ratios": ratios, "found": found}
    OUTPUT_FILE.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n| | {' | '.join(rates)} |\n|{' --- |' * (len(rates) + 1)}")
    print(f"| time of a call | {' | '.join(f'{ratios[name]:.2f}x' for name in rates)} |")
    for task in TASKS:
        print(f"| {task} | {' | '.join(f'{rates[name][task]:.0%}' for name in rates)} |")
    if found is None:
        print(f"\nNone of them keeps every rate within {100 * MOST_LOST:.0f} points.")
    else:
        print(f"\n{found}: {1 / ratios[found]:.2f}x as fast, every rate within {100 * MOST_LOST:.0f} points.")
    print(f"Wrote {OUTPUT_FILE}.")


def measure_rates(name: str, options: dict[str, Any]) -> dict[str, float]:
    """The share of successes of each task, of as many examples as in the model's card."""
    tqdm.write(f"{name}:", file=sys.stderr)
    jobs = {task: (task, NUM_EXAMPLES, None, options) for task in TASKS}
    return {task: means["success"] for task, means in measure(MODEL, jobs)}


def time_calls(names: list[str]) -> dict[str, float]:
    """Whole calls of an edit in turn; medians of how many times as long as the plain one they take."""
    pipe = LoomVideoPipeline.from_pretrained(MODEL, dtype=torch.float32)
    examples = (sample_held_out("recolor", np.random.default_rng(0)),)
    settings = {PLAIN: {}} | {name: SETTINGS[name] for name in names}
    times = {name: [] for name in settings}
    for _ in tqdm(range(NUM_REPETITIONS + 1), desc="Timing"):
        for name, options in settings.items():
            start = time.perf_counter()
            call(pipe, examples, **OPTIONS | options)
            times[name].append(time.perf_counter() - start)
    # The first of each is to warm up.
    return {
        name: statistics.median([one / plain for one, plain in zip(of_setting[1:], times[PLAIN][1:])])
        for name, of_setting in times.items()
    }


if __name__ == "__main__":
    main()
