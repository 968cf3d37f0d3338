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
"""The pipelines. The other files here are copied into each Hub repository, and import nothing of the package."""

from .loomvideo_output import LoomVideoPipelineOutput
from .pipeline_loomvideo import LoomVideoPipeline
from .pipeline_loomvideo_edit import LoomVideoEditPipeline


__all__ = ["LoomVideoEditPipeline", "LoomVideoPipeline", "LoomVideoPipelineOutput"]

# Installed as part of the package, the pipelines use its transformer and never run a folder's own code.
for _pipeline_class in (LoomVideoPipeline, LoomVideoEditPipeline):
    _pipeline_class._installed_transformer = (
        "loomvideo_diffusers.models.transformer_loomvideo",
        "LoomVideoTransformer3DModel",
    )
