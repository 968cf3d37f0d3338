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
"""What a model's folder says about how it is best called."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import LoomVideoError


# The options that a model may name, and their types
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
    Reads a model's own sizes, frames, steps and guidance scales, and nothing else of it.

    Args:
        model: a folder or a repository.

    Returns:
        Arguments of a call, some of those in `OPTIONS`. For the others, the defaults of the pipelines' calls are
        right, which are those of the released model.

    Raises:
        LoomVideoError: if the folder is no model, or names an option that does not exist or is out of range.
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


def read_size_step(model: str) -> int:
    """
    Reads what height and width must be multiples of: the VAE's compression times the transformer's patches.

    Args:
        model: a folder or a repository.

    Raises:
        OSError: if its configuration cannot be read.
    """
    from diffusers import AutoencoderKLWan

    from . import LoomVideoTransformer3DModel

    vae = AutoencoderKLWan.load_config(model, subfolder="vae")
    transformer = LoomVideoTransformer3DModel.load_config(model, subfolder="transformer")
    return vae.get("scale_factor_spatial", 8) * transformer.get("patch_size", (1, 2, 2))[1]


def complete_settings(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    Completes settings by those that the model itself names: arguments of a plan, and maybe `num_frames`.

    Args:
        model: a folder or a repository.
        given: settings by their names in a plan; those that are None are not given.

    Raises:
        LoomVideoError: if the model cannot work at a given size, or what it says cannot be.
        OSError: if a repository cannot be read.
    """
    given = {name: value for name, value in given.items() if value is not None}
    settings = read_default_options(model)
    sizes = {name: given[name] for name in ("height", "width") if name in given}
    if sizes:
        settings = {name: value for name, value in settings.items() if name not in ("height", "width")}
        step = read_size_step(model)
        for name, size in sizes.items():
            if size <= 0 or size % step:
                raise LoomVideoError(f"`{name}` must be a positive multiple of {step}, but is {size}.")
    return settings | given
