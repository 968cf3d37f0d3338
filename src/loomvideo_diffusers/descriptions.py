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
"""What a result says about itself: the command that makes it again, and its main settings."""

import json
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any


# Options of the command line that are settings of a plan, and their names there
OPTIONS_OF_SETTINGS = {
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "height": "height",
    "width": "width",
    "steps": "num_inference_steps",
    "sigmas": "sigmas",
    "guidance_scale": "guidance_scale",
    "guidance_scale_visual": "guidance_scale_visual",
    "window": "window_frames",
    "overlap": "window_overlap",
    "lora_scale": "lora_scale",
    "max_crop": "max_crop",
    "keep_unchanged": "keep_unchanged",
    "mask_feather": "mask_feather",
    "strength": "strength",
}


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the command line that give these settings."""
    return {option: settings[name] for option, name in OPTIONS_OF_SETTINGS.items() if name in settings}


def describe_result(command: str, options: Mapping[str, Any], settings: Any) -> str:
    """
    Describes a result, to be kept in its file as a comment.

    Args:
        command: `generate` or `edit`.
        options: of the command line by their names with underscores, and `input` and `prompt`; those that are None,
            False or empty are not given.
        settings: of the plan.

    Returns:
        A JSON object: the `command` that makes the result again, and its main settings.
    """
    words, given = ["loomvideo", command], []
    for name, value in options.items():
        is_default = value is None or value is False or value == [] or (name, value) == ("model", "nano")
        if is_default:
            continue
        if name in ("input", "prompt"):
            words.append(str(value))
        else:
            listed = list(value) if isinstance(value, (list, tuple)) else [] if value is True else [value]
            given += [f"--{name.replace('_', '-')}", *map(str, listed)]
    description = {
        "command": shlex.join(words + given),
        "prompt": settings.prompt,
        "model": options["model"],
        "lora": [] if settings.lora_scale == 0 else options["lora"],
        "seed": settings.seed,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_scale_visual": settings.guidance_scale_visual,
        "loomvideo-diffusers": version("loomvideo-diffusers"),
    }
    return json.dumps(description)
