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
"""A class for `map_batches` of Ray Data, for those who have a pipeline of data of their own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoomVideoError
from ..media import write_image
from ..progress import without_bars
from .jobs import EditJob, to_job
from .work import Worker, plan_job


if TYPE_CHECKING:
    from ..pipelines import LoomVideoEditPipeline

COLUMNS = ("input", "prompt", "output", "reference", "seed")


class ClipEditor:
    """
    Edits the clips of a batch. Pass the class, and its arguments as `fn_constructor_kwargs`, to
    `ray.data.Dataset.map_batches`.

    A row has the columns `prompt` and `output`, and either `input`, a path or an address, or `frames`, uint8
    `[F, H, W, 3]` of a clip or `[H, W, 3]` of an image; and if there are any, `reference`, a list, and `seed`. Rows
    come back without `frames`, and with `sha256`, the hash of the output, `duration` and `seconds`, how long the video
    is and how long it took, and `error`: a sentence if it could not be made, and no other row suffers.

    Args:
        load: returns the pipeline, such as `functools.partial(load_pipeline, LoomVideoEditPipeline, "nano")`.
        disk: gigabytes of the local disk for files on their way; by default half of what is free.
        **options: of `plan_edit`, such as `num_inference_steps`, and for frames `rate`, which is 24 by default.
    """

    def __init__(self, load: "Callable[[], LoomVideoEditPipeline]", *, disk: float | None = None, **options: Any):
        with without_bars():
            self.worker = Worker(load(), partial(plan_job, **options), disk)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Edits a batch of columns, each an array with a value a row."""
        kept = {name: column for name, column in batch.items() if name != "frames"}
        rows = [dict(zip(batch, values)) for values in zip(*batch.values())]
        with without_bars():
            made = [self.edit(row) for row in rows]
        return kept | {
            name: np.array([one[name] for one in made]) for name in ("sha256", "duration", "seconds", "error")
        }

    def edit(self, row: dict[str, Any]) -> dict[str, Any]:
        """Edits one row. Returns the columns that it gets."""
        try:
            with self._job_of(row) as job:
                result = self.worker(job)
        except LoomVideoError as error:
            return {"sha256": "", "duration": 0.0, "seconds": 0.0, "error": str(error)}
        return {
            "sha256": result.sha256,
            "duration": result.duration,
            "seconds": sum(result.seconds.values()),
            "error": result.error,
        }

    @contextmanager
    def _job_of(self, row: dict[str, Any]) -> Iterator[EditJob]:
        given = {name: _to_python(row[name]) for name in COLUMNS if row.get(name) is not None}
        if row.get("frames") is None:
            yield to_job(given, EditJob)
            return
        with self.worker.disk.room(row["frames"].nbytes) as folder:
            yield to_job(given | {"input": _write_frames(row["frames"], folder)}, EditJob)


def _to_python(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _write_frames(frames: np.ndarray, folder: Path) -> Path:
    """Writes an image, or the frames of a clip. Returns its name, or the pattern of their names."""
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-1] != 3 or not frames.size:
        raise LoomVideoError(f"frames: uint8 [F, H, W, 3] or [H, W, 3] is needed, not {frames.dtype} {frames.shape}.")
    if frames.ndim == 3:
        write_image(folder / "image.png", frames)
        return folder / "image.png"
    for number, frame in enumerate(frames):
        write_image(folder / f"frame_{number:06d}.png", frame)
    return folder / "frame_%06d.png"
