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
"""`loomvideo space`."""

import argparse
from typing import Any

from .common import add_command, silence_libraries


def add_parser(commands: Any) -> None:
    command = add_command(commands, "space", "Upload the page of `app` as a Space, and check what has arrived.")
    option = command.add_argument
    option("repository", metavar="OWNER/NAME", help="the Space, created if it does not exist")
    option("--model", nargs="+", required=True, metavar="REPO", help="models that can be chosen, or nano")
    option("--lora", nargs="+", default=[], metavar="REPO", help="LoRAs that can be chosen")
    option("--private", action="store_true", help="make a new Space private")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> None:
    from ..hub.space import push_space

    silence_libraries()
    url = push_space(arguments.repository, arguments.model, arguments.lora, private=arguments.private or None)
    print(f"Pushed: {url}")
