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
Videos, sound and images in files: read upright, and written whole or not at all. Nothing here knows of models.

```python
from loomvideo_diffusers.media import read_video, write_video

write_video("copy.mp4", read_video("clip.mov"))
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


# The module that each public name comes from, imported when the name is first used
_MODULES = {
    "FRAMES_PER_SECOND": ".reading",
    "IMAGE_SUFFIXES": ".images",
    "MAX_FRAMES": ".reading",
    "VIDEO_SUFFIXES": ".writing",
    "check_output_path": ".files",
    "contact_sheet": ".sheets",
    "is_animation": ".images",
    "is_image": ".images",
    "probe_image": ".images",
    "probe_video": ".reading",
    "read_comment": ".reading",
    "read_image": ".images",
    "read_video": ".reading",
    "sample_frame_indices": ".reading",
    "write_gif": ".writing",
    "write_image": ".images",
    "write_video": ".writing",
    "write_whole": ".files",
}

__all__ = [
    "FRAMES_PER_SECOND",
    "IMAGE_SUFFIXES",
    "MAX_FRAMES",
    "VIDEO_SUFFIXES",
    "check_output_path",
    "contact_sheet",
    "is_animation",
    "is_image",
    "probe_image",
    "probe_video",
    "read_comment",
    "read_image",
    "read_video",
    "sample_frame_indices",
    "write_gif",
    "write_image",
    "write_video",
    "write_whole",
]

if TYPE_CHECKING:
    from .files import check_output_path, write_whole
    from .images import IMAGE_SUFFIXES, is_animation, is_image, probe_image, read_image, write_image
    from .reading import FRAMES_PER_SECOND, MAX_FRAMES, probe_video, read_comment, read_video, sample_frame_indices
    from .sheets import contact_sheet
    from .writing import VIDEO_SUFFIXES, write_gif, write_video


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
