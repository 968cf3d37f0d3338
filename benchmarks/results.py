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
"""Results of measurements, a dated json file each, from which `benchmarks.page` makes a page."""

import datetime
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


RESULTS_DIR = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        header: of each column.
        rows: the cells of each row, as they are shown.
        title: what is said above it, if anything.
    """

    header: list[str]
    rows: list[list[str]]
    title: str = ""

    def to_markdown(self) -> str:
        lines = [f"| {' | '.join(self.header)} |", f"|{' --- |' * len(self.header)}"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([f"{self.title}\n"] * bool(self.title) + lines)


@dataclass(frozen=True)
class Result:
    """
    What one run of one benchmark found.

    Attributes:
        title: what was measured.
        method: the command that measured it, or how else it was measured.
        date: of the measurement, `YYYY-MM-DD`.
        machine: processor or accelerator, threads, versions of libraries.
        notes: sentences that belong to the figures.
        tables: of what was found.
        measured: the figures as they were measured, where the command recorded them.
    """

    title: str
    method: str
    date: str
    machine: str
    notes: list[str]
    tables: list[Table]
    measured: dict[str, Any] = field(default_factory=dict)

    def to_markdown(self) -> str:
        parts = [*self.notes, *(table.to_markdown() for table in self.tables)]
        return "\n\n".join(parts)


def write_result(result: Result, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(result), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_result(file: Path) -> Result:
    fields = json.loads(file.read_text(encoding="utf-8"))
    return Result(**fields | {"tables": [Table(**table) for table in fields["tables"]]})


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def default_file(name: str) -> Path:
    """Where today's result of a benchmark is kept."""
    return RESULTS_DIR / f"{today()}-{name}.json"


def describe_machine() -> str:
    return (
        f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"PyTorch {torch.__version__}"
    )
