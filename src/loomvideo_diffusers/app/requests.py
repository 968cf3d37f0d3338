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
"""What the page and its endpoints have in common: whose a request is, and what is said if it cannot be done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from ..errors import one_line
from .guard import COOKIE
from .studio import Studio
from .visits import Visit


Result = TypeVar("Result")


def visit_of(studio: Studio, request: gr.Request) -> Visit:
    """The visit that a request belongs to."""
    return studio.visits.of(request.cookies.get(COOKIE))[1]


def in_one_sentence(studio: Studio, call: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """Calls, and tells the visitor in one sentence what they can mend."""
    try:
        return call(*args, **options)
    except Exception as error:
        sentence = one_line(error)
        if sentence is None:
            raise
        raise gr.Error(studio.visits.without_folders(sentence), print_exception=False) from error


def path_of(value: Any) -> Path | None:
    """The path of a file as a browser sends it: by itself, or as the image or the video of something."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("path"), str):
        return Path(value["path"])
    return path_of(value.get("image") or value.get("video"))


def paths_of(values: Any) -> list[Path]:
    """The paths of several files."""
    paths = [path_of(value) for value in values or ()]
    return [path for path in paths if path is not None]
