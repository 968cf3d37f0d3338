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
"""One of the processes of test_transformer.py::test_context_parallel."""

import sys

import torch
import torch.distributed as dist
from conftest import load_case, transformer_inputs
from diffusers import ContextParallelConfig

from loomvideo_diffusers import LoomVideoTransformer3DModel


# diffusers picks a device by counting accelerators; here each process has a CPU.
torch.accelerator.device_count = lambda: 2
dist.init_process_group("cpu:gloo")
transformer = LoomVideoTransformer3DModel.from_pretrained(sys.argv[1], subfolder="transformer")
transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
for name in ("transformer_edit", "transformer_ref_edit", "transformer_mi2v_3refs"):
    with torch.no_grad():
        velocity = transformer(**transformer_inputs(name)).sample
    torch.testing.assert_close(velocity, load_case(name)[0]["output"], atol=1e-4, rtol=0)
dist.destroy_process_group()
