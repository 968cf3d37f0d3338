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
A page in the browser, over the same functions that Python users call.

```python
from loomvideo_diffusers.app import Models, launch

launch(Models(["nano"]))
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


# The module that each public name comes from, imported when the name is first used
_MODULES = {
    "Limits": ".limits",
    "Models": ".models",
    "gpu_seconds": ".duration",
    "launch": ".server",
    "serve": ".server",
}

__all__ = ["Limits", "Models", "gpu_seconds", "launch", "serve"]

if TYPE_CHECKING:
    from .duration import gpu_seconds
    from .limits import Limits
    from .models import Models
    from .server import launch, serve


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
