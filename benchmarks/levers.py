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
"""What each lever of Diffusers and the pipelines does to an edit of LoomVideo-nano: `python -m benchmarks.levers`."""

import contextlib
import io
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    TorchAoConfig,
)
from diffusers.quantizers import PipelineQuantizationConfig
from torchao.quantization import Int8WeightOnlyConfig
from tqdm import tqdm

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.nano import GUIDANCE_SCALE, MODEL, NUM_INFERENCE_STEPS
from loomvideo_diffusers.nano.evaluation import call
from loomvideo_diffusers.nano.tasks import Example, sample_held_out


OUTPUT_FILE = Path("outputs/benchmarks/levers.json")
NUM_REPETITIONS = 3


def _nothing(pipe: LoomVideoPipeline) -> None:
    pass


@dataclass
class Lever:
    """
    Attributes:
        prepare: what is done with a pipeline.
        options: of its calls.
        loading: arguments of `from_pretrained`.
    """

    prepare: Callable[[LoomVideoPipeline], Any] = _nothing
    options: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)


def _enable_mag_cache(pipe: LoomVideoPipeline) -> None:
    """With the ratios of the model, which a call of its own finds and prints."""
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=NUM_INFERENCE_STEPS, calibrate=True))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        edit(pipe)
    pipe.transformer.disable_cache()
    ratios = [json.loads(found) for found in re.findall(r"\[[^\]]+\]", printed.getvalue())]
    config = MagCacheConfig(num_inference_steps=NUM_INFERENCE_STEPS, mag_ratios=torch.tensor(ratios).mean(0))
    pipe.transformer.enable_cache(config)


def _skip_attention(pipe: LoomVideoPipeline) -> dict[str, Any]:
    return {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (100, 800),
        "current_timestep_callback": lambda: pipe.current_timestep,
    }


def _offload_to_disk(pipe: LoomVideoPipeline) -> None:
    folder = tempfile.mkdtemp()
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=folder,
    )


INT8 = PipelineQuantizationConfig(quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())})
FLOAT8 = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}

LEVERS = {
    # Which would otherwise follow what another pipeline sets
    "plain": Lever(lambda pipe: pipe.transformer.set_attention_backend("native")),
    "`use_kv_cache=False`": Lever(options={"use_kv_cache": False}),
    "`guidance_interval=(0.1, 0.8)`": Lever(options={"guidance_interval": (0.1, 0.8)}),
    "`guidance_scale_visual=1`": Lever(options={"guidance_scale_visual": 1.0}),
    "half of the steps": Lever(options={"num_inference_steps": NUM_INFERENCE_STEPS // 2}),
    "First Block Cache": Lever(lambda pipe: pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))),
    "TaylorSeer": Lever(
        lambda pipe: pipe.transformer.enable_cache(
            TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=4, max_order=1)
        )
    ),
    "MagCache": Lever(_enable_mag_cache),
    "Pyramid Attention Broadcast": Lever(
        lambda pipe: pipe.transformer.enable_cache(PyramidAttentionBroadcastConfig(**_skip_attention(pipe)))
    ),
    "FasterCache": Lever(lambda pipe: pipe.transformer.enable_cache(FasterCacheConfig(**_skip_attention(pipe)))),
    "`compile_repeated_blocks`": Lever(lambda pipe: pipe.transformer.compile_repeated_blocks(fullgraph=True)),
    "`torch.compile`": Lever(lambda pipe: pipe.transformer.compile(fullgraph=True)),
    '`set_attention_backend("_native_math")`': Lever(
        lambda pipe: pipe.transformer.set_attention_backend("_native_math")
    ),
    "`fuse_qkv_projections`": Lever(lambda pipe: pipe.transformer.fuse_qkv_projections()),
    "bfloat16": Lever(loading={"dtype": torch.bfloat16}),
    "layerwise casting to float8": Lever(lambda pipe: pipe.transformer.enable_layerwise_casting(**FLOAT8)),
    "int8 weights by torchao": Lever(loading={"quantization_config": INT8}),
    "group offload to disk": Lever(_offload_to_disk),
    "VAE slicing": Lever(lambda pipe: pipe.vae.enable_slicing()),
    "VAE tiling": Lever(lambda pipe: pipe.vae.enable_tiling(64, 64, 48, 48)),
}


def main() -> None:
    rows = {}
    for name in tqdm(LEVERS):
        command = [sys.executable, "-m", "benchmarks.levers", name]
        rows[name] = {}
        for what in ("time", "memory"):
            result = subprocess.run([*command, what], capture_output=True, text=True, check=False)
            if result.returncode:
                raise RuntimeError(f"{name} failed: {result.stderr[-2000:]}")
            rows[name] |= json.loads(result.stdout.splitlines()[-1])
    OUTPUT_FILE.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT_FILE.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print("| | time | memory | difference |")
    print("| --- | --- | --- | --- |")
    plain = rows["plain"]
    for name, row in rows.items():
        memory = f"{row['megabytes']:.0f} MB"
        time_ = f"{plain['seconds']:.1f} s" if name == "plain" else f"{row['ratio']:.2f}x"
        difference = "" if name == "plain" else f"{row['difference']:.2f}"
        print(f"| {name} | {time_} | {memory} | {difference} |")
    print(f"Wrote {OUTPUT_FILE}.")


def load(lever: Lever) -> LoomVideoPipeline:
    pipe = LoomVideoPipeline.from_pretrained(MODEL, **{"dtype": torch.float32} | lever.loading)
    lever.prepare(pipe)
    return pipe


def example() -> Example:
    return sample_held_out("recolor", np.random.default_rng(0))


def edit(pipe: LoomVideoPipeline, **options: Any) -> np.ndarray:
    """Edits an example; returns its frames in [0, 1]."""
    inputs = {"num_inference_steps": NUM_INFERENCE_STEPS, "guidance_scale": GUIDANCE_SCALE}
    return call(pipe, (example(),), generator=torch.Generator().manual_seed(0), **inputs | options)[0]


def measure_time(lever: Lever) -> dict[str, float]:
    """Whole calls in turn with those of the plain pipeline, after one of each; pixels differ by so many of 255."""
    pipes = ((load(LEVERS["plain"]), {}), (load(lever), lever.options))
    frames = [edit(pipe, **options) for pipe, options in pipes]
    times = [[], []]
    for _ in range(NUM_REPETITIONS):
        for (pipe, options), of_pipe in zip(pipes, times):
            start = time.perf_counter()
            edit(pipe, **options)
            of_pipe.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(times[1]),
        "ratio": statistics.median([one / plain for plain, one in zip(*times)]),
        "difference": float(np.abs(frames[1] - frames[0]).mean() * 255),
    }


def measure_memory(lever: Lever) -> dict[str, float]:
    """The peak of a process that loads the pipeline and calls it once, beyond what the libraries take."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    edit(load(lever), **lever.options)
    return {"megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        measure = {"time": measure_time, "memory": measure_memory}[sys.argv[2]]
        print(json.dumps(measure(LEVERS[sys.argv[1]])))
