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
"""The `loomvideo` command: one module a command, whose `run` calls functions that Python users can call too."""

import argparse
import atexit
import gc
import io
import sys

from ..errors import one_line
from ..progress import close_bars
from . import app, calibrate, convert, edit, generate, info, push, report, space, train
from .common import silence_imports


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loomvideo", description="Generate and edit video with LoomVideo.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (generate, edit, report, app, calibrate, convert, push, space, train, info):
        command.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Runs the command line.

    Returns:
        0; 2 after one line on stderr if the input was wrong; 130 if interrupted. A mistake in the code is raised: its
        traceback is printed, and Python exits with 1.
    """
    # The imports create half a million objects that stay; searching them for garbage takes seconds.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # File names may hold characters that it cannot encode.
    silence_imports()
    arguments = build_parser().parse_args(argv)
    try:
        try:
            return arguments.function(arguments) or 0
        finally:
            close_bars()
    except KeyboardInterrupt:
        print("loomvideo: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"loomvideo: error: {line}", file=sys.stderr)
        return 2
