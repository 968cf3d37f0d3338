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
"""What ComfyUI's nodes cost: time against the command line's, and memory."""

import time

import numpy as np
import psutil
import pytest
from test_comfyui import INPUTS, OPTIONS, VideoFromFile, comfy, pytestmark, run  # noqa: F401

from loomvideo_diffusers import LoomVideoEditPipeline
from loomvideo_diffusers.footage import plan_edit
from loomvideo_diffusers.loading import load_pipeline


SETTINGS = {"seed": 1, "width": 96, "height": 96}
SAMPLING = {"steps": 20, "guidance": 2.5, "visual_guidance": 2.5}
WORDS = {"prompt": "make the heart blue", "negative_prompt": ""}


@pytest.mark.slow
@pytest.mark.alone
def test_time_and_memory(comfy, tmp_path):  # noqa: F811
    """After loading, a node's run takes at most 1.05 times as long as the command's; memory does not grow."""
    (model,) = run(comfy, "LoomVideoLoadModel", model="nano (coloured shapes)", **OPTIONS)
    pipe = load_pipeline(LoomVideoEditPipeline, "nano")
    video = VideoFromFile(str(INPUTS / "heart.mp4"))
    part = {"mask_feather": 4, "strength": 1.0, "lossless": False}
    sampling = {"num_inference_steps": 20, "guidance_scale": 2.5, "guidance_scale_visual": 2.5}

    def by_command():
        plan = plan_edit(INPUTS / "heart.mp4", WORDS["prompt"], tmp_path / "out.mp4", **SETTINGS, **sampling)
        plan.run(pipe)

    def by_node():
        run(comfy, "LoomVideoEditVideo", model=model, video=video, **WORDS, **SETTINGS, **SAMPLING, **part)

    def seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    by_node(), by_command()
    ratios, memory = [], []
    for _ in range(20):
        ratios.append(seconds(by_node) / seconds(by_command))
        memory.append(psutil.Process().memory_info().rss)
    print(
        f"\nTime {np.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f}), memory {memory[-1] / memory[2]:.3f}"
    )
    assert np.median(ratios) <= 1.05
    assert memory[-1] <= 1.1 * memory[2]
