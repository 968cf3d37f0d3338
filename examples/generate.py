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
"""Generates a video, and another one from a reference image."""

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.loading import load_pipeline
from loomvideo_diffusers.media import read_video, write_image, write_video


MODEL = "nano"  # a folder that `loomvideo convert` made, or a repository
SIZE = {"height": 96, "width": 96, "num_frames": 17}  # of the released model: 480, 832, 81
OPTIONS = {"num_inference_steps": 20, "guidance_scale": 2.5, "guidance_scale_visual": 2.5}  # 50, 5, 1.5

pipe = load_pipeline(LoomVideoPipeline, MODEL)
video = pipe("a large red heart moves right on a checkered background", **SIZE, **OPTIONS).frames[0]
write_video("heart.mp4", video)

write_image("heart.png", read_video("heart.mp4")[0])
video = pipe("@Image 1 moves up", reference_images=video[0], **SIZE, **OPTIONS).frames[0]
write_video("heart-moves-up.mp4", video)
