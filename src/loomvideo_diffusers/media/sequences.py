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
"""Image sequences: numbered files whose names follow a pattern, such as `frames_%04d.png`."""

import os
import re
from pathlib import Path

from ..errors import LoomVideoError


FRAME_NUMBER = re.compile(r"%(?:0(\d+))?d")


def has_frame_number(path: str | os.PathLike) -> bool:
    """Whether a file name is the pattern of an image sequence."""
    return bool(FRAME_NUMBER.search(Path(path).name))


def is_sequence(path: str | os.PathLike) -> bool:
    """Whether a path is the pattern of an image sequence, and no file of that name exists."""
    return has_frame_number(path) and not Path(path).exists()


def sequence_file(path: str | os.PathLike, number: int) -> Path:
    """The file with this number, of the image sequence of this pattern."""
    before, width, after = _split(path)
    return Path(path).with_name(f"{before}{number:0{width}d}{after}")


def sequence_files(path: str | os.PathLike) -> list[Path]:
    """
    The files of an image sequence in order.

    Raises:
        LoomVideoError: as `sequence_numbers` does.
    """
    return [sequence_file(path, number) for number in sequence_numbers(path)]


def sequence_numbers(path: str | os.PathLike) -> range:
    """
    The numbers of the files of an image sequence.

    Raises:
        LoomVideoError: if there are no files, or one is missing between others.
    """
    path = Path(path)
    before, width, after = _split(path)
    name = re.compile(rf"{re.escape(before)}(\d{{{width}}}|[1-9]\d{{{width},}}){re.escape(after)}")
    files = os.listdir(path.parent) if path.parent.is_dir() else []
    found = {int(match[1]) for file in files if (match := name.fullmatch(file))}
    if not found:
        raise LoomVideoError(f"No files are named as in {path}: number them as in {sequence_file(path, 1)}.")
    numbers = range(min(found), max(found) + 1)
    for number in numbers:
        if number not in found:
            missing = sequence_file(path, number).name
            raise LoomVideoError(f"{missing} is missing in the image sequence {path}: add it, or move the rest away.")
    return numbers


def ffmpeg_pattern(path: str | os.PathLike) -> str:
    """The pattern of an image sequence as FFmpeg reads it, where any other percent sign is doubled."""
    path = Path(path)
    number = FRAME_NUMBER.search(path.name)
    assert number is not None
    before, after = path.name[: number.start()], path.name[number.end() :]
    return os.path.join(path.parent, before).replace("%", "%%") + number[0] + after.replace("%", "%%")


def _split(path: str | os.PathLike) -> tuple[str, int, str]:
    """What stands before the number in a name, how many digits the number has at least, and what stands after it."""
    before, width, after = FRAME_NUMBER.split(Path(path).name, maxsplit=1)
    return before, int(width or 1), after
