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
"""`loomvideo app`."""

import argparse
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import LoomVideoError
from .common import add_command, add_machine_options, finite, machine_options, silence_libraries


def add_parser(commands: Any) -> None:
    command = add_command(commands, "app", "Open a page on this machine to edit footage by looking at it.")
    option = command.add_argument
    option(
        "--model",
        nargs="+",
        default=["nano"],
        metavar="nano|PATH|REPO",
        help="models that can be chosen, the first by default (default: nano, a small model in the package)",
    )
    option(
        "--lora", nargs="+", default=[], metavar="PATH|REPO", help="LoRAs that can be chosen, which fit all the models"
    )
    option("--lora-partial", action="store_true", help="skip the layers of a LoRA that a model does not have")
    option("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at (default: this machine alone)")
    option("--port", type=int, metavar="N", help="default: the first that is free from 7860 on")
    option("--share", action="store_true", help="make the page reachable by an address of Gradio's, for three days")
    option("--auth", type=Path, metavar="FILE", help="let in only those who have a line NAME:PASSWORD in this file")
    option("--max-megabytes", type=finite, default=500, metavar="N", help="size of a file (default: 500)")
    option("--max-seconds", type=finite, default=60, metavar="N", help="length of a clip (default: 60)")
    option("--max-megapixels", type=finite, default=9, metavar="N", help="size of a frame in millions (default: 9)")
    add_machine_options(command)
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise LoomVideoError('The page needs Gradio: pip install "loomvideo-diffusers[app]".') from error
    from ..app import Limits, Models, launch

    silence_libraries()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Both signals end it in the same way, files removed.
    models = Models(arguments.model, arguments.lora, lora_partial=arguments.lora_partial, **machine_options(arguments))
    with suppress(KeyboardInterrupt):
        launch(
            models,
            lambda address: print(f"The page is at {address}", flush=True),
            host=arguments.host,
            port=arguments.port,
            share=arguments.share,
            auth=arguments.auth,
            limits=Limits(arguments.max_megabytes, arguments.max_seconds, arguments.max_megapixels),
        )
