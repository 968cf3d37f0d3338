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
"""Does one job: fetches its files, runs its plan, and delivers its output."""

import hashlib
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import LoomVideoError, one_line
from ..footage.generation import GenerationPlan
from ..footage.plan import EditPlan, Report
from ..media.files import LockedError, temporary_folder
from ..media.sequences import is_sequence, sequence_files
from ..progress import Stopwatch
from .addresses import Address, NotAllowedError, deliver, fetch, redact, size_of
from .jobs import Job, Location


if TYPE_CHECKING:
    import torch

    from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline

Files = Mapping[Location, Path]


@dataclass(frozen=True)
class JobResult:
    """
    What became of a job.

    Attributes:
        job: the job.
        report: what it wrote, or None if it failed.
        error: why it failed, in a sentence, or nothing.
        fault: where the failure lies: in the `job` itself, in the `code` of the package, in something that `passes`,
            such as a server that does not answer, in the `device`, which can do no more jobs, or with a `worker` that
            was lost.
        trace: the traceback of a mistake in the code.
        notes: what a person should know about the result, a sentence each.
        sha256: hash of the output in hexadecimal digits; of an image sequence, of all its files in their order.
        num_bytes: size of the output.
        duration: of the output in seconds; 0 of an image.
        seconds: how long each stage took.
        attempts: how many times it was tried.
        node: the machine that did it.
        was_there: whether the output was there already, with the hash that it should have.
    """

    job: Job
    report: Report | None = None
    error: str = ""
    fault: Literal["", "job", "code", "passes", "device", "worker"] = ""
    trace: str = ""
    notes: tuple[str, ...] = ()
    sha256: str = ""
    num_bytes: int = 0
    duration: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    attempts: int = 1
    node: str = ""
    was_there: bool = False


def plan_job(job: Job, files: Files, **options: Any) -> EditPlan | GenerationPlan:
    """
    Plans a job.

    Args:
        job: the job.
        files: where those of its files that are at addresses are on this machine.
        **options: of `plan_edit` or `plan_generation`, such as `num_inference_steps`; the seed is for jobs that have
            none of their own.
    """
    seed = job.choose_seed(options.pop("seed", None))
    return job.plan(files, seed=seed, **options)


Plan = Callable[[Job, Files], EditPlan | GenerationPlan]


class Worker:
    """
    Does jobs with a pipeline. Of several that are given in threads, one runs, and others are fetched or delivered.

    Args:
        pipe: the pipeline, of the jobs' kind.
        plan: plans a job, such as `plan_job`, maybe with options by `functools.partial`.
        disk: gigabytes of the local disk for files on their way; by default half of what is free.
    """

    def __init__(
        self,
        pipe: "LoomVideoEditPipeline | LoomVideoPipeline",
        plan: Plan = plan_job,
        disk: float | None = None,
    ):
        self.pipe: Any = pipe
        self.plan = plan
        self.disk = Disk(disk)
        self.running = threading.Lock()
        self.negative_prompts: dict[str | None, torch.Tensor | None] = {}

    def __call__(self, job: Job) -> JobResult:
        """Does a job, whatever becomes of it."""
        stopwatch = Stopwatch()
        try:
            return replace(self._do(job, stopwatch), seconds=stopwatch.seconds)
        except Exception as error:
            return replace(_failed(job, error), seconds=stopwatch.seconds)

    def _do(self, job: Job, stopwatch: Stopwatch) -> JobResult:
        if job.sha256 is not None:
            with stopwatch.stage("verify"):
                result = self._verify(job)
            if result is not None:
                return result
        with at_hand(job, self.disk, stopwatch) as files:
            with stopwatch.stage("read"):
                plan = self.plan(job, files)
            with self.running:
                report = plan.run(self.pipe, self._negative_prompt(plan))
            stopwatch.seconds |= report.seconds
            output = files.get(job.output, Path(job.output))
            # What is delivered is called by its address.
            shown = redact(job.output) if isinstance(job.output, Address) else job.output
            written = {shown if path == output else path: words for path, words in report.files.items()}
            sha256, num_bytes = hash_output(output)
        return JobResult(
            job,
            replace(report, files=written),
            notes=plan.notes,
            sha256=sha256,
            num_bytes=num_bytes,
            duration=plan.duration,
        )

    def _verify(self, job: Job) -> JobResult | None:
        """Returns the result of a job whose output is there already, with the hash that it should have."""
        try:
            if isinstance(job.output, Address):
                with self.disk.room(size_of(job.output)) as folder:
                    sha256, num_bytes = hash_output(fetch(job.output, folder))
            else:
                sha256, num_bytes = hash_output(job.output)
        except LoomVideoError:
            return None
        if sha256 != job.sha256:
            return None
        report = Report({redact(job.output): "as it was"})
        return JobResult(job, report, sha256=sha256, num_bytes=num_bytes, was_there=True)

    def _negative_prompt(self, plan: EditPlan | GenerationPlan) -> "torch.Tensor | None":
        """Encodes what all jobs are to avoid once."""
        import torch

        words = plan.settings.negative_prompt
        if words not in self.negative_prompts:
            with torch.no_grad():
                self.negative_prompts = {words: self.pipe.encode_negative_prompt(words)[0]}
        return self.negative_prompts[words]


def _failed(job: Job, error: Exception) -> JobResult:
    import torch

    sentence = one_line(error)
    if isinstance(error, torch.AcceleratorError) and sentence is None:
        # After such an error, the process can use the device no more.
        return JobResult(job, error=f"The device failed: {' '.join(str(error).split())[:300]}", fault="device")
    if sentence is None:
        trace = redact("".join(traceback.format_exception(error)))
        sentence = f"{type(error).__name__}, which is a mistake in the code: see the traceback above."
        return JobResult(job, error=sentence, fault="code", trace=trace)
    is_passing = isinstance(error, (LockedError, NotAllowedError)) or not isinstance(error, ValueError)
    return JobResult(job, error=redact(sentence), fault="passes" if is_passing else "job")


class Disk:
    """
    Room on a local disk for files on their way.

    Args:
        gigabytes: how much of it; by default half of what is free.
    """

    def __init__(self, gigabytes: float | None = None):
        folder = Path(tempfile.gettempdir())
        self.path = folder / "loomvideo"
        self.limit = shutil.disk_usage(folder).free // 2 if gigabytes is None else int(gigabytes * 1e9)
        self.taken = 0
        self.changed = threading.Condition()

    @contextmanager
    def room(self, size: int) -> Iterator[Path]:
        """Yields a new folder, which is removed in the end, as soon as so many bytes of the room are free."""
        if size > self.limit:
            raise LoomVideoError(
                f"Its files take {size / 1e9:.1f} GB, and {self.limit / 1e9:.1f} GB of the disk are for files on "
                "their way: give more with --disk."
            )
        with self.changed:
            self.changed.wait_for(lambda: self.taken + size <= self.limit)
            self.taken += size
        try:
            with temporary_folder(self.path) as folder:
                yield folder
        finally:
            with self.changed:
                self.taken -= size
                self.changed.notify_all()


@contextmanager
def at_hand(job: Job, disk: Disk, stopwatch: Stopwatch) -> Iterator[Files]:
    """
    Yields where on this machine those files of a job are that are at addresses. In the end its output is delivered.

    Raises:
        LoomVideoError: if a file is not there, or something is wrong with it, which is called by its address.
        OSError: if an address cannot be reached now.
    """
    inputs = [location for location in dict.fromkeys(job.inputs) if isinstance(location, Address)]
    if not inputs and not isinstance(job.output, Address):
        yield {}
        return
    sizes = [size_of(address) for address in inputs]
    # The result takes about as much again.
    with disk.room(2 * sum(sizes)) as folder:
        files: dict[Location, Path] = {}
        with stopwatch.stage("fetch"):
            for number, address in enumerate(inputs):
                # Each has a folder of its own, since they may have the same name.
                files[address] = fetch(address, folder / str(number))
        if isinstance(job.output, Address):
            files[job.output] = folder / "output" / job.output.name
        try:
            yield files
        except LoomVideoError as error:
            sentence = str(error)
            for location, path in files.items():
                sentence = sentence.replace(str(path), redact(location))
            raise LoomVideoError(sentence) from error
        if isinstance(job.output, Address):
            with stopwatch.stage("deliver"):
                deliver(files[job.output], job.output)


def hash_output(path: Path) -> tuple[str, int]:
    """Returns the hash of a file, or of all files of an image sequence, and how many bytes they have."""
    digest, num_bytes = hashlib.sha256(), 0
    for file in sequence_files(path) if is_sequence(path) else [path]:
        try:
            with open(file, "rb") as opened:
                while block := opened.read(2**20):
                    digest.update(block)
                    num_bytes += len(block)
        except FileNotFoundError as error:
            raise LoomVideoError(f"{file} is not there.") from error
    return digest.hexdigest(), num_bytes
