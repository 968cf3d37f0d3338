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
"""Times a step side by side with other ways to compute it, in tables, json and png: `python -m benchmarks`."""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from loomvideo_diffusers import LoomVideoTransformer3DModel
from loomvideo_diffusers.pipelines.loomvideo_guidance import guidance_coefficients

from .baselines import concatenated_step, published_blocks, published_step
from .operations import count_operations, matrix_product
from .results import Result, Table, default_file, describe_machine, today, write_result


matplotlib.use("agg")
import matplotlib.pyplot as plt


OUTPUT_DIR = Path("outputs/benchmarks")
NUM_REPETITIONS = 7
NUM_STEPS = 50  # of a call, over which what is computed once is spread

# The released model's proportions at a size for CPUs
MODEL: dict[str, int] = {
    "num_attention_heads": 6,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
    "ffn_dim": 3584,
    "num_layers": 4,
}
MLLM_DIM = 1024

# Of a video of 1024 tokens: the tokens of its prompt, and the patches of its references
VIDEO_GRID = (4, 16, 16)
LONG_GRID = (16, 16, 16)  # against concatenation
REFERENCES = [(16, 16), (16, 16)]
SHAPES: dict[str, tuple[int, list[tuple[int, int]]]] = {
    "short prompt": (64, []),
    "long prompt": (512, []),
    "short prompt, references": (64, REFERENCES),
    "long prompt, references": (512, REFERENCES),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OTHERS = ("without its savings", "published way", "bare Wan")

# Of whole steps: the tokens of the negative prompt, and the scales of guidance; at the second visual scale, a branch
# does not count
NUM_NEGATIVE_TOKENS = 128
GUIDANCE_SCALE = 2.5
GUIDANCE_SCALES_VISUAL = (1.5, 1.0)

# Of videos of 256 tokens a frame, from 512 to 8192 tokens
NUMS_OF_FRAMES = (2, 4, 8, 16, 32)

# What the released model makes on a GPU of so many operations a second, to project from
RELEASED: dict[str, Any] = {
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 48,
    "out_channels": 48,
}
RELEASED |= {"ffn_dim": 14336, "num_layers": 30, "mllm_dim": 4096, "patch_size": (1, 2, 2)}
GPU_RATE = 400e12
PROJECTED = {"480 x 832 x 97": (25, 15, 26), "704 x 1280 x 121": (31, 22, 40)}

Step = Callable[[], Any]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, default=default_file("steps"), help="where the result is written")
    file = parser.parse_args(arguments).json
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.no_grad():
        report: dict[str, Any] = {
            "steps": [row for name, dtype in DTYPES.items() for row in compare_steps(name, dtype)],
            "calls": compare_calls(),
            "edits": compare_edits(),
            "growth": measure_growth(),
            "projection": project(),
        }
    report["machine"] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "operations a second": max(row["operations a second"] for row in report["growth"]),
        "minutes of this benchmark": (time.perf_counter() - start) / 60,
    }
    result = Result(
        "A step beside other ways to compute it",
        "by `python -m benchmarks`",
        today(),
        describe_machine(),
        make_notes(report),
        make_tables(report),
        report,
    )
    write_result(result, file)
    OUTPUT_DIR.mkdir(parents=True, exist_ok=True)
    plot(report)
    print(result.to_markdown())
    print(f"\nWrote {file} and {OUTPUT_DIR / 'benchmarks.png'}.")


def make_models(dtype: torch.dtype) -> tuple[LoomVideoTransformer3DModel, WanTransformer3DModel]:
    """A model of random weights, and Wan's of the same sizes, which reads its text as wide."""
    transformer = LoomVideoTransformer3DModel(**MODEL, mllm_dim=MLLM_DIM)
    wan = WanTransformer3DModel(**MODEL, text_dim=MLLM_DIM, qk_norm="rms_norm_across_heads", cross_attn_norm=True)
    for model in (transformer, wan):
        for name, parameter in model.named_parameters():
            is_kept = any(kept in name for kept in model._keep_in_fp32_modules)
            parameter.data = parameter.data.to(torch.float32 if is_kept else dtype)
        model.eval()
    return transformer, wan


def make_steps(
    transformer: LoomVideoTransformer3DModel,
    wan: WanTransformer3DModel,
    grid: tuple[int, int, int],
    num_prompt_tokens: int,
    references: list[tuple[int, int]],
    dtype: torch.dtype,
) -> dict[str, Step]:
    """One branch of an edit's step, in each of the ways to compute it; and a product as large as in its layers."""
    num_frames, height, width = grid
    latents = torch.randn(1, 48, num_frames, 2 * height, 2 * width, dtype=dtype)
    inputs: dict[str, Any] = {
        "hidden_states": latents,
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, MODEL["num_layers"], num_prompt_tokens, MLLM_DIM, dtype=dtype),
        "source_hidden_states": torch.randn_like(latents),
        "source_scale": torch.tensor([0.5]),
        "reference_hidden_states": [torch.randn(1, 48, 1, 2 * h, 2 * w, dtype=dtype) for h, w in references],
    }
    kv_cache = transformer.create_kv_cache()
    transformer(**inputs, kv_cache=kv_cache)
    blocks = published_blocks(transformer)
    num_tokens = math.prod(grid) + sum(h * w for h, w in references)
    # As many tokens, in one row of patches for each
    wan_latents = torch.randn(1, 48, num_tokens // (height * width), 2 * height, 2 * width, dtype=dtype)
    text = torch.randn(1, num_prompt_tokens, MLLM_DIM, dtype=dtype)
    return {
        "ours": lambda: transformer(**inputs, kv_cache=kv_cache),
        "ours, first step": lambda: transformer(**inputs, kv_cache=transformer.create_kv_cache()),
        "without its savings": lambda: transformer(**inputs),
        "published way": lambda: published_step(transformer, blocks, **inputs),
        "bare Wan": lambda: wan(wan_latents, torch.tensor([500]), text),
        "matrix product": matrix_product(dict(transformer.config), num_tokens, dtype),
    }


def time_interleaved(
    steps: Mapping[str, Step], description: str, num_repetitions: int = NUM_REPETITIONS
) -> dict[str, list[float]]:
    """Times all steps in turn, back and forth, so that what slows the machine slows all of them."""
    for step in steps.values():
        step()
    times = {name: [] for name in steps}
    for repetition in tqdm(range(num_repetitions), desc=description):
        for name in list(steps)[:: -1 if repetition % 2 else 1]:
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    return times


def ours(times: dict[str, list[float]]) -> list[float]:
    """The seconds of a step of ours, of which the first takes longer."""
    pairs = zip(times["ours, first step"], times["ours"])
    return [(first + (NUM_STEPS - 1) * later) / NUM_STEPS for first, later in pairs]


def median_ratio(times: list[float], others: list[float]) -> float:
    return statistics.median([one / other for one, other in zip(times, others)])


def compare_steps(dtype_name: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Of each shape the seconds of a step, how many times longer the other ways take, and how near the bound it is."""
    transformer, wan = make_models(dtype)
    config, rows = dict(transformer.config), []
    for shape, (num_prompt_tokens, references) in SHAPES.items():
        steps = make_steps(transformer, wan, VIDEO_GRID, num_prompt_tokens, references, dtype)
        times = time_interleaved(steps, f"{dtype_name}, {shape}")
        num_tokens = math.prod(VIDEO_GRID) + sum(map(math.prod, references))
        first, later = (
            count_operations(config, num_tokens, num_prompt_tokens, is_first) for is_first in (True, False)
        )
        operations = (first + (NUM_STEPS - 1) * later) / NUM_STEPS
        row = {"dtype": dtype_name, "shape": shape, "seconds": statistics.median(ours(times))}
        row |= {name: median_ratio(times[name], ours(times)) for name in OTHERS}
        rows.append(row | bound(config, num_tokens, operations, times["matrix product"], ours(times)))
    return rows


def bound(
    config: dict[str, Any], num_tokens: int, operations: float, products: list[float], seconds: list[float]
) -> dict[str, float]:
    """The time of so many operations at the rate of the matrix product beside each step, and how near we are."""
    in_product = 2 * num_tokens * config["num_attention_heads"] * config["attention_head_dim"] * config["ffn_dim"]
    bounds = [operations * product / in_product for product in products]
    return {
        "operations": operations,
        "operations a second": in_product / statistics.median(products),
        "bound": statistics.median(bounds),
        "fraction of bound": median_ratio(bounds, seconds),
    }


def compare_calls() -> list[dict[str, Any]]:
    """Whole steps with guidance, float32: the published way runs three branches, ours those that count."""
    transformer, wan = make_models(torch.float32)
    rows = []
    for shape, (num_prompt_tokens, references) in SHAPES.items():
        # The visual branch reads the references too, so nearly as many tokens.
        inputs = {"cond": (num_prompt_tokens, references), "visual": (num_prompt_tokens, references)}
        inputs["uncond"] = (NUM_NEGATIVE_TOKENS, [])
        of_branches = {
            branch: make_steps(transformer, wan, VIDEO_GRID, *of_branch, torch.float32)
            for branch, of_branch in inputs.items()
        }
        for guidance_scale_visual in GUIDANCE_SCALES_VISUAL if references else GUIDANCE_SCALES_VISUAL[:1]:
            counting = guidance_coefficients(GUIDANCE_SCALE, guidance_scale_visual, has_visual_input=bool(references))
            run: dict[str, Iterable[str]] = {
                "ours": counting,
                "ours, first step": counting,
                "published way": of_branches,
            }
            steps = {way: partial(_run_all, [of_branches[name][way] for name in names]) for way, names in run.items()}
            times = time_interleaved(steps, f"{shape}, guidance_scale_visual={guidance_scale_visual}", 5)
            row = {"shape": shape, "guidance_scale_visual": guidance_scale_visual, "branches": len(counting)}
            row |= {"seconds": statistics.median(ours(times))}
            rows.append(row | {"published way": median_ratio(times["published way"], ours(times))})
    return rows


def _run_all(steps: list[Step]) -> None:
    for step in steps:
        step()


def compare_edits() -> dict[str, Any]:
    """
    A step of an edit against one of a generation, both of 1024 tokens, with an interval that holds the ratio's median
    in 95 of 100 runs; and against one whose source is additional tokens, of 4096 tokens and as many again. float32.
    """
    transformer, _ = make_models(torch.float32)
    steps = {name: _make_edit(transformer, name, VIDEO_GRID) for name in ("edit", "generation")}
    times = time_interleaved(steps, "edit and generation", NUM_REPETITIONS**2)
    ratios = sorted(one / other for one, other in zip(times["edit"], times["generation"]))
    middle, margin = len(ratios) / 2, 0.98 * math.sqrt(len(ratios))
    steps = {name: _make_edit(transformer, name, LONG_GRID) for name in ("edit", "concatenation")}
    times = time_interleaved(steps, "edit and concatenation", 5)
    return {
        "edit / generation": statistics.median(ratios),
        "interval": [ratios[int(middle - margin)], ratios[int(middle + margin)]],
        "concatenation / edit": median_ratio(times["concatenation"], times["edit"]),
    }


def _make_edit(transformer: LoomVideoTransformer3DModel, kind: str, grid: tuple[int, int, int]) -> Step:
    latents = torch.randn(1, 48, grid[0], 2 * grid[1], 2 * grid[2])
    inputs: dict[str, Any] = {
        "hidden_states": latents,
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, MODEL["num_layers"], 128, MLLM_DIM),
        "source_hidden_states": None if kind == "generation" else torch.randn_like(latents),
        "kv_cache": transformer.create_kv_cache(),
    }
    if kind == "concatenation":
        return partial(concatenated_step, transformer, **inputs)
    return lambda: transformer(**inputs, source_scale=torch.tensor([0.5]))


def measure_growth() -> list[dict[str, float]]:
    """Seconds of a step by its tokens, beside what the operations alone would take."""
    transformer, wan = make_models(torch.float32)
    config, rows = dict(transformer.config), []
    for num_frames in NUMS_OF_FRAMES:
        grid = (num_frames, 16, 16)
        num_tokens = math.prod(grid)
        steps = make_steps(transformer, wan, grid, 128, [], torch.float32)
        steps = {name: steps[name] for name in ("ours", "matrix product")}
        times = time_interleaved(steps, f"{num_tokens} tokens", 5 if num_tokens < 4096 else 3)
        operations = count_operations(config, num_tokens, 128, is_first=False)
        row = {"tokens": num_tokens, "seconds": statistics.median(times["ours"])}
        rows.append(row | bound(config, num_tokens, operations, times["matrix product"], times["ours"]))
    return rows


def project() -> dict[str, dict[str, float]]:
    """Seconds of an edit of 50 steps by the released model, at the rate of a GPU: computed, not measured."""
    projected = {}
    for name, grid in PROJECTED.items():
        num_tokens = math.prod(grid)
        added = 3 * NUM_STEPS * count_operations(RELEASED, num_tokens, 512, is_first=False)
        concatenated = 3 * NUM_STEPS * count_operations(RELEASED, 2 * num_tokens, 512, is_first=False)
        projected[name] = {"seconds": added / GPU_RATE, "with concatenation": concatenated / GPU_RATE}
    return projected


def plot(report: dict[str, Any]) -> None:
    figure, (bars, line) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    rows = [row for row in report["steps"] if row["dtype"] == "float32"]
    for place, name in enumerate(OTHERS):
        bars.bar([index + 0.25 * place for index in range(len(rows))], [row[name] for row in rows], 0.25, label=name)
    bars.axhline(1, color="black", linewidth=1)
    bars.set_xticks([index + 0.25 for index in range(len(rows))], [row["shape"].replace(", ", ",\n") for row in rows])
    bars.set(title="Time of a step, in times of ours (float32)")
    bars.margins(y=0.2)  # room for the legend
    bars.legend(loc="upper center", ncols=len(OTHERS))
    tokens = [row["tokens"] for row in report["growth"]]
    line.loglog(tokens, [row["seconds"] for row in report["growth"]], marker="o", label="measured")
    line.loglog(tokens, [row["bound"] for row in report["growth"]], "--", label="lower bound")
    line.set_xticks(tokens, map(str, tokens))
    line.minorticks_off()
    line.set(title="Seconds of a step by tokens", xlabel="tokens", ylabel="seconds")
    line.legend()
    figure.savefig(OUTPUT_DIR / "benchmarks.png", dpi=100)
    plt.close(figure)


def make_notes(report: dict[str, Any]) -> list[str]:
    machine, edits, growth = report["machine"], report["edits"], report["growth"]
    means = {
        dtype: statistics.geometric_mean(row["published way"] for row in report["steps"] if row["dtype"] == dtype)
        for dtype in DTYPES
    }
    default = statistics.geometric_mean(
        row["published way"] for row in report["calls"] if row["guidance_scale_visual"] == GUIDANCE_SCALES_VISUAL[0]
    )
    low, high = edits["interval"]
    seconds, operations = (growth[-1][name] / growth[0][name] for name in ("seconds", "operations"))
    return [
        f"{machine['operations a second'] / 1e9:.0f} billion operations a second in products of float32 matrices, "
        f"measured in {machine['minutes of this benchmark']:.1f} minutes.",
        "Published way, geometric means: "
        + ", ".join(f"{mean:.2f}x in {dtype}" for dtype, mean in means.items())
        + f"; whole steps by default {default:.2f}x.",
        f"A step of an edit takes {edits['edit / generation']:.3f} times as long as one of a generation (95% interval "
        f"{low:.3f} to {high:.3f}). With the source as additional tokens, it takes "
        f"{edits['concatenation / edit']:.2f} times as long.",
        f"From {growth[0]['tokens']} to {growth[-1]['tokens']} tokens: {seconds:.1f} times the seconds for "
        f"{operations:.1f} times the operations.",
    ]


def make_tables(report: dict[str, Any]) -> list[Table]:
    branches = Table(
        ["one branch", "shape", "seconds a step", *OTHERS, "lower bound, seconds", "fraction reached"],
        [
            [row["dtype"], row["shape"], f"{row['seconds']:.3f}"]
            + [f"{row[name]:.2f}x" for name in OTHERS]
            + bound_cells(row)
            for row in report["steps"]
        ],
    )
    calls = Table(
        ["whole step, float32", "`guidance_scale_visual`", "branches run", "seconds", "published way, three branches"],
        [
            [
                row["shape"],
                str(row["guidance_scale_visual"]),
                str(row["branches"]),
                f"{row['seconds']:.3f}",
                f"{row['published way']:.2f}x",
            ]
            for row in report["calls"]
        ],
    )
    growth = Table(
        ["tokens", "seconds a step", "operations, billions", "lower bound, seconds", "fraction reached"],
        [
            [str(row["tokens"]), f"{row['seconds']:.3f}", f"{row['operations'] / 1e9:.1f}", *bound_cells(row)]
            for row in report["growth"]
        ],
    )
    projection = Table(
        [f"projected, not measured: 50 steps at {GPU_RATE / 1e12:.0f} TFLOP/s", "edit", "with concatenation"],
        [
            [name, f"{row['seconds']:.0f} s", f"{row['with concatenation']:.0f} s"]
            for name, row in report["projection"].items()
        ],
    )
    return [branches, calls, growth, projection]


def bound_cells(row: dict[str, float]) -> list[str]:
    return [f"{row['bound']:.3f}", f"{row['fraction of bound']:.0%}"]


if __name__ == "__main__":
    main()
