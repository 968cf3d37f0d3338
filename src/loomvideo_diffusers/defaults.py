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
"""What a model says of how it is best called."""

import json
from pathlib import Path
from typing import Any

from .errors import LoomVideoError


# What a model may say, and of what kind that is
OPTIONS = {
    "height": int,
    "width": int,
    "num_frames": int,
    "num_inference_steps": int,
    "guidance_scale": float,
    "guidance_scale_visual": float,
    "window_frames": int,
    "window_overlap": int,
}


def read_default_options(model: str) -> dict[str, Any]:
    """
    Reads what a model says of its sizes, frames, steps and guidance scales, without loading anything else of it.

    Args:
        model: a folder, or a repository.

    Returns:
        Arguments of a call, of those in `OPTIONS`. What is not among them is as the pipelines' signatures have it,
        which are right for the released model, of which nothing is said.

    Raises:
        LoomVideoError: if the folder is no model, or it says what cannot be.
        OSError: if a repository cannot be read.
    """
    file = Path(model) / "model_index.json"
    if Path(model).is_dir():
        try:
            index = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LoomVideoError(f"{file} cannot be read ({error}): choose the folder of a model.") from error
    else:
        from .pipelines import LoomVideoPipeline

        index = LoomVideoPipeline.load_config(model)
    options = index.get("default_options") or {}
    if not isinstance(options, dict):
        raise LoomVideoError(f"`default_options` in {file} must be an object, but is {json.dumps(options)}.")
    for name, value in options.items():
        is_number = isinstance(value, (int, OPTIONS.get(name, int))) and not isinstance(value, bool)
        if name not in OPTIONS or not is_number or value < (0 if name == "window_overlap" else 1):
            raise LoomVideoError(f"`default_options` in {file} say {name} = {json.dumps(value)}, which cannot be.")
    if ("height" in options) != ("width" in options):
        raise LoomVideoError(f"`default_options` in {file} have only one of height and width: give both, or neither.")
    return options
