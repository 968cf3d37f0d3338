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

import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import torch
from diffusers import WanTransformer3DModel
from tqdm import tqdm

from loomvideo_diffusers import LoomVideoTransformer3DModel

from .baselines import concatenated_step, published_step
from .operations import count_operations, measure_rate


matplotlib.use("agg")
import matplotlib.pyplot as plt


OUTPUT_DIR = Path("outputs/benchmarks")
NUM_REPETITIONS = 7
NUM_STEPS = 50  # of a call, over which what is computed once is spread

# The released model's proportions at a size for CPUs
MODEL = {
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
SHAPES = {
    "short prompt": (64, []),
    "long prompt": (512, []),
    "short prompt, references": (64, [(16, 16), (16, 16)]),
    "long prompt, references": (512, [(16, 16), (16, 16)]),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# What the released model makes on a GPU of so many operations a second, to project from
RELEASED = {"num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48}
RELEASED |= {"ffn_dim": 14336, "num_layers": 30, "mllm_dim": 4096, "patch_size": (1, 2, 2)}
GPU_RATE = 400e12
PROJECTED = {"480 x 832 x 97": (25, 15, 26), "704 x 1280 x 121": (31, 22, 40)}

Step = Callable[[], torch.Tensor]


def main() -> None:
    torch.manual_seed(0)
    rows = []
    with torch.no_grad():
        for dtype_name, dtype in DTYPES.items():
            transformer, wan = make_models(dtype)
            for shape, (num_prompt_tokens, references) in SHAPES.items():
                steps = make_steps(transformer, wan, VIDEO_GRID, num_prompt_tokens, references, dtype)
                times = time_interleaved(steps, f"{dtype_name}, {shape}")
                rows.append({"dtype": dtype_name, "shape": shape} | ratios(times))
        edits = compare_edits()
        growth = measure_growth()
    report = {"steps": rows, "edits": edits, "growth": growth, "projection": project()}
    OUTPUT_DIR.mkdir(parents=True, exist_ok=True)
    (OUTPUT_DIR / "benchmarks.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(report)
    print_tables(report)


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
    """One branch of an edit's step, in each of the ways to compute it."""
    num_frames, height, width = grid
    latents = torch.randn(1, 48, num_frames, 2 * height, 2 * width, dtype=dtype)
    inputs = {
        "hidden_states": latents,
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, MODEL["num_layers"], num_prompt_tokens, MLLM_DIM, dtype=dtype),
        "source_hidden_states": torch.randn_like(latents),
        "source_scale": torch.tensor([0.5]),
        "reference_hidden_states": [torch.randn(1, 48, 1, 2 * h, 2 * w, dtype=dtype) for h, w in references],
    }
    kv_cache = transformer.create_kv_cache()
    transformer(**inputs, kv_cache=kv_cache)
    num_tokens = math.prod(grid) + sum(h * w for h, w in references)
    # As many tokens, in one row of patches for each
    wan_latents = torch.randn(1, 48, num_tokens // (height * width), 2 * height, 2 * width, dtype=dtype)
    text = torch.randn(1, num_prompt_tokens, MLLM_DIM, dtype=dtype)
    return {
        "ours": lambda: transformer(**inputs, kv_cache=kv_cache),
        "ours, first step": lambda: transformer(**inputs, kv_cache=transformer.create_kv_cache()),
        "without its savings": lambda: transformer(**inputs),
        "published way": lambda: published_step(transformer, **inputs),
        "bare Wan": lambda: wan(wan_latents, torch.tensor([500]), text),
    }


def time_interleaved(
    steps: dict[str, Step], description: str, num_repetitions: int = NUM_REPETITIONS
) -> dict[str, list[float]]:
    """Times all steps in turn, so that what slows the machine slows all of them."""
    for step in steps.values():
        step()
    times = {name: [] for name in steps}
    for _ in tqdm(range(num_repetitions), desc=description):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return times


def ratios(times: dict[str, list[float]]) -> dict[str, float]:
    """The seconds of a step, and medians of how many times longer the other ways take."""
    ours = [
        (first + (NUM_STEPS - 1) * later) / NUM_STEPS for first, later in zip(times["ours, first step"], times["ours"])
    ]
    result = {"seconds": statistics.median(ours)}
    for name in ("without its savings", "published way", "bare Wan"):
        result[name] = statistics.median([other / one for other, one in zip(times[name], ours)])
    return result


def compare_edits() -> dict[str, float]:
    """A step of an edit against one of a generation, and against one whose source is additional tokens, float32."""
    transformer, _ = make_models(torch.float32)
    latents = torch.randn(1, 48, 16, 32, 32)  # 4096 tokens
    inputs = {
        "hidden_states": latents,
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, MODEL["num_layers"], 128, MLLM_DIM),
    }
    source = torch.randn_like(latents)
    sources = {"edit": {"source_hidden_states": source}, "generation": {}}
    steps: dict[str, Step] = {}
    for name, given in sources.items():
        kv_cache = transformer.create_kv_cache()
        options = inputs | given | {"source_scale": torch.tensor([0.5]), "kv_cache": kv_cache}
        steps[name] = partial(transformer, **options)
    kv_cache = transformer.create_kv_cache()
    steps["concatenation"] = partial(
        concatenated_step, transformer, **inputs, source_hidden_states=source, kv_cache=kv_cache
    )
    times = time_interleaved(steps, "edits", 3 * NUM_REPETITIONS)
    return {
        "seconds": statistics.median(times["edit"]),
        "edit / generation": statistics.median([a / b for a, b in zip(times["edit"], times["generation"])]),
        "concatenation / edit": statistics.median([a / b for a, b in zip(times["concatenation"], times["edit"])]),
    }


def measure_growth() -> list[dict[str, float]]:
    """Seconds of a step by its tokens, beside what the operations alone would take at this machine's best rate."""
    transformer, wan = make_models(torch.float32)
    config, rows = dict(transformer.config), []
    for num_frames in (2, 4, 8, 16, 32):
        grid = (num_frames, 16, 16)
        num_tokens = math.prod(grid)
        steps = {"ours": make_steps(transformer, wan, grid, 128, [], torch.float32)["ours"]}
        seconds = min(time_interleaved(steps, f"{num_tokens} tokens", 3)["ours"])
        operations = count_operations(config, num_tokens, 128, is_first=False)
        bound = operations / measure_rate(config, num_tokens, torch.float32)
        rows.append(
            {"tokens": num_tokens, "seconds": seconds, "operations": operations, "fraction of bound": bound / seconds}
        )
    return rows


def project() -> dict[str, dict[str, float]]:
    """Seconds of an edit of 50 steps by the released model, at the rate of a GPU: computed, not measured."""
    projected = {}
    for name, grid in PROJECTED.items():
        num_tokens = math.prod(grid)
        ours = 3 * NUM_STEPS * count_operations(RELEASED, num_tokens, 512, is_first=False)
        concatenated = 3 * NUM_STEPS * count_operations(RELEASED, 2 * num_tokens, 512, is_first=False)
        projected[name] = {"seconds": ours / GPU_RATE, "with concatenation": concatenated / GPU_RATE}
    return projected


def plot(report: dict) -> None:
    figure, (bars, line) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    rows = [row for row in report["steps"] if row["dtype"] == "float32"]
    for place, name in enumerate(("without its savings", "published way", "bare Wan")):
        bars.bar([index + 0.25 * place for index in range(len(rows))], [row[name] for row in rows], 0.25, label=name)
    bars.axhline(1, color="black", linewidth=1)
    bars.set_xticks([index + 0.25 for index in range(len(rows))], [row["shape"].replace(", ", ",\n") for row in rows])
    bars.set(title="Time of a step, in times of ours (float32)")
    bars.legend()
    tokens = [row["tokens"] for row in report["growth"]]
    line.loglog(tokens, [row["seconds"] for row in report["growth"]], marker="o", label="measured")
    line.loglog(
        tokens, [row["seconds"] * row["fraction of bound"] for row in report["growth"]], "--", label="lower bound"
    )
    line.set(title="Seconds of a step by tokens", xlabel="tokens", ylabel="seconds")
    line.legend()
    figure.savefig(OUTPUT_DIR / "benchmarks.png", dpi=100)
    plt.close(figure)


def print_tables(report: dict) -> None:
    print("| | shape | seconds a step | without its savings | published way | bare Wan |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in report["steps"]:
        cells = [f"{row[name]:.2f}x" for name in ("without its savings", "published way", "bare Wan")]
        print(f"| {row['dtype']} | {row['shape']} | {row['seconds']:.3f} | {' | '.join(cells)} |")
    for dtype in DTYPES:
        means = [math.log(row["published way"]) for row in report["steps"] if row["dtype"] == dtype]
        print(f"Published way, geometric mean in {dtype}: {math.exp(statistics.mean(means)):.2f}x")
    for name in ("edit / generation", "concatenation / edit"):
        print(f"{name}: {report['edits'][name]:.3f}x")
    for row in report["growth"]:
        print(
            f"{row['tokens']} tokens: {row['seconds']:.3f} s, {row['operations'] / 1e9:.1f} billion operations, "
            f"{row['fraction of bound']:.0%} of the bound"
        )
    for name, row in report["projection"].items():
        print(
            f"Projection, not measured: {name} on a GPU of {GPU_RATE / 1e12:.0f} TFLOP/s, {row['seconds']:.0f} s; "
            f"with concatenation {row['with concatenation']:.0f} s"
        )
    print(f"Wrote {OUTPUT_DIR / 'benchmarks.json'} and {OUTPUT_DIR / 'benchmarks.png'}.")


if __name__ == "__main__":
    main()
