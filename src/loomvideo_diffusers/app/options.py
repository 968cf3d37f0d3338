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
"""The settings that a request may hold, checked when they are read."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import LoomVideoError
from .limits import Limits


class Options(BaseModel):
    """
    The settings of a run; None for the model's own.

    Attributes:
        model, loras, lora_scale: of those that are offered.
        negative_prompt, seed, height, width, num_inference_steps, guidance_scale, guidance_scale_visual: as in a
            pipeline's call.
        num_frames: of what is generated.
        keep_unchanged: of an edit, whether to keep the clip's own pixels where it changed nothing.
        strength, boxes, mask_invert, mask_feather: of an edit, see `plan_edit` and `EditSettings`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    loras: list[str] = Field([], max_length=16)
    lora_scale: float | None = Field(None, ge=-10, le=10, allow_inf_nan=False)
    negative_prompt: str | None = Field(None, max_length=4000)
    seed: int | None = Field(None, ge=0, lt=2**63)
    height: int | None = Field(None, ge=16, le=8192)
    width: int | None = Field(None, ge=16, le=8192)
    num_frames: int | None = Field(None, ge=1)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    guidance_scale_visual: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    keep_unchanged: bool | None = None
    strength: float | None = Field(None, ge=0, le=1)
    boxes: list[Annotated[str, Field(max_length=100)]] | None = Field(None, max_length=100)
    mask_invert: bool | None = None
    mask_feather: int | None = Field(None, ge=0, le=100)


OPTIONS = frozenset(Options.model_fields)


def read_options(values: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """
    Reads settings that a browser or a program sent; empty texts and lists are not given.

    Raises:
        LoomVideoError: if one of them is unknown, of another type, or over a limit.
    """
    try:
        given = {name: value for name, value in values.items() if value not in (None, "")}
        options = Options(**given).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        raise LoomVideoError(f"`{'.'.join(map(str, first['loc']))}` cannot be that: {first['msg']}.") from error
    if options["num_inference_steps"] is not None and options["num_inference_steps"] > limits.steps:
        raise LoomVideoError(f"At most {limits.steps} steps are taken here: choose fewer.")
    if (options["height"] or 0) * (options["width"] or 0) > limits.megapixels * 1e6:
        raise LoomVideoError(f"At most {limits.megapixels:g} million pixels are taken here: choose a smaller size.")
    return options
