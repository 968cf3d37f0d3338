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
"""`loomvideo push`."""

import argparse
from pathlib import Path
from typing import Any

from .common import add_command, silence_libraries


def add_parser(commands: Any) -> None:
    command = add_command(commands, "push", "Upload a model folder or a LoRA to the Hub, and check what has arrived.")
    option = command.add_argument
    option("folder", type=Path, metavar="DIR", help="a folder that `convert` or `train` wrote")
    option("repository", metavar="REPO", help="OWNER/NAME, created if it does not exist")
    option("--private", action="store_true", help="make a new repository private")
    option("--revision", metavar="BRANCH", help="branch, created if it does not exist (default: main)")
    option("--create-pr", action="store_true", help="open a pull request instead")
    option("--license", metavar="ID", help="license for a card that names none, such as apache-2.0")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> None:
    from .. import conversion

    silence_libraries()
    url = conversion.push(
        arguments.folder,
        arguments.repository,
        private=arguments.private or None,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        license=arguments.license,
    )
    print(f"Pushed: {url}")
