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
"""How long a run takes on a large GPU: what ZeroGPU is told before it lends one."""

from ..footage import EditPlan, Footage, GenerationPlan
from ..pipelines.loomvideo_guidance import divide_into_windows


# Seconds of one forward of the released transformer on an H100, by its tokens n: a n + b n^2, which goes through the
# measurements of 97 frames at 480 x 832 and 121 frames at 704 x 1280.
SECONDS_PER_TOKEN = 2.0e-5
SECONDS_PER_PAIR_OF_TOKENS = 6.1e-10

# Pixels and frames of a token
SIDE, FRAMES = 32, 4

# Branches of guidance, seconds to begin with, seconds for each frame that is read, encoded, decoded and written, and a
# factor for what takes longer than expected
BRANCHES, START, SECONDS_PER_FRAME, MARGIN = 3, 10, 0.06, 1.5


def gpu_seconds(plan: EditPlan | GenerationPlan) -> int:
    """Estimates how many seconds the plan of a run takes with the released model on an H100."""
    settings, is_edit = plan.settings, isinstance(plan, EditPlan)
    num_frames = 1
    height, width = settings.height or 480, settings.width or 832
    if isinstance(plan, GenerationPlan):
        num_frames = plan.settings.num_frames
    elif isinstance(plan.source, Footage):
        assert plan.placement is not None
        height, width = plan.placement.height, plan.placement.width
        num_frames = plan.source.num_model_frames if plan.preview is None else 1
    else:
        height, width = settings.height or plan.source.height, settings.width or plan.source.width
    windows = divide_into_windows(num_frames, settings.window_frames, settings.window_overlap, FRAMES)
    tokens_of_frame = -(-height // SIDE) * -(-width // SIDE)
    forward = 0.0
    for frames, _ in windows:
        num_tokens = (frames.stop - frames.start + len(settings.references)) * tokens_of_frame
        forward += SECONDS_PER_TOKEN * num_tokens + SECONDS_PER_PAIR_OF_TOKENS * num_tokens**2
    num_pictures = 6 if is_edit and plan.preview is not None else 1  # type: ignore[union-attr]
    denoising = settings.num_inference_steps * BRANCHES * forward * num_pictures
    return round(MARGIN * (START + denoising + SECONDS_PER_FRAME * num_frames * num_pictures))
