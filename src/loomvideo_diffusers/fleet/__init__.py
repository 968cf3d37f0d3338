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
"""
Many edits or generations from one list: `read_jobs` reads it, `run_jobs` runs it in this process, `run_jobs_on_ray` on
a cluster; `open_report` keeps what became of each job. `ClipEditor` is for Ray Data.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


# The module that each public name comes from, imported when the name is first used: addresses need no torch.
_MODULES = {
    "ClipEditor": ".batches",
    "EditJob": ".jobs",
    "GenerationJob": ".jobs",
    "JobReport": ".report",
    "JobResult": ".work",
    "describe_report": ".report",
    "open_report": ".report",
    "plan_job": ".work",
    "read_jobs": ".jobs",
    "read_report": ".report",
    "run_jobs": ".run",
    "run_jobs_on_ray": ".cluster",
}

__all__ = [
    "ClipEditor",
    "EditJob",
    "GenerationJob",
    "JobReport",
    "JobResult",
    "describe_report",
    "open_report",
    "plan_job",
    "read_jobs",
    "read_report",
    "run_jobs",
    "run_jobs_on_ray",
]

if TYPE_CHECKING:
    from .batches import ClipEditor
    from .cluster import run_jobs_on_ray
    from .jobs import EditJob, GenerationJob, read_jobs
    from .report import JobReport, describe_report, open_report, read_report
    from .run import run_jobs
    from .work import JobResult, plan_job


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
