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
"""Does one run: tells in its folder how far it is, shows what becomes of it, and ends when it is to."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from ..errors import one_line
from ..footage import EditPlan, GenerationPlan, Report
from ..footage.watching import Watch
from ..media import read_image, read_video, write_image
from ..media.files import write_text
from ..progress import Progress, observed_by


if TYPE_CHECKING:
    from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline

# In the folder of a run. They are files because a run may be in another process than the page.
PROGRESS_FILE = "progress.json"
SKETCH_FILES = "so-far-*.jpg"
POSTER_FILE = "poster.jpg"
COMPARISON_OF_IMAGES = "comparison.png"
CANCEL_FILE = "cancel"

POSTER_HEIGHT = 240

# How often at most it is told how far a run is
SECONDS_BETWEEN_REPORTS = 0.2


class Cancelled(Exception):
    """A run is to end."""


@dataclass(frozen=True)
class Outcome:
    """
    What came of a run.

    Attributes:
        report: what it wrote, if it did.
        error: a sentence, if it failed.
    """

    report: Report | None = None
    error: str = ""


def work(
    plan: EditPlan | GenerationPlan,
    load: "Callable[[], LoomVideoEditPipeline | LoomVideoPipeline]",
    folder: Path,
    result: Path,
    has_sketches: bool = True,
) -> Outcome | None:
    """
    Runs a plan whose files are in `folder`.

    Args:
        plan: of an edit or a generation.
        load: returns the pipeline, which is of the plan's kind.
        folder: of the run, where it tells how far it is.
        result: the file that the plan writes.
        has_sketches: whether to decode what becomes of it now and then.

    Returns:
        What came of it; None if it was cancelled.
    """
    callback = Watch(partial(_write_sketch, folder), num_latent_frames=1) if has_sketches else None
    try:
        with observed_by(Reporter(folder)):
            report = plan.run(load(), callback_on_step_end=callback)
        _show(plan, folder, result)
    except Cancelled:
        return None
    except Exception as error:
        sentence = one_line(error)
        if sentence is None:
            traceback.print_exc()
            sentence = "Something is wrong with the page itself, and whoever runs it finds in its log what."
        return Outcome(error=sentence)
    return Outcome(report)


class Reporter:
    """Writes to a run's folder how far it is, and raises `Cancelled` when it is to end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.description = ""
        self.began = self.told = 0.0

    def __call__(self, progress: Progress) -> None:
        if (self.folder / CANCEL_FILE).exists():
            raise Cancelled
        now = time.monotonic()
        is_new = progress.description != self.description
        if is_new:
            self.description, self.began = progress.description, now
        if not is_new and now - self.told < SECONDS_BETWEEN_REPORTS and progress.num_done != progress.total:
            return
        self.told = now
        remaining = None
        if progress.total and progress.num_done:
            remaining = (now - self.began) / progress.num_done * (progress.total - progress.num_done)
        values = json.dumps(vars(progress) | {"seconds_left": remaining})
        write_text(self.folder / PROGRESS_FILE, values)


def latest_sketch(folder: Path) -> Path | None:
    """The picture that shows what a run is becoming, if there is one."""
    return max(folder.glob(SKETCH_FILES), default=None)


def read_progress(folder: Path) -> dict[str, Any]:
    """What a `Reporter` wrote last: the attributes of `Progress`, and `seconds_left`; empty before that."""
    try:
        return json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
    except OSError:
        return {}


def _write_sketch(folder: Path, step: int, frames: np.ndarray) -> None:
    # Each has a name of its own, since browsers keep what they have seen.
    write_image(folder / SKETCH_FILES.replace("*", f"{step:04d}"), frames[0])


def _show(plan: EditPlan | GenerationPlan, folder: Path, result: Path) -> None:
    """Writes a small picture of the result, and of an edited image source and result side by side."""
    if result.suffix == ".png":
        picture = read_image(result)
    else:
        picture = PIL.Image.fromarray(read_video(result, max_frames=1)[0])
    if isinstance(plan, EditPlan) and isinstance(plan.source, PIL.Image.Image):
        source = plan.source.resize(picture.size)
        write_image(
            folder / COMPARISON_OF_IMAGES, PIL.Image.fromarray(np.hstack([np.asarray(source), np.asarray(picture)]))
        )
    picture.thumbnail((4 * POSTER_HEIGHT, POSTER_HEIGHT))
    write_image(folder / POSTER_FILE, picture)
