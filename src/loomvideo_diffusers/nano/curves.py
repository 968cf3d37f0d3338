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
"""Draws how LoomVideo-nano learned."""

import csv
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from ..media import write_whole


matplotlib.use("agg")


# What is logged, in words
LABELS = {"psnr": "PSNR (dB)", "understood": "sentences understood", "error": "mean squared error"}


def plot_curves(logs: dict[str, tuple[Path, str]], path: Path) -> None:
    """
    Writes a png of curves side by side, by step.

    Args:
        logs: by title a CSV file with the column `step`, and the name of the column to show, a key of `LABELS`.
        path: the png to write.
    """
    figure = plt.figure(figsize=(4 * len(logs), 3.5), layout="constrained")
    for place, (title, (log, name)) in enumerate(logs.items(), start=1):
        axis = figure.add_subplot(1, len(logs), place)
        steps, values = _read(log, name)
        if name == "error":
            axis.set_yscale("log")
        axis.plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.5)
        axis.plot(steps, _smooth(values), color="tab:blue")
        axis.set(title=title, xlabel="step", ylabel=LABELS[name])
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=100))
    plt.close(figure)


def _read(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return np.array([int(row["step"]) for row in rows]), np.array([float(row[name]) for row in rows])


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a fiftieth of the curve around each value."""
    width = max(1, len(values) // 50)
    weights = np.ones(width)
    return np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")
