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
"""LoomVideo (arXiv 2606.06042) for Diffusers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

# The module that each public name comes from; it is imported when the name is first used, because torch, diffusers and
# transformers take seconds, and `loomvideo --help` does not need them.
_MODULES = {
    "LoomVideoEditPipeline": ".pipelines",
    "LoomVideoPipeline": ".pipelines",
    "LoomVideoPipelineOutput": ".pipelines",
    "LoomVideoTransformer3DModel": ".models.transformer_loomvideo",
}

__all__ = ["LoomVideoEditPipeline", "LoomVideoPipeline", "LoomVideoPipelineOutput", "LoomVideoTransformer3DModel"]

if TYPE_CHECKING:
    from .models.transformer_loomvideo import LoomVideoTransformer3DModel
    from .pipelines import LoomVideoEditPipeline, LoomVideoPipeline, LoomVideoPipelineOutput


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
