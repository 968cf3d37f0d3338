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
"""Deprecated: use `loomvideo_diffusers.media`."""

import warnings
from typing import Any

from . import media


def __getattr__(name: str) -> Any:
    if name not in media.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    advice = f"import `{name}` from `loomvideo_diffusers.media`"
    warnings.warn(f"`loomvideo_diffusers.video` is deprecated: {advice}.", FutureWarning, stacklevel=2)
    return getattr(media, name)
