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

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.nano import GUIDANCE_SCALE, MODEL, NUM_INFERENCE_STEPS
from loomvideo_diffusers.nano.evaluation import call, measure
from loomvideo_diffusers.nano.tasks import TASKS, sample_held_out


OUTPUT_FILE = Path("outputs/benchmarks/approximations.json")
NUM_EXAMPLES = 17  # with 3 seeds each, a result more or less is 2 points
NUM_REPETITIONS = 5

SETTINGS: dict[str, dict[str, Any]] = {
    f"{NUM_INFERENCE_STEPS} steps": {"num_inference_steps": NUM_INFERENCE_STEPS},
    "12 steps": {"num_inference_steps": 12},
    "8 steps": {"num_inference_steps": 8},
    "12 steps, guided in the first 60%": {"num_inference_steps": 12, "guidance_interval": (0.0, 0.6)},
    "8 steps, guided in the first 60%": {"num_inference_steps": 8, "guidance_interval": (0.0, 0.6)},
}


def main() -> None:
    plain = next(iter(SETTINGS))
    jobs = {(name, task): (task, NUM_EXAMPLES, None, options) for name, options in SETTINGS.items() for task in TASKS}
    rates = {name: {} for name in SETTINGS}
    for (name, task), means in measure(MODEL, jobs):
        rates[name][task] = means["success"]
    ratios = time_calls(plain)
    OUTPUT_FILE.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT_FILE.write_text(json.dumps({"rates": rates, "ratios": ratios}, indent=2) + "\n", encoding="utf-8")
    print(f"| | {' | '.join(SETTINGS)} |")
    print(f"| --- |{' --- |' * len(SETTINGS)}")
    print(f"| time of a call | {' | '.join(f'{ratios[name]:.2f}x' for name in SETTINGS)} |")
    for task in TASKS:
        print(f"| {task} | {' | '.join(f'{rates[name][task]:.0%}' for name in SETTINGS)} |")
    for name in SETTINGS:
        worst = min(rates[name][task] - rates[plain][task] for task in TASKS)
        print(f"{name}: {1 / ratios[name]:.2f}x as fast, and at worst {-100 * worst:.0f} points less.")
    print(f"Wrote {OUTPUT_FILE}.")


def time_calls(plain: str) -> dict[str, float]:
    """Whole calls of an edit in turn; medians of how many times as long as the plain one they take."""
    pipe = LoomVideoPipeline.from_pretrained(MODEL, dtype=torch.float32)
    examples = (sample_held_out("recolor", np.random.default_rng(0)),)
    times = {name: [] for name in SETTINGS}
    for _ in range(NUM_REPETITIONS + 1):
        for name, options in SETTINGS.items():
            start = time.perf_counter()
            call(pipe, examples, guidance_scale=GUIDANCE_SCALE, **options)
            times[name].append(time.perf_counter() - start)
    # The first of each is to warm up.
    return {
        name: statistics.median([one / of_plain for one, of_plain in zip(of_setting[1:], times[plain][1:])])
        for name, of_setting in times.items()
    }


if __name__ == "__main__":
    main()
