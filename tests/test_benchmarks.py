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
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as benchmarks
from benchmarks import approximations, gpu
from benchmarks.baselines import concatenated_step
from benchmarks.levers import make_table
from benchmarks.operations import count_operations
from benchmarks.page import PAGE, fill_in, make_page, make_tables, newest_on_a_gpu
from benchmarks.results import RESULTS_DIR, Result, Table, read_result, write_result


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


def test_timing():
    """Each step is run to warm up, and then back and forth with the others; medians are of ratios within a round."""
    order = []
    steps = {name: partial(order.append, name) for name in ("one", "two", "three")}
    times = benchmarks.time_interleaved(steps, "", 2)
    assert order == ["one", "two", "three"] * 2 + ["three", "two", "one"]
    assert {name: len(of_step) for name, of_step in times.items()} == dict.fromkeys(steps, 2)
    assert benchmarks.ours({"ours": [1.0, 2.0], "ours, first step": [51.0, 2.0]}) == [2.0, 2.0]
    assert benchmarks.median_ratio([4.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == 3.0


def test_bound(small):
    """Steps that are nothing but products at the rate of those beside them reach all of it, slower ones less."""
    config = dict(small[0].config)
    operations = 2 * 10 * 128 * 256  # of one product
    row = benchmarks.bound(config, 10, 3 * operations, [2.0, 1.0, 4.0], [6.0, 3.0, 24.0])
    assert benchmarks.bound(config, 10, 3 * operations, [1.0], [6.0])["fraction of bound"] == 0.5
    assert row == {
        "operations": 3 * operations, "operations a second": operations / 2, "bound": 6.0, "fraction of bound": 1.0,
    }  # fmt: skip


def test_concatenation(small):
    """With a source as additional tokens, what the video's tokens are made into depends on them."""
    transformer, _ = small
    inputs = {
        "hidden_states": torch.randn(1, 48, GRID[0], 2 * GRID[1], 2 * GRID[2]),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 2, NUM_PROMPT_TOKENS, 96),
    }
    source = torch.randn_like(inputs["hidden_states"])
    with torch.no_grad():
        kv_cache = transformer.create_kv_cache()
        first, second = (
            concatenated_step(transformer, **inputs, source_hidden_states=source, kv_cache=kv_cache) for _ in range(2)
        )
        torch.testing.assert_close(second, first)
        assert first.shape == inputs["hidden_states"].shape
        other = concatenated_step(
            transformer, **inputs, source_hidden_states=-source, kv_cache=transformer.create_kv_cache()
        )
        assert (other - first).abs().max() > 1e-3
        # Twice the same tokens at the same places are attended to as once, and so change nothing.
        twice = concatenated_step(
            transformer, **inputs, source_hidden_states=inputs["hidden_states"], kv_cache=transformer.create_kv_cache()
        )
        torch.testing.assert_close(twice, transformer(**inputs).sample, atol=1e-5, rtol=1e-5)


def test_all_of_it(small, monkeypatch, tmp_path, capsys):
    """A run with a small model writes all that it measures."""
    monkeypatch.setattr(benchmarks, "VIDEO_GRID", GRID)
    monkeypatch.setattr(benchmarks, "LONG_GRID", GRID)
    monkeypatch.setattr(benchmarks, "SHAPES", {"short": (8, []), "long, references": (20, [(4, 6)])})
    monkeypatch.setattr(benchmarks, "NUM_REPETITIONS", 2)
    monkeypatch.setattr(benchmarks, "OUTPUT_DIR", tmp_path)
    monkeypatch.setattr(benchmarks, "NUMS_OF_FRAMES", (1, 2))
    file = tmp_path / "results" / "steps.json"
    benchmarks.main(["--json", str(file)])
    result = read_result(file)
    report = result.measured
    assert [(row["dtype"], row["shape"]) for row in report["steps"]] == [
        (dtype, shape) for dtype in ("float32", "bfloat16") for shape in ("short", "long, references")
    ]
    assert [row["branches"] for row in report["calls"]] == [2, 3, 2]
    assert report["edits"]["interval"][0] <= report["edits"]["edit / generation"] <= report["edits"]["interval"][1]
    assert [row["tokens"] for row in report["growth"]] == [256, 512]
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000
    assert [len(table.rows) for table in result.tables] == [4, 3, 2, 2]
    assert result.to_markdown() in capsys.readouterr().out
    assert "projected, not measured" in result.to_markdown()


@pytest.mark.slow
def test_approximations(monkeypatch, tmp_path, capsys):
    """A run of the plain setting alone: it loses nothing to itself and takes as long."""
    plain = approximations.Setting(options={"num_inference_steps": 1})
    monkeypatch.setattr(approximations, "SETTINGS", {approximations.PLAIN: plain})
    monkeypatch.setattr(approximations, "TASKS", ("recolor", "text to image"))
    monkeypatch.setattr(approximations, "NUM_EXAMPLES", 1)
    monkeypatch.setattr(approximations, "NUM_REPETITIONS", 1)
    approximations.main(["--json", str(tmp_path / "approximations.json")])
    report = read_result(tmp_path / "approximations.json").measured
    assert sorted(report["rates"][approximations.PLAIN]) == ["recolor", "text to image"]
    assert report["ratios"] == {approximations.PLAIN: 1.0}
    printed = capsys.readouterr().out
    assert "| recolor |" in printed
    assert f"points: {approximations.PLAIN}, 1.00x" in printed


def test_fastest_approximation():
    """One that is worse at a single task does not count, one that is better at others does."""
    plain = approximations.PLAIN
    rates = {"worse": {"one": 1.0, "two": 0.77}, "good": {"one": 0.99, "two": 0.9}, plain: {"one": 1.0, "two": 0.8}}
    assert approximations.find_fastest(rates, {"worse": 0.3, "good": 0.4, plain: 1.0}) == "good"
    assert approximations.find_fastest(rates, {"worse": 0.3, "good": 1.1, plain: 1.0}) == plain


def test_levers_that_failed():
    """They have no row in the table."""
    row = {"seconds": 2.0, "ratio": 0.5, "megabytes": 3.0, "difference": 0.25}
    table = make_table({"plain": row, "broken": None, "fast": row})
    assert table.rows == [["plain", "2.0 s", "3 MB", "0.25"], ["fast", "0.50x", "3 MB", "0.25"]]


def test_page(tmp_path):
    """A section for each result, the newest first."""
    older = Result(
        "Older", "by hand", "2026-01-02", "A machine", [], [Table(["a", "b"], [["1", "2"]], "Two:")], {"a": 1.5}
    )
    newer = Result("Newer", "by hand", "2026-02-01", "A machine", ["A sentence."], [])
    write_result(older, tmp_path / "2026-01-02-z.json")
    write_result(newer, tmp_path / "2026-02-01-a.json")
    assert read_result(tmp_path / "2026-01-02-z.json") == older
    page = make_page(tmp_path)
    assert page.endswith(
        "## Newer\n\n2026-02-01, by hand. A machine.\n\nA sentence.\n\n"
        "## Older\n\n2026-01-02, by hand. A machine.\n\nTwo:\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    )


def test_published_page():
    """It is what `python -m benchmarks.page` makes of the results, whose files are called by their dates."""
    assert PAGE.read_text(encoding="utf-8") == make_page()
    for path, tables in make_tables(newest_on_a_gpu()).items():
        text = path.read_text(encoding="utf-8")
        assert tables[0].to_markdown() in text
        assert fill_in(text, tables) == text
    files = sorted(RESULTS_DIR.glob("*.json"))
    assert len(files) >= 5
    for file in files:
        assert file.name.startswith(f"{read_result(file).date}-")


@pytest.mark.parametrize(
    "sections",
    [["limits"], pytest.param(["forwards", "vae", "edit", "memory"], marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_what_is_run_on_a_gpu(sections, tmp_path, capsys):
    """At small sizes on a CPU: each section has rows with times, which are written after each."""
    gpu.main(["--small", "--device", "cpu", "--json", str(tmp_path / "gpu.json"), "--only", *sections])
    result = read_result(tmp_path / "gpu.json")
    assert list(result.measured) == sections
    assert len(result.tables) == len(sections)
    for rows in result.measured.values():
        assert all(value > 0 for row in rows for name, value in row.items() if name in ("seconds", "denoise"))
    if "memory" in sections:
        ways = [row["way"] for row in result.measured["memory"]]
        assert ways == ["resident", "--offload model", "int8, resident", "int8, --offload model", "--memory 8"]
        assert all(row["counted"] > 0 for row in result.measured["memory"])
        assert len({row["layers"] for row in result.measured["vae"]}) == 4
