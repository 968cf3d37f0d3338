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
"""A terminal for commands, and what a person would read on it."""

import fcntl
import os
import pty
import struct
import subprocess
import termios


def run_in_terminal(command: list[str], columns: int = 100, **options) -> tuple[int, list[str], list[str]]:
    """
    Runs a command in a terminal of its own.

    Returns its exit status, the lines that are left on the screen, and all states that its last line was ever in.
    """
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40 if columns else 0, columns, 0, 0))
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, **options)
    os.close(inner)
    written = b""
    while True:
        try:
            part = os.read(outer, 65536)
        except OSError:  # the end, on Linux
            break
        if not part:
            break
        written += part
    os.close(outer)
    text = written.decode()
    assert "\x1b" not in text, "the cursor moves to another line"
    screen, states = [], []
    for written_line in text.split("\n"):
        line = ""
        for part in written_line.split("\r"):
            line = part + line[len(part) :]
            states.append(line.rstrip())
        screen.append(line.rstrip())
    return process.wait(), screen[:-1] if not screen[-1] else screen, states
