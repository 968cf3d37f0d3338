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
"""Edits the frames of a video. Run generate.py first."""

import torch

from loomvideo_diffusers import LoomVideoEditPipeline
from loomvideo_diffusers.loading import load_pipeline
from loomvideo_diffusers.media import read_video, write_video


MODEL = "nano"  # a folder that `loomvideo convert` made, or a repository
OPTIONS = {"num_inference_steps": 20, "guidance_scale": 2.5, "guidance_scale_visual": 2.5}  # 50, 2.5, 1.5
PROMPTS = ["make the heart blue", "invert the colours"]

edit = load_pipeline(LoomVideoEditPipeline, MODEL)
source = read_video("heart.mp4")
generators = [torch.Generator("cpu").manual_seed(0) for _ in PROMPTS]
videos = edit(PROMPTS, video=source, generator=generators, **OPTIONS).frames
for name, video in zip(("blue.mp4", "inverted.mp4"), videos):
    write_video(name, video)
