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
"""`loomvideo report`."""

import argparse
from typing import Any

from ..fleet.addresses import to_location
from .common import add_command


def add_parser(commands: Any) -> None:
    command = add_command(commands, "report", "Show what became of many jobs.")
    command.add_argument("report", type=to_location, metavar="FILE", help="what --jobs wrote, as .jsonl or .parquet")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> None:
    from ..fleet.report import describe_report, read_report

    print(describe_report(read_report(arguments.report)))
