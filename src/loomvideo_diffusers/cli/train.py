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
"""`loomvideo train`."""

import argparse
import os
from pathlib import Path
from typing import Any

from ..errors import LoomVideoError
from ..loading import find_model
from .common import add_command, silence_libraries


def add_parser(commands: Any) -> None:
    command = add_command(commands, "train", "Train a LoRA, or the whole transformer, on your own clips.")
    option = command.add_argument
    option("config", type=Path, metavar="CONFIG", help="a YAML file of settings")
    option("--resume", action="store_true", help="continue from the last checkpoint if there is one")
    option("--strict", action="store_true", help="stop at a corrupt clip instead of skipping it")
    option("--precompute-only", action="store_true", help="compute the features, and do not train")
    option("--push-to-hub", action="store_true", help="upload the result to the `hub_model_id`")
    command.set_defaults(function=run)


def run(arguments: argparse.Namespace) -> None:
    silence_libraries()
    try:
        from ..training import load_config, train
    except ImportError as error:
        raise LoomVideoError(
            f"Training needs {error.name}: install it with `pip install loomvideo-diffusers[train]`."
        ) from error

    config = load_config(arguments.config)
    config.model = find_model(config.model)
    result = train(
        config,
        resume=arguments.resume,
        strict=arguments.strict,
        push=arguments.push_to_hub,
        precompute_only=arguments.precompute_only,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"Wrote {result}." if result else f"The features are in {config.data.features}.")
