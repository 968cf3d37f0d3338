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
"""Edits a file of any length, size and frame rate, with its sound. Run generate.py first, or name your own clip."""

from loomvideo_diffusers import LoomVideoEditPipeline
from loomvideo_diffusers.footage import plan_edit
from loomvideo_diffusers.loading import load_pipeline


MODEL = "nano"  # a folder that `loomvideo convert` made, or a repository
SIZE = {"height": 96, "width": 96}  # leave it out with the released model, which has sizes for all proportions
OPTIONS = {"num_inference_steps": 20, "guidance_scale": 2.5, "guidance_scale_visual": 2.5}  # 50, 2.5, 1.5

plan = plan_edit("heart.mp4", "make the heart blue", "blue-footage.mp4", compare="both.mp4", seed=0, **SIZE, **OPTIONS)
report = plan.run(load_pipeline(LoomVideoEditPipeline, MODEL))
for file, words in report.files.items():
    print(f"{file}: {words}")
