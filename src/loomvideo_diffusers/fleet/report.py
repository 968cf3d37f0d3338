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
"""What became of many jobs: a file with a line for each, from which a second run goes on, and a table of it."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import LoomVideoError
from ..media.files import lock_beside, write_whole
from ..media.sequences import is_sequence, sequence_files
from ..progress import message
from .addresses import Address, NotThereError, deliver, fetch, redact, to_location


if TYPE_CHECKING:
    from .jobs import Job, JobKind, Location
    from .work import JobResult

Record = dict[str, Any]

# How each line begins
LINE_START = '{"output": "'

SECONDS_BETWEEN_DELIVERIES = 300
ROWS_AT_ONCE = 50_000
NUM_REASONS = 20
NUM_SLOWEST = 5


class JobReport:
    """
    A file of JSON lines with what became of each job; opened by `open_report`.

    Args:
        path: the file on this machine.
        recipe: whatever the results depend on besides the jobs, such as the model and its settings.
        address: where to deliver it, now and then and in the end.
    """

    def __init__(self, path: Path, recipe: str = "", address: Address | None = None):
        self.path = path
        self.recipe = recipe
        self.address = address
        self.delivered = time.monotonic()
        # Of each output, what was made last: the hash of the job and that of the file, as bytes, which are short
        self.done: dict[str, tuple[bytes, bytes]] = {}
        if path.exists():
            for record in _read_lines(path):
                if record["error"]:
                    self.done.pop(record["output"], None)
                else:
                    self.done[record["output"]] = bytes.fromhex(record["job"]), bytes.fromhex(record["sha256"])
        self.file: TextIO | None = None

    def select(self, jobs: "Sequence[JobKind]", verify: bool = False) -> "list[JobKind]":
        """
        Those of the jobs that are not done, or whose output is no longer on this machine.

        Args:
            jobs: all.
            verify: whether to include those that are done, with the hash that their output must have.
        """
        selected = []
        for job in jobs:
            hash_of_job, sha256 = self.done.get(redact(job.output), (b"", b""))
            is_done = hash_of_job == self.hash_job(job)
            if is_done and verify:
                job.sha256 = sha256.hex()
            if not is_done or verify or not _is_there(job.output):
                selected.append(job)
        return selected

    def hash_job(self, job: "Job") -> bytes:
        """A hash of all that the output of a job depends on, as far as can be seen without reading its files."""
        values: list[Any] = [self.recipe, {name: str(value) for name, value in job.described().items()}]
        for location in job.inputs:
            if isinstance(location, Path):
                with suppress(OSError):  # An image sequence has no file of its own name.
                    status = location.stat()
                    values.append([status.st_size, status.st_mtime_ns])
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()

    def add(self, result: "JobResult") -> None:
        """Writes what became of a job, unless its output is as the report says already."""
        if result.was_there:
            return
        job = result.job
        record = {
            "output": redact(job.output),
            "input": redact(getattr(job, "input", "")),
            "sha256": result.sha256,
            "bytes": result.num_bytes,
            "duration": round(result.duration, 3),
            "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
            "attempts": result.attempts,
            "node": result.node,
            "error": result.error,
            "ended": round(time.time(), 3),
            "job": self.hash_job(job).hex(),
        }
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
            self.file.write("\n" if is_torn else "")
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.file.flush()
        if self.address is not None and time.monotonic() - self.delivered > SECONDS_BETWEEN_DELIVERIES:
            self.delivered = time.monotonic()
            try:
                deliver(self.path, self.address)
            except OSError as error:
                message(f"loomvideo: {error}: the report is kept here meanwhile.")

    def close(self) -> None:
        """Writes the report as Parquet too, if PyArrow is there, and delivers both; does nothing if nothing ended."""
        if self.file is None:
            return
        self.file.close()
        table = self.path.with_suffix(".parquet")
        with suppress(ImportError):
            write_whole(table, lambda file: _write_parquet(self.path, file))
        if self.address is None:
            return
        try:
            deliver(self.path, self.address)
            if table.exists():
                deliver(table, Address(self.address.removesuffix(".jsonl") + ".parquet"))
        except (LoomVideoError, OSError) as error:
            kept = Path(tempfile.mkdtemp(prefix="loomvideo-report-")) / self.path.name
            shutil.copy(self.path, kept)
            raise LoomVideoError(f"{error} The report is kept as {kept}.") from error


@contextmanager
def open_report(path: str | os.PathLike, recipe: str = "") -> Iterator[JobReport]:
    """
    Opens a report, or begins one. In the end it is written as Parquet beside it too, if PyArrow is installed.

    A report at an address is kept on this machine until then, and delivered every few minutes.

    Args:
        path: the file or its address, ending in `.jsonl`.
        recipe: whatever the results depend on besides the jobs, such as the model and its settings.

    Raises:
        LoomVideoError: if it is no report, cannot be written, or another run is writing it.
        OSError: if its address cannot be reached now.
    """
    path = to_location(path)
    if path.suffix != ".jsonl" or (isinstance(path, Address) and not path.endswith(".jsonl")):
        raise LoomVideoError(f"{redact(path)} must end in .jsonl.")
    if isinstance(path, Address):
        with tempfile.TemporaryDirectory(prefix="loomvideo-") as folder:
            with suppress(NotThereError):  # It is a new one.
                fetch(path, Path(folder))
            with closing(JobReport(Path(folder) / path.name, recipe, path)) as report:
                yield report
        return
    with lock_beside(path), closing(JobReport(path, recipe)) as report:
        yield report


def read_report(path: str | os.PathLike) -> list[Record]:
    """
    Reads a report, as JSON lines or Parquet. Of a job that was run again, the last result counts.

    Raises:
        LoomVideoError: if it is not there, or no report.
        OSError: if its address cannot be reached now.
    """
    path = to_location(path)
    if isinstance(path, Address):
        with tempfile.TemporaryDirectory(prefix="loomvideo-") as folder:
            return read_report(fetch(path, Path(folder)))
    if path.suffix != ".parquet":
        return list({record["output"]: record for record in _read_lines(path)}.values())
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise LoomVideoError(f"{path} needs PyArrow: pip install pyarrow.") from error
    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise LoomVideoError(f"{path} cannot be read as Parquet ({error}): is it complete?") from error
    return [_check_record(record | {"seconds": dict(record["seconds"])}, path) for record in records]


def _read_lines(path: Path) -> Iterator[Record]:
    """Yields the records of a file, but not what a killed run left of a line."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                try:
                    record = json.loads(line)
                except ValueError:
                    if line.startswith(LINE_START) or LINE_START.startswith(line.rstrip()):
                        continue
                    record = None
                yield _check_record(record, f"{path}:{number}")
    except OSError as error:
        raise LoomVideoError(f"{path} cannot be read ({error.strerror}): name a report.") from error


def _check_record(record: Any, where: object) -> Record:
    if not isinstance(record, dict) or not {"output", "sha256", "seconds", "error", "job"} <= record.keys():
        raise LoomVideoError(f"{where} is not what became of a job: name a report, or a new file.")
    return record


def _is_there(output: "Location") -> bool:
    if isinstance(output, Address):
        return True
    if not is_sequence(output):
        return output.exists()
    try:
        return bool(sequence_files(output))
    except LoomVideoError:
        return False


def _write_parquet(path: Path, file: str) -> None:
    """Writes the last result of each job, some thousands at a time."""
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.float64()
    schema = pyarrow.schema(
        {
            "output": text,
            "input": text,
            "sha256": text,
            "bytes": pyarrow.int64(),
            "duration": number,
            "seconds": pyarrow.map_(text, number),
            "attempts": pyarrow.int64(),
            "node": text,
            "error": text,
            "ended": number,
            "job": text,
        }
    )
    last = {record["output"]: line for line, record in enumerate(_read_lines(path))}
    rows: list[Record] = []
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for line, record in enumerate(_read_lines(path)):
            if last[record["output"]] == line:
                rows.append(record | {"seconds": list(record["seconds"].items())})
            if len(rows) == ROWS_AT_ONCE:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                rows.clear()
        writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def describe_report(records: Sequence[Record]) -> str:
    """A table of a report: how many jobs are done, failures by reason, throughput by node, and the slowest jobs."""
    done = [record for record in records if not record["error"]]
    failed = [record for record in records if record["error"]]
    duration = sum(record["duration"] for record in done)
    lines = [f"{len(records)} jobs: {len(done)} done ({duration:,.0f} s of video), {len(failed)} failed"]
    if failed:
        reasons = Counter(_reason(record) for record in failed).most_common(NUM_REASONS)
        lines += _table(["failed", "because"], [[f"{count}", reason] for reason, count in reasons])
    by_node = defaultdict(list)
    for record in done:
        by_node[record["node"] or "this machine"].append(record)
    rows = []
    for node, its in sorted(by_node.items()):
        hours = (max(one["ended"] for one in its) - min(one["ended"] - _total(one) for one in its)) / 3600
        pace = [len(its) / max(hours, 1e-9), sum(one["duration"] for one in its) / max(hours, 1e-9)]
        rows.append([node, f"{len(its)}", *(f"{number:,.0f}" for number in pace)])
    lines += _table(["node", "done", "clips an hour", "seconds of video an hour"], rows)
    slowest = sorted(done, key=_total, reverse=True)[:NUM_SLOWEST]
    rows = [
        [
            record["output"],
            f"{_total(record):.1f}",
            ", ".join(f"{name} {s:.1f}" for name, s in record["seconds"].items()),
        ]
        for record in slowest
    ]
    return "\n".join(lines + _table(["slowest", "seconds", "by stage"], rows))


def _total(record: Record) -> float:
    return sum(record["seconds"].values())


def _reason(record: Record) -> str:
    """Why a job failed, with words in the place of the names of its files, so that equal reasons are equal."""
    sentence = record["error"]
    for name in ("input", "output"):
        if record[name]:
            sentence = sentence.replace(record[name], f"the {name}")
    return re.sub(r"\S*/[^\s:,]*", "a file", sentence)


def _table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Lines with aligned columns, after an empty one; none without rows."""
    rows = list(rows)
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [header, *rows]]
    return ["", *lines]
