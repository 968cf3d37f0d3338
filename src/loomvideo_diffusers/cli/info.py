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
"""`loomvideo info`."""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import nano
from ..defaults import read_default_options
from ..errors import LoomVideoError
from .common import add_command


def add_parser(commands: Any) -> None:
    command = add_command(
        commands, "info", "Show what a model holds, how a result was made, or else the installed versions."
    )
    command.add_argument("path", nargs="?", metavar="nano|PATH", help="a model folder, or a video or image made here")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> None:
    if arguments.path is None:
        lines = describe_installation()
    elif Path(arguments.path).is_file():
        lines = describe_result(arguments.path)
    else:
        lines = describe_model(nano.MODEL if arguments.path == "nano" else arguments.path)
    print("\n".join(lines))


def describe_installation() -> list[str]:
    """The versions that are installed, and the devices that are there, a line each."""
    import torch

    lines = [
        f"{package:20} {version(package)}"
        for package in ("loomvideo-diffusers", "diffusers", "transformers", "torch", "av")
    ]
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [*lines, f"{'device':20} {', '.join(devices) or ('mps' if torch.backends.mps.is_available() else 'cpu')}"]


def describe_model(folder: str | Path) -> list[str]:
    """
    The parts of a model folder, its default options, and what it was made from, a line each.

    Raises:
        LoomVideoError: if it is no model folder, or a file of its weights is damaged.
    """
    from safetensors import SafetensorError

    from ..hub.cards import RECORD_FILE, measure_part

    folder, lines = Path(folder), []
    index = _read_json(folder / "model_index.json", "make a model folder with `loomvideo convert`")
    for name, value in sorted(index.items()):
        if not isinstance(value, list) or name.startswith("_"):
            continue
        try:
            part = measure_part(folder, name)
        except SafetensorError as error:
            raise LoomVideoError(f"{folder / name} cannot be read: {error}.") from error
        weights = f"{part['parameters']:14,} parameters, {part['precision']}, {part['size']}"
        lines.append(f"{name:14} {value[1] or 'none':28} {weights if part['parameters'] else ''}".rstrip())
    for name, value in read_default_options(str(folder)).items():
        lines.append(f"{'by default':14} {name:28} {value}")
    if (folder / RECORD_FILE).is_file():
        record = _read_json(folder / RECORD_FILE, "convert the model again")
        for name, source in record["sources"].items():
            lines.append(f"{'made from':14} {name:28} {' '.join(value for value in source.values() if value)}")
        for package, number in record["versions"].items():
            lines.append(f"{'made with':14} {package:28} {number}")
    return lines


def describe_result(path: str | Path) -> list[str]:
    """
    The command that made a video or an image, and what else the file says about itself, a line each.

    Raises:
        LoomVideoError: if it was not made here, or cannot be read.
    """
    from ..media import read_comment

    try:
        description = json.loads(read_comment(path))
        lines = [description.pop("command")]
    except (json.JSONDecodeError, TypeError, AttributeError, KeyError) as error:
        raise LoomVideoError(f"{path} does not say how it was made: choose a file that `loomvideo` wrote.") from error
    for name, value in description.items():
        if value not in (None, []):
            lines.append(f"{name:22} {' '.join(value) if isinstance(value, list) else value}")
    return lines


def _read_json(file: Path, advice: str) -> dict[str, Any]:
    if not file.is_file():
        raise LoomVideoError(f"{file.parent} has no {file.name}: {advice}.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoomVideoError(f"{file} cannot be read ({error}): {advice}.") from error
