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
"""The commands that make, upload, train and describe models: `convert`, `push`, `train`, `info`."""

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path

from .. import nano
from ..defaults import read_default_options
from ..errors import LoomVideoError
from .common import Stopwatch, find_model, silence_libraries


def convert(arguments: argparse.Namespace) -> None:
    import torch

    from .. import conversion

    silence_libraries()
    dtype = arguments.dtype or ("float16" if arguments.variant == "fp16" else "bfloat16")
    stopwatch = Stopwatch()
    with stopwatch.stage("read"):
        sources = conversion.find_sources(
            arguments.loomvideo, arguments.mllm, arguments.wan, use_ema=not arguments.raw_weights
        )
        plan = conversion.plan_conversion(sources, getattr(torch, dtype), arguments.max_shard_size, arguments.variant)
    if plan.left_out:
        names = ", ".join([*plan.left_out[:6], *(["..."] if len(plan.left_out) > 6 else [])])
        print(f"Left out, as the model does not use it: {names}.")
    if arguments.dry_run:
        for name, size in plan.files.items():
            print(f"{size / 1e6:12,.1f} MB  {name}")
        print(f"{plan.num_bytes / 1e6:12,.1f} MB  in all would be written to {arguments.output}.")
    elif arguments.verify:
        conversion.verify(plan, arguments.output)
        print(f"Verified {arguments.output}: every tensor is that of its source.")
    else:
        with stopwatch.stage("write"):
            is_new = conversion.write(plan, arguments.output, arguments.license, arguments.force)
        verb = "Wrote" if is_new else "Verified, as it was there already,"
        print(f"{verb} {arguments.output}: {plan.num_bytes / 1e6:,.1f} MB of weights ({stopwatch}).")


def push(arguments: argparse.Namespace) -> None:
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


def train(arguments: argparse.Namespace) -> None:
    silence_libraries()
    try:
        from ..training import load_config
        from ..training import train as run_training
    except ImportError as error:
        raise LoomVideoError(
            f"Training needs {error.name}: install it with `pip install loomvideo-diffusers[train]`."
        ) from error

    config = load_config(arguments.config)
    config.model = find_model(config.model)
    result = run_training(
        config,
        resume=arguments.resume,
        strict=arguments.strict,
        push=arguments.push_to_hub,
        precompute_only=arguments.precompute_only,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"Wrote {result}." if result else f"The features are in {config.data.features}.")


def info(arguments: argparse.Namespace) -> None:
    import torch

    from ..conversion.cards import RECORD_FILE, measure_part

    if arguments.path is None:
        for package in ("loomvideo-diffusers", "diffusers", "transformers", "torch", "av"):
            print(f"{package:20} {version(package)}")
        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        print(f"{'device':20} {', '.join(devices) or ('mps' if torch.backends.mps.is_available() else 'cpu')}")
        return

    if Path(arguments.path).is_file():
        _print_description(arguments.path)
        return
    folder = Path(nano.MODEL if arguments.path == "nano" else arguments.path)
    if not (folder / "model_index.json").is_file():
        raise LoomVideoError(f"{folder} has no model_index.json: make a model folder with `loomvideo convert`.")
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, value in sorted(index.items()):
        if not isinstance(value, list) or name.startswith("_"):
            continue
        part = measure_part(folder, name)
        weights = f"{part['parameters']:14,} parameters, {part['precision']}, {part['size']}"
        print(f"{name:14} {value[1] or 'none':28} {weights if part['parameters'] else ''}".rstrip())
    for name, value in read_default_options(str(folder)).items():
        print(f"{'by default':14} {name:28} {value}")
    if (folder / RECORD_FILE).is_file():
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        for name, source in record["sources"].items():
            print(f"{'made from':14} {name:28} {' '.join(value for value in source.values() if value)}")
        for package, number in record["versions"].items():
            print(f"{'made with':14} {package:28} {number}")


def _print_description(path: str) -> None:
    """Prints the command that made a file, and what the file says of it besides."""
    from ..media.video import read_comment

    try:
        description = json.loads(read_comment(path))
        print(description.pop("command"))
    except (json.JSONDecodeError, TypeError, AttributeError, KeyError) as error:
        raise LoomVideoError(f"{path} does not say how it was made: choose a file that `loomvideo` wrote.") from error
    for name, value in description.items():
        if value not in (None, []):
            print(f"{name:22} {' '.join(value) if isinstance(value, list) else value}")
