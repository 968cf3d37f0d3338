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
"""Deprecated: use `loomvideo_diffusers.footage`."""

import os
import warnings
from typing import Any

from .footage import EditSettings, Footage, Report, plan_edit


def _edit_footage(
    pipe: Any,
    footage: Footage,
    edit: EditSettings,
    output: str | os.PathLike,
    compare: str | os.PathLike | None = None,
    comment: str = "",
    model: str = "",
    audio: str = "copy",
    negative_prompt_embeds: Any = None,
) -> Report:
    plan = plan_edit(footage, output=output, compare=compare, comment=comment, model=model, audio=audio, **vars(edit))
    return plan.run(pipe, negative_prompt_embeds)


_REPLACEMENTS = {
    "Edit": (EditSettings, "loomvideo_diffusers.footage.EditSettings"),
    "edit_footage": (_edit_footage, "loomvideo_diffusers.footage.plan_edit, and run the plan"),
}


def __getattr__(name: str) -> Any:
    if name not in _REPLACEMENTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value, advice = _REPLACEMENTS[name]
    warnings.warn(f"`{__name__}.{name}` is deprecated: use {advice}.", FutureWarning, stacklevel=2)
    return value
