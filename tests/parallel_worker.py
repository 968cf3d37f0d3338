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
"""One of the processes of test_parallel.py: what they make together is what one makes alone."""

import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import load_case, transformer_inputs
from PIL import Image

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline
from loomvideo_diffusers.parallel import Division, Processes
from loomvideo_diffusers.pipelines.loomvideo_errors import LoomVideoInputError


def call(pipe, edit, exactly):
    """Latents of an edit of two clips with a reference, and of a video from two references."""
    clips = torch.rand(2, 9, 64, 64, 3, generator=torch.Generator().manual_seed(0)).numpy()
    reference = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 50).convert("RGB")
    common = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(1)}
    yield edit(["one", "another one of two"], video=list(clips), reference_images=[reference], **common).frames
    size = {"height": 64, "width": 96 if exactly else 64, "num_frames": 9}
    yield pipe("a cat", reference_images=[reference, reference], **size, **common).frames


torch.set_num_threads(1)
model_folder, *words = sys.argv[1:]
division = Division.parse(words)
pipe = LoomVideoPipeline.from_pretrained(model_folder)
pipe.set_progress_bar_config(disable=True)
edit = LoomVideoEditPipeline.from_pipe(pipe)
edit.set_progress_bar_config(disable=True)
uneven = division.ulysses == 1
expected = list(call(pipe, edit, uneven))
clip = np.random.default_rng(0).integers(0, 256, (9, 96, 64, 3), np.uint8)
encoded = pipe.encode_in_chunks(clip)
decoded = [pipe.decode_latents(latents, "pt") for latents in (encoded, encoded[:, :, :, :1])]
processes = Processes(division, "cpu")
processes.divide(pipe)
edit = LoomVideoEditPipeline.from_pipe(pipe)
edit.set_progress_bar_config(disable=True)
if division.ulysses > 1:
    with pytest.raises(LoomVideoInputError, match="27 tokens cannot be divided evenly over 2 processes"):
        pipe("a cat", height=96, width=96, num_frames=9, num_inference_steps=1)
    pipe.maybe_free_model_hooks()
for latents, alone in zip(call(pipe, edit, uneven), expected, strict=True):
    torch.testing.assert_close(latents, alone, atol=1e-4, rtol=0)
seen = set()
pipe.vae.decoder.conv_in.register_forward_pre_hook(lambda layer, inputs: seen.add(inputs[0].shape[-2]))
torch.testing.assert_close(pipe.encode_in_chunks(clip, 2), encoded, atol=1e-4, rtol=0)
for latents, video in zip((encoded, encoded[:, :, :, :1]), decoded):
    torch.testing.assert_close(pipe.decode_latents(latents, "pt"), video, atol=1e-4, rtol=0)
    chunks = torch.cat(list(pipe.decode_in_chunks(latents)), dim=2) / 2 + 0.5
    torch.testing.assert_close(chunks.transpose(1, 2), video, atol=1e-4, rtol=0)
# Of pictures of six rows and of one
assert seen == {len(range(dist.get_rank(), 6, dist.get_world_size())), 1}
for name in ("transformer_edit", "transformer_ref_edit", "transformer_mi2v_3refs"):
    with torch.no_grad():
        velocity = pipe.transformer(**transformer_inputs(name)).sample
    torch.testing.assert_close(velocity, load_case(name)[0]["output"], atol=1e-4, rtol=0)
assert processes.share(dist.get_rank() + 7) == 7
dist.destroy_process_group()
