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
"""LoomVideo's blocks for Modular Diffusers, with the package's own transformer."""

from .models.transformer_loomvideo import LoomVideoTransformer3DModel
from .pipelines import modular_loomvideo
from .pipelines.loomvideo_guider import LoomVideoGuidance
from .pipelines.modular_loomvideo import LoomVideoAutoBlocks, LoomVideoBlock, LoomVideoBlocks, LoomVideoEditBlocks


__all__ = ["LoomVideoAutoBlocks", "LoomVideoBlock", "LoomVideoBlocks", "LoomVideoEditBlocks", "LoomVideoGuidance"]

# Installed as part of the package, the blocks never run a folder's own code.
modular_loomvideo.COMPONENTS["transformer"] = LoomVideoTransformer3DModel
