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

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import gguf
import numpy as np
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    GGUFQuantizationConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    TorchAoConfig,
)
from diffusers.quantizers import PipelineQuantizationConfig
from torchao.quantization import Int8WeightOnlyConfig
from tqdm import tqdm

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.acceleration import Levers
from loomvideo_diffusers.calibration import measure_ratios
from loomvideo_diffusers.nano import MODEL, OPTIONS
from loomvideo_diffusers.nano.tasks import sample_held_out
from loomvideo_diffusers.nano.world import render
from loomvideo_diffusers.pipelines.loomvideo_vae_layers import FAST_LAYERS

from .results import Result, Table, default_file, describe_machine, today, write_result


NUM_REPETITIONS = 3


def _nothing(pipe: LoomVideoEditPipeline) -> None:
    pass


@dataclass
class Lever:
    """
    Attributes:
        prepare: what is done with a pipeline.
        options: of its calls.
        loading: arguments of `from_pretrained`.
    """

    prepare: Callable[[LoomVideoEditPipeline], Any] = _nothing
    options: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)


def _enable_mag_cache(pipe: LoomVideoEditPipeline) -> None:
    """With the ratios of the model, which a call of its own finds."""
    ratios = measure_ratios(pipe, lambda: edit(pipe))
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=len(ratios), mag_ratios=ratios))


def _use_layers_of_diffusers(pipe: LoomVideoEditPipeline) -> None:
    slow = {fast: layer for layer, fast in FAST_LAYERS.items()}
    for layer in pipe.vae.modules():
        layer.__class__ = slow.get(type(layer), type(layer))


def _apply(**levers: Any) -> Callable[[LoomVideoEditPipeline], None]:
    return lambda pipe: Levers(**levers).apply(pipe, "cpu")


def _skip_attention(pipe: LoomVideoEditPipeline) -> dict[str, Any]:
    return {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (100, 800),
        "current_timestep_callback": lambda: pipe.current_timestep,
    }


def _offload_layers(pipe: LoomVideoEditPipeline) -> None:
    """What `enable_sequential_cpu_offload` does where there is an accelerator."""
    for model in (pipe.text_encoder, pipe.transformer, pipe.vae):
        accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=True)


def _offload_to_disk(pipe: LoomVideoEditPipeline) -> None:
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=tempfile.mkdtemp(),
    )


def write_gguf(file: Path) -> None:
    """Writes the transformer as a GGUF file, with all weights that are matrices in 8 bits."""
    transformer = LoomVideoTransformer3DModel.from_pretrained(MODEL, subfolder="transformer")
    writer = gguf.GGUFWriter(file, "loomvideo")
    for name, tensor in transformer.state_dict().items():
        array, quantization = tensor.numpy(), gguf.GGMLQuantizationType.Q8_0
        if tensor.ndim == 2 and "time_embedder" not in name:
            writer.add_tensor(name, gguf.quants.quantize(array, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _load_gguf(pipe: LoomVideoEditPipeline) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "loomvideo-nano-Q8_0.gguf")
        write_gguf(file)
        pipe.transformer = LoomVideoTransformer3DModel.from_single_file(
            file,
            config=MODEL,
            subfolder="transformer",
            quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        )


INT8 = PipelineQuantizationConfig(quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())})
FLOAT8 = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}

LEVERS = {
    # Its backend is set for good: without, it would follow what a lever sets for all models.
    "plain": Lever(lambda pipe: pipe.transformer.set_attention_backend("native")),
    "`use_kv_cache=False`": Lever(options={"use_kv_cache": False}),
    "`guidance_interval=(0.1, 0.8)`": Lever(options={"guidance_interval": (0.1, 0.8)}),
    "`guidance_scale_visual=1`": Lever(options={"guidance_scale_visual": 1.0}),
    "half of the steps": Lever(options={"num_inference_steps": OPTIONS["num_inference_steps"] // 2}),
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
    "8-bit weights of a GGUF file": Lever(_load_gguf),
    "`--offload model`": Lever(_apply(offload="model")),
    "sequential offload": Lever(_offload_layers),
    "`--offload blocks`": Lever(_apply(offload="blocks")),
    "`--offload blocks:mllm`": Lever(_apply(offload="blocks:mllm")),
    "group offload to disk": Lever(_offload_to_disk),
    "VAE slicing": Lever(lambda pipe: pipe.vae.enable_slicing()),
    "VAE tiling": Lever(lambda pipe: pipe.vae.enable_tiling(64, 64, 48, 48)),
    "`decode_in_chunks`": Lever(options={"output_type": "latent"}),
    "`decode_in_chunks(chunk_size=4)`": Lever(
        lambda pipe: setattr(pipe, "vae_chunk_size", 4), {"output_type": "latent"}
    ),
    "Diffusers' layers in the VAE": Lever(_use_layers_of_diffusers),
    "`--scheduler euler`": Lever(_apply(scheduler="euler")),
    "`--scheduler heun`, half of the steps": Lever(
        _apply(scheduler="heun"), {"num_inference_steps": OPTIONS["num_inference_steps"] // 2}
    ),
    "`--scheduler dpm++`": Lever(_apply(scheduler="dpm++")),
}


def main(file: Path) -> None:
    rows = {}
    for name in tqdm(LEVERS, desc="Levers"):
        command = [sys.executable, "-m", "benchmarks.levers", name]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        # One that does not work here leaves the others their rows.
        rows[name] = json.loads(process.stdout.splitlines()[-1]) if process.returncode == 0 else None
        if rows[name] is None:
            tqdm.write(f"{name} failed: {process.stderr[-2000:]}", file=sys.stderr)
    failed = [name for name, row in rows.items() if row is None]
    result = Result(
        "What each lever does to an edit by LoomVideo-nano",
        "by `python -m benchmarks.levers`",
        today(),
        describe_machine(),
        [f"These levers failed: {', '.join(failed)}."] * bool(failed),
        [make_table(rows)],
        rows,
    )
    write_result(result, file)
    print(f"{result.to_markdown()}\n\nWrote {file}.")
    if failed:
        sys.exit(f"These levers failed: {', '.join(failed)}.")


def make_table(rows: dict[str, dict[str, float] | None]) -> Table:
    """A row for each lever that works here."""
    return Table(
        ["one change at a time", "time of a call", "memory", "difference of a pixel, of 255"],
        [
            [
                name,
                f"{row['seconds']:.1f} s" if name == "plain" else f"{row['ratio']:.2f}x",
                f"{row['megabytes']:.0f} MB",
                f"{row['difference']:.2f}",
            ]
            for name, row in rows.items()
            if row is not None
        ],
    )


def load(lever: Lever) -> LoomVideoEditPipeline:
    pipe = LoomVideoEditPipeline.from_pretrained(MODEL, **{"dtype": torch.float32} | lever.loading)
    pipe.set_progress_bar_config(disable=True)
    lever.prepare(pipe)
    return pipe


def edit(pipe: LoomVideoEditPipeline, **options: Any) -> np.ndarray:
    """Edits an example; returns its frames, `[F, H, W, 3]` in [0, 1]."""
    example = sample_held_out("recolor", np.random.default_rng(0))
    assert example.source is not None  # as of all edits
    inputs = {"video": render(example.source, example.num_frames), "generator": torch.Generator().manual_seed(0)}
    inputs |= OPTIONS | {"guidance_scale_visual": 1.5}  # three branches, as the released model is called
    frames = pipe(example.prompt, **inputs | options).frames
    if options.get("output_type") == "latent":
        with torch.no_grad():
            frames = torch.cat(list(pipe.decode_in_chunks(frames)), dim=2)
        frames = pipe.video_processor.postprocess_video(frames, output_type="np")
    return frames[0]


def measure(lever: Lever) -> dict[str, float]:
    """
    Calls a pipeline, and then in turn with the plain one.

    Returns:
        The peak of the memory of loading and one call beyond what the libraries take, the median of the seconds of a
        call, that of how many times the plain one's they are, and the mean difference of a pixel, of 255.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe = load(lever)
    frames = edit(pipe, **lever.options)
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    edits = {"plain": partial(edit, load(LEVERS["plain"])), "lever": partial(edit, pipe, **lever.options)}
    difference = np.abs(frames - edits["plain"]()).mean() * 255
    times = {name: [] for name in edits}
    for _ in range(NUM_REPETITIONS):
        for name, of_pipe in edits.items():
            start = time.perf_counter()
            of_pipe()
            times[name].append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(times["lever"]),
        "ratio": statistics.median([one / plain for one, plain in zip(times["lever"], times["plain"])]),
        "megabytes": megabytes,
        "difference": float(difference),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.levers", description=__doc__)
    parser.add_argument(
        "lever",
        nargs="?",
        choices=LEVERS,
        metavar="LEVER",
        help="the one to measure and print as json; by default all",
    )
    parser.add_argument("--json", type=Path, default=default_file("levers"), help="where the result of all is written")
    arguments = parser.parse_args()
    if arguments.lever is None:
        main(arguments.json)
    else:
        print(json.dumps(measure(LEVERS[arguments.lever])))
