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
"""The benchmarks compare what computes the same, and count its operations right."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as benchmarks
from benchmarks.operations import count_operations


GRID, NUM_PROMPT_TOKENS = (3, 4, 6), 20


@pytest.fixture
def small(monkeypatch):
    """The settings of a smaller model, and the model."""
    config = {"num_attention_heads": 2, "attention_head_dim": 64, "ffn_dim": 256, "num_layers": 2}
    monkeypatch.setattr(benchmarks, "MODEL", benchmarks.MODEL | config)
    monkeypatch.setattr(benchmarks, "MLLM_DIM", 96)
    torch.manual_seed(0)
    return benchmarks.make_models(torch.float32)


@pytest.mark.parametrize("references", [[], [(4, 6), (2, 3)]])
@torch.no_grad()
def test_ways_to_compute_a_step(references, small):
    """All of them give the same, whether they keep what they can or compute it anew."""
    transformer, wan = small
    torch.nn.init.normal_(transformer.proj_out.weight)
    steps = benchmarks.make_steps(transformer, wan, GRID, NUM_PROMPT_TOKENS, references, torch.float32)
    expected = steps["without its savings"]()[0]
    assert expected.std() > 0.1
    for name in ("ours", "ours, first step"):
        torch.testing.assert_close(steps[name]()[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(steps["published way"](), expected, atol=1e-5, rtol=1e-5)


def test_counted_operations(small):
    transformer, _ = small
    config = dict(transformer.config)
    inputs = {
        "hidden_states": torch.randn(1, 48, GRID[0], 2 * GRID[1], 2 * GRID[2]),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 2, NUM_PROMPT_TOKENS, 96),
    }
    kv_cache = transformer.create_kv_cache()
    for is_first in (True, False):
        # The products inside of fused kernels would not be counted.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            transformer(**inputs, kv_cache=kv_cache)
        counted = count_operations(config, math.prod(GRID), NUM_PROMPT_TOKENS, is_first)
        # The embedding of the timestep is not counted.
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_ratios():
    steps = {name: lambda: torch.ones(1) for name in ("ours", "ours, first step", "published way")}
    times = benchmarks.time_interleaved(steps, "", 3)
    assert {name: len(of_step) for name, of_step in times.items()} == dict.fromkeys(steps, 3)
    times = {"ours": [1.0, 2.0, 3.0], "ours, first step": [51.0, 2.0, 3.0]}
    times |= {key: [4.0, 4.0, 6.0] for key in ("without its savings", "published way", "bare Wan")}
    assert benchmarks.ratios(times) == {
        "seconds": 2.0, "without its savings": 2.0, "published way": 2.0, "bare Wan": 2.0,
    }  # fmt: skip
