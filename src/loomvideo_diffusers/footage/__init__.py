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
"""
Clips and images of any size, length and rate through the pipelines: plan first, load a pipeline, then run the plan.

```python
from loomvideo_diffusers import LoomVideoEditPipeline
from loomvideo_diffusers.footage import plan_edit
from loomvideo_diffusers.loading import load_pipeline

plan = plan_edit("street.mp4", "Make it a rainy night", "rainy-night.mp4", seed=1)
plan.run(load_pipeline(LoomVideoEditPipeline, "path-or-repo"))
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


# The module that each public name comes from, imported when the name is first used: surveying a clip needs no torch.
_MODULES = {
    "EditPlan": ".plan",
    "EditSettings": ".settings",
    "Footage": ".surveying",
    "GenerationPlan": ".generation",
    "GenerationSettings": ".settings",
    "Placement": ".geometry",
    "Report": ".plan",
    "plan_edit": ".plan",
    "plan_generation": ".generation",
    "read_frames": ".surveying",
    "read_model_frames": ".surveying",
    "survey": ".surveying",
}

__all__ = [
    "EditPlan",
    "EditSettings",
    "Footage",
    "GenerationPlan",
    "GenerationSettings",
    "Placement",
    "Report",
    "plan_edit",
    "plan_generation",
    "read_frames",
    "read_model_frames",
    "survey",
]

if TYPE_CHECKING:
    from .generation import GenerationPlan, plan_generation
    from .geometry import Placement
    from .plan import EditPlan, Report, plan_edit
    from .settings import EditSettings, GenerationSettings
    from .surveying import Footage, read_frames, read_model_frames, survey


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
