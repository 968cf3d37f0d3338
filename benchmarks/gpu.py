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
"""
The released sizes with random weights on one GPU, without a network: forwards, edits by stage, the VAE, memory.

`--small` runs all of it at sizes for a CPU, to see that it runs.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int8WeightOnlyConfig, PerRow, quantize_
from tqdm import tqdm
from transformers import AutoConfig, Qwen3VLModel, Qwen3VLProcessor

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.acceleration import Levers
from loomvideo_diffusers.memory import CallSize, Counted, MemoryPlan, Parts, plan_memory
from loomvideo_diffusers.nano import MODEL

from .baselines import concatenated_step, published_blocks, published_step
from .operations import count_operations
from .results import Result, Table, default_file, today, write_result


NUM_REPETITIONS = 3
# In gigabytes
CARDS = (8, 12, 16, 24, 40, 80)
NUM_STEPS = 50  # of an edit, to which fewer are extrapolated
FEW_STEPS = 4
PROMPT = "Make the street a rainy night with neon lights."


@dataclass(frozen=True)
class Sizes:
    """
    Attributes:
        transformer, vae, text, vision: changes to the configurations of the models.
        shapes: of a forward: latent frames, height and width in patches, prompt tokens, and number of references.
        edit: frames, height and width of a clip.
        matrix: side of the square matrices that are multiplied.
        most_pixels: of an image and of a video that the MLLM sees; None as nano has them.
    """

    transformer: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    vision: dict[str, Any]
    shapes: dict[str, tuple[int, int, int, int, int]]
    edit: tuple[int, int, int]
    matrix: int
    most_pixels: tuple[int, int] | None = None


VAE = {
    "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "attn_scales": [],
    "scale_factor_spatial": 16, "scale_factor_temporal": 4, "temperal_downsample": [False, True, True],
}  # fmt: skip

RELEASED = Sizes(
    transformer={
        "num_attention_heads": 24, "attention_head_dim": 128, "in_channels": 48, "out_channels": 48,
        "ffn_dim": 14336, "num_layers": 30, "mllm_dim": 4096,
    },
    vae=VAE | {
        "base_dim": 160, "decoder_base_dim": 256, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_dim": 48,
        "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
    },
    text={
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_theta": 5e6, "rope_type": "default",
        },
    },
    vision={
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
    },
    shapes={
        "480x832x97, L 512": (25, 15, 26, 512, 0),
        "480x832x97, L 1000, 2 references": (25, 15, 26, 1000, 2),
        "704x1280x121, L 512": (31, 22, 40, 512, 0),
    },
    edit=(97, 480, 832),
    matrix=8192,
    most_pixels=(16_777_216, 25_165_824),
)  # fmt: skip

SMALL = Sizes(
    transformer={
        "num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 8, "out_channels": 8,
        "ffn_dim": 256, "num_layers": 2, "mllm_dim": 192,
    },
    vae=VAE | {
        "base_dim": 8, "decoder_base_dim": 8, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, "z_dim": 8,
        "latents_mean": [0.0] * 8, "latents_std": [1.0] * 8,
    },
    text={"num_hidden_layers": 2},
    vision={},
    shapes={"small, L 16": (3, 2, 2, 16, 0), "small, L 16, 2 references": (3, 2, 2, 16, 2)},
    edit=(9, 64, 64),
    matrix=256,
)  # fmt: skip


class Bench:
    """
    Measures on a device.

    Args:
        sizes: of the models and of what they are given.
        device: a torch device.
        dtype: of the weights; by default bfloat16 on a GPU and float32 on a CPU.
    """

    def __init__(self, sizes: Sizes, device: str, dtype: torch.dtype | None = None):
        self.sizes = sizes
        self.device = device
        self.is_cuda = device.startswith("cuda")
        self.dtype = dtype or (torch.bfloat16 if self.is_cuda else torch.float32)

    def measure(self, call: Callable[[], Any], num_repetitions: int = NUM_REPETITIONS) -> dict[str, float]:
        """Calls once, and then some times: the median of the seconds, and the peak of the memory in GB."""
        call()
        self.synchronize()
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(num_repetitions):
            start = time.perf_counter()
            call()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return {"seconds": statistics.median(times), "gigabytes": self.peak()}

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.is_cuda else 0.0

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    @contextmanager
    def making(self) -> Iterator[None]:
        """Makes modules on the device, in its precision."""
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                yield
        finally:
            torch.set_default_dtype(torch.float32)

    def make_transformer(self) -> Any:
        with self.making():
            transformer = LoomVideoTransformer3DModel(**self.sizes.transformer)
        for name, parameter in transformer.named_parameters():
            if any(kept in name for kept in transformer._keep_in_fp32_modules or []):
                parameter.data = parameter.data.float()
        return transformer.eval().requires_grad_(False)

    def make_vae(self) -> AutoencoderKLWan:
        with self.making():
            return AutoencoderKLWan(**self.sizes.vae).eval().requires_grad_(False)

    def make_pipeline(self) -> LoomVideoEditPipeline:
        config = AutoConfig.from_pretrained(MODEL / "text_encoder")
        for part, changes in ((config.text_config, self.sizes.text), (config.vision_config, self.sizes.vision)):
            for name, value in changes.items():
                setattr(part, name, value)
        config.dtype = config.text_config.dtype = config.vision_config.dtype = self.dtype
        with self.making():
            text_encoder = Qwen3VLModel(config).eval().requires_grad_(False)
        processor = Qwen3VLProcessor.from_pretrained(MODEL / "processor")
        if self.sizes.most_pixels is not None:
            processor.image_processor.size |= {"longest_edge": self.sizes.most_pixels[0]}
            processor.video_processor.size |= {"longest_edge": self.sizes.most_pixels[1]}
        pipe = LoomVideoEditPipeline(
            text_encoder=text_encoder,
            processor=processor,
            vae=self.make_vae(),
            transformer=self.make_transformer(),
            scheduler=UniPCMultistepScheduler.from_pretrained(MODEL / "scheduler"),
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def make_parts(self) -> Parts:
        """What memory is counted of."""
        pipe = Bench(self.sizes, "meta", self.dtype).make_pipeline()
        return Parts(pipe.transformer, pipe.text_encoder, pipe.vae, pipe.processor)

    def make_inputs(self, shape: tuple[int, int, int, int, int]) -> dict[str, Any]:
        """Of a forward of one branch of an edit."""
        num_frames, height, width, num_prompt_tokens, num_references = shape
        channels, layers = self.sizes.transformer["in_channels"], self.sizes.transformer["num_layers"]
        latents = self.randn(1, channels, num_frames, 2 * height, 2 * width)
        return {
            "hidden_states": latents,
            "timestep": torch.tensor([500.0], device=self.device),
            "encoder_hidden_states": self.randn(1, layers, num_prompt_tokens, self.sizes.transformer["mllm_dim"]),
            "source_hidden_states": torch.randn_like(latents),
            "source_scale": torch.tensor([0.5], device=self.device),
            "reference_hidden_states": [
                self.randn(1, channels, 1, 2 * height, 2 * width) for _ in range(num_references)
            ],
        }

    def make_clip(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (*self.sizes.edit, 3), np.uint8)


def measure_limits(bench: Bench) -> list[dict[str, Any]]:
    """How fast the device multiplies matrices and copies."""
    side = bench.sizes.matrix
    one, other = bench.randn(side, side), bench.randn(side, side)
    seconds = bench.measure(lambda: one @ other, 10)["seconds"]
    copied = torch.empty_like(one)
    copying = bench.measure(lambda: copied.copy_(one), 10)["seconds"]
    return [
        {"what": f"matrix product of {side}", "seconds": seconds, "TFLOP a second": 2 * side**3 / seconds / 1e12},
        {"what": "copy", "seconds": copying, "TB a second": 2 * one.nbytes / copying / 1e12},
    ]


def measure_forwards(bench: Bench) -> list[dict[str, Any]]:
    """One branch of a step of an edit, in each way to compute it, of each shape."""
    rows: list[dict[str, Any]] = []
    transformer = bench.make_transformer()
    blocks = published_blocks(transformer)
    shared = set(bench.sizes.transformer) - {"mllm_dim"}
    with bench.making():
        wan = WanTransformer3DModel(
            **{name: bench.sizes.transformer[name] for name in shared},
            text_dim=bench.sizes.transformer["mllm_dim"],
            qk_norm="rms_norm_across_heads",
            cross_attn_norm=True,
        )
    for shape_name, shape in bench.sizes.shapes.items():
        inputs = bench.make_inputs(shape)
        kv_cache = transformer.create_kv_cache()
        ways: dict[str, Callable[[], Any]] = {
            "published code": partial(published_step, transformer, blocks, **inputs),
            "bare Wan": partial(
                wan, inputs["hidden_states"], inputs["timestep"].long(), inputs["encoder_hidden_states"][:, 0]
            ),
            "eager, no cache": partial(transformer, **inputs),
            "eager": partial(transformer, **inputs, kv_cache=kv_cache),
        }
        if not shape[-1]:
            without = {name: value for name, value in inputs.items() if name not in ("source_scale",)}
            del without["reference_hidden_states"]
            ways["source as tokens"] = partial(
                concatenated_step, transformer, **without, kv_cache=transformer.create_kv_cache()
            )
        rows += [{"shape": shape_name, "way": way} | bench.measure(call) for way, call in ways.items()]
    del wan, blocks
    transformer.compile_repeated_blocks(fullgraph=True)
    for shape_name, shape in bench.sizes.shapes.items():
        call = partial(transformer, **bench.make_inputs(shape), kv_cache=transformer.create_kv_cache())
        rows.append({"shape": shape_name, "way": "compiled"} | bench.measure(call))
    if bench.is_cuda:
        shape_name, shape = next(iter(bench.sizes.shapes.items()))
        quantize_(transformer.blocks, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
        call = partial(transformer, **bench.make_inputs(shape), kv_cache=transformer.create_kv_cache())
        rows.append({"shape": shape_name, "way": "float8, compiled"} | bench.measure(call))
    for row in rows:
        num_frames, height, width, num_prompt_tokens, num_references = bench.sizes.shapes[row["shape"]]
        config = bench.sizes.transformer | {"patch_size": (1, 2, 2)}
        num_tokens = (num_frames + num_references) * height * width
        row["TFLOP"] = count_operations(config, num_tokens, num_prompt_tokens, is_first=False) / 1e12
    return rows


def measure_edit(bench: Bench) -> list[dict[str, Any]]:
    """A whole edit of an array by stage, and how long 50 steps take."""
    pipe, clip = bench.make_pipeline().to(bench.device), bench.make_clip()
    stages = ("encode_branches", "prepare_clip_latents", "denoise", "decode_latents")
    seconds: dict[str, float] = {}
    for name in stages:
        setattr(pipe, name, _timed(bench, name, getattr(pipe, name), seconds))
    call = partial(pipe, PROMPT, video=clip, num_inference_steps=FEW_STEPS, output_type="pt")
    rows = []
    for way in ("eager", "compiled"):
        if way == "compiled":
            pipe.transformer.compile_repeated_blocks(fullgraph=True)
        total = bench.measure(call, 1)
        rest = total["seconds"] - seconds["denoise"]
        rows.append(
            {"way": way, **{name: seconds[name] for name in stages}, "steps": FEW_STEPS}
            | {"seconds of 50 steps": rest + seconds["denoise"] / FEW_STEPS * NUM_STEPS}
            | {"gigabytes": total["gigabytes"]}
        )
    return rows


def _timed(bench: Bench, name: str, method: Callable, seconds: dict[str, float]) -> Callable:
    def timed(*arguments: Any, **options: Any) -> Any:
        bench.synchronize()
        start = time.perf_counter()
        result = method(*arguments, **options)
        bench.synchronize()
        seconds[name] = time.perf_counter() - start
        return result

    return timed


def measure_vae(bench: Bench) -> list[dict[str, Any]]:
    """Encoding and decoding a clip in each way."""
    from loomvideo_diffusers.pipelines import loomvideo_vae as chunks
    from loomvideo_diffusers.pipelines.loomvideo_vae_layers import compile_norms, use_fast_layers

    vae, clip, device = bench.make_vae(), bench.make_clip(), torch.device(bench.device)
    pixel_values = chunks.to_pixel_values(list(clip)).to(device, bench.dtype)
    rows = []
    for layers in ("Diffusers' layers", "contiguous", "channels_last_3d", "compiled norms"):
        if layers == "contiguous":
            use_fast_layers(vae)
        elif layers == "compiled norms":
            compile_norms(vae)
        elif layers == "channels_last_3d":
            for layer in vae.modules():
                if isinstance(layer, torch.nn.Conv3d):
                    layer.to(memory_format=torch.channels_last_3d)
        latents = chunks.encode(vae, pixel_values)
        ways: dict[str, Callable[[], Any]] = {
            "vae.encode": partial(chunks.encode, vae, pixel_values),
            "vae.decode": partial(chunks.decode, vae, latents),
        }
        for size in (1, 4):
            ways[f"encode in chunks of {size}"] = partial(chunks.encode_in_chunks, vae, list(clip), device, size)
            ways[f"decode in chunks of {size}"] = partial(
                _exhaust, partial(chunks.decode_in_chunks, vae, latents, size)
            )
        rows += [{"way": way, "layers": layers} | bench.measure(call, 1) for way, call in ways.items()]
    return rows


def _exhaust(make: Callable[[], Iterator[torch.Tensor]]) -> None:
    for _ in make():
        pass


def measure_memory(bench: Bench) -> list[dict[str, Any]]:
    """Edits of few steps, extrapolated, as `--memory` fits them to cards, and what it counted."""
    parts, clip = bench.make_parts(), bench.make_clip()
    size = CallSize(bench.sizes.edit[1], bench.sizes.edit[2], bench.sizes.edit[0], prompt=PROMPT)
    ways: dict[str, tuple[MemoryPlan, bool]] = {}
    for is_quantized in (False, True):
        counted = Counted(parts, size, Levers(quantize="int8") if is_quantized else Levers())
        for offload in (None, "model"):
            name = f"{'int8, ' * is_quantized}{'resident' if offload is None else '--offload model'}"
            ways[name] = (MemoryPlan(offload, 1, counted.stages(offload, 1)), is_quantized)
    counted = Counted(parts, size, Levers())
    for gigabytes in CARDS if bench.is_cuda else CARDS[:1]:
        ways[f"--memory {gigabytes}"] = (plan_memory(counted, gigabytes), False)
    rows: list[dict[str, Any]] = []
    measured: dict[tuple[str | None, int, bool], dict[str, Any]] = {}
    for way, (plan, is_quantized) in ways.items():
        key = (plan.offload, plan.chunk_size, is_quantized)
        if key not in measured:
            measured[key] = _measure_plan(bench, plan, is_quantized, clip)
        row = {"way": way, "offload": str(plan.offload), "at once": plan.chunk_size}
        rows.append(row | measured[key] | {"counted": plan.peak / 1e9})
    return rows


def _measure_plan(bench: Bench, plan: MemoryPlan, is_quantized: bool, clip: np.ndarray) -> dict[str, Any]:
    """A step, and 50 of them with all that is around them."""
    pipe = bench.make_pipeline()
    if is_quantized:
        quantize_(pipe.transformer.blocks, Int8WeightOnlyConfig())
        quantize_(pipe.text_encoder.language_model.layers, Int8WeightOnlyConfig())
    pipe.to("cpu")
    Levers(offload=plan.offload).apply(pipe, bench.device)
    pipe.vae_chunk_size = plan.chunk_size
    seconds = {}
    for num_steps in (1, FEW_STEPS):
        result = bench.measure(partial(_edit_in_chunks, pipe, clip, num_steps), 1)
        seconds[num_steps] = result["seconds"]
    a_step = (seconds[FEW_STEPS] - seconds[1]) / (FEW_STEPS - 1)
    del pipe
    free()
    return {"seconds of 50 steps": seconds[1] + (NUM_STEPS - 1) * a_step, "a step": a_step} | {
        "gigabytes": result["gigabytes"]
    }


def _edit_in_chunks(pipe: LoomVideoEditPipeline, clip: np.ndarray, num_steps: int) -> None:
    latents = pipe(PROMPT, video=clip, num_inference_steps=num_steps, output_type="latent").frames
    _exhaust(partial(pipe.decode_in_chunks, latents))


def free() -> None:
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


SECTIONS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "limits": measure_limits,
    "forwards": measure_forwards,
    "vae": measure_vae,
    "edit": measure_edit,
    "memory": measure_memory,
}


def describe_device(device: str) -> str:
    import diffusers
    import transformers

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return (
        f"{name}, PyTorch {torch.__version__}, Diffusers {diffusers.__version__}, "
        f"Transformers {transformers.__version__}"
    )


def to_table(section: str, rows: list[dict[str, Any]]) -> Table:
    header = list(dict.fromkeys(name for row in rows for name in row))
    cells = [
        [f"{value:.3f}" if isinstance(value, float) else f"{value}" for value in map(row.get, header)] for row in rows
    ]
    return Table(header, [[cell.replace("None", "") for cell in row] for row in cells], f"{section.capitalize()}:")


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections, by default all")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="where the result is written (default: among the results)")
    options = parser.parse_args(arguments)
    file = options.json or default_file("small" if options.small else "gpu")
    torch.manual_seed(0)
    bench, measured = Bench(SMALL if options.small else RELEASED, options.device), {}
    for section in tqdm(options.only, desc="Sections"):
        start = time.perf_counter()
        try:
            measured[section] = SECTIONS[section](bench)
        except torch.OutOfMemoryError as error:
            measured[section] = [{"way": f"out of memory: {str(error).splitlines()[0]}"}]
        free()
        tqdm.write(f"{section}: {time.perf_counter() - start:.0f} s\n{json.dumps(measured[section], indent=1)}")
        result = Result(
            "The released sizes on one GPU" if not options.small else "Small sizes",
            "by `python -m benchmarks.gpu`",
            today(),
            describe_device(options.device),
            ["Random weights. A forward is of one branch. A step of an edit has three, and 50 are extrapolated."],
            [to_table(name, rows) for name, rows in measured.items()],
            measured,
        )
        # After each section, so that what ends the run leaves the others theirs
        write_result(result, file)
    print(f"Wrote {file}.")


if __name__ == "__main__":
    main()
