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
"""Files of JSON records, such as jobs and training data: one record on each line, or all of them in one list."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import LoomVideoError


# Byte order marks, which Windows' editors write. UTF-32 comes first, since its mark begins with that of UTF-16.
ENCODINGS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}

# Strings in JSON may hold other line separators, but none of these.
LINE_END = re.compile(r"\r\n|\n|\r")

# Python converts long numbers slowly, and refuses more than 4300 digits.
MAX_DIGITS = 1000


def read_json_records(path: Path) -> Iterator[tuple[str, Any]]:
    """
    Reads a file with a JSON value on each line, or a `.json` file of one value or a list of values.

    Args:
        path: the file, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Yields:
        Where each value stands, such as `jobs.jsonl:3` for line 3 or `jobs.json[0]` in a list, and the value.

    Raises:
        LoomVideoError: if the file cannot be read, is not text, or is not JSON; it names the line if it can.
    """
    text = _read_text(path)
    if path.suffix.lower() == ".json" and text.strip():
        try:
            value = _parse(text, str(path))
        except _MoreThanOneValue:
            pass  # The file has a value on each line.
        else:
            values = value if isinstance(value, list) else [value]
            yield from ((f"{path}[{index}]", record) for index, record in enumerate(values))
            return
    for number, line in enumerate(LINE_END.split(text), start=1):
        if line.strip():
            yield f"{path}:{number}", _parse(line, f"{path}:{number}")


class _MoreThanOneValue(LoomVideoError):
    """There is something after a JSON value."""


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LoomVideoError(f"{path} cannot be read: name a JSON or JSONL file.") from error
    encoding = next((encoding for mark, encoding in ENCODINGS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        number = len(LINE_END.split(data[: error.start].decode("latin-1")))
        raise LoomVideoError(f"{path}:{number} is not in {encoding.upper()}: save the file as UTF-8.") from error
    if "\0" in text:
        raise LoomVideoError(f"{path} is not text in UTF-8: save it as UTF-8.")
    return text


def _parse(text: str, where: str) -> Any:
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_refuse_constant
        )
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise LoomVideoError(f"{where} holds half a character: save the file as UTF-8, without escapes.") from error
    except RecursionError as error:
        raise LoomVideoError(f"{where} cannot be read as records: it is nested too deeply.") from error
    except json.JSONDecodeError as error:
        kind = _MoreThanOneValue if error.msg == "Extra data" else LoomVideoError
        raise kind(f"{where} is not JSON: {error.msg} at column {error.colno}.") from error
    except ValueError as error:
        raise LoomVideoError(f"{where} cannot be read as records: {error}.") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise LoomVideoError(f"it has the key `{next(key for key in keys if keys.count(key) > 1)}` twice")
    return values


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise LoomVideoError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise LoomVideoError(f"it holds the number {text[:40]}, which is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise LoomVideoError(f"it holds {name}, which is not a number")
