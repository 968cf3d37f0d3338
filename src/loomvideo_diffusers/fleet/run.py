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
"""Runs jobs in this process, one after the other, and tells how far they are."""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from ..progress import message, progress_bar
from .addresses import redact
from .jobs import Job
from .work import JobResult, Plan, Worker, plan_job


if TYPE_CHECKING:
    from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline

BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


def run_jobs(
    jobs: Sequence[Job],
    pipe: "LoomVideoEditPipeline | LoomVideoPipeline",
    plan: Plan = plan_job,
    *,
    disk: float | None = None,
) -> Iterator[JobResult]:
    """
    Plans and runs each job in turn. One that fails is reported on stderr and stops no other.

    Args:
        jobs: what `read_jobs` returned, or a part of it.
        pipe: the pipeline, of the jobs' kind.
        plan: plans a job, such as `functools.partial(plan_job, num_inference_steps=20)`.
        disk: gigabytes of the local disk for files on their way; by default half of what is free.

    Yields:
        The result of each job as soon as it is done. The next one starts when the next result is asked for.
    """
    worker, tracker = Worker(pipe, plan, disk), Tracker(len(jobs))
    with tracker.bar:
        for job in jobs:
            result = worker(job)
            tracker.add(result)
            yield result


class Tracker:
    """
    One progress bar for many jobs, and a line for each that failed.

    Args:
        num_jobs: how many there are.
        work: of all jobs, in a unit such as the size of their inputs.
    """

    def __init__(self, num_jobs: int, work: float | None = None):
        self.bar = progress_bar(desc="Jobs", total=num_jobs, bar_format=BAR_FORMAT)
        self.work_left = num_jobs if work is None else work
        self.work_done = self.num_done = self.duration = 0.0
        self.start = time.monotonic()

    def add(self, result: JobResult, work: float = 1) -> None:
        """Counts a result, after so much work."""
        for note in result.notes:
            message(f"loomvideo: {note}")
        if result.trace:
            message(result.trace.rstrip())
        if result.error:
            message(f"loomvideo: {redact(result.job.output)} was not made: {result.error}")
        else:
            self.num_done += 1
            self.duration += result.duration
        self.work_done += work
        self.work_left -= work
        seconds = time.monotonic() - self.start
        left = timedelta(seconds=max(0, round(seconds * self.work_left / self.work_done)))
        pace = f"{self.num_done / seconds * 3600:,.0f} clips and {self.duration / seconds * 3600:,.0f} s an hour"
        self.bar.set_postfix_str(f"{pace}, {left} left", refresh=False)
        self.bar.update()
