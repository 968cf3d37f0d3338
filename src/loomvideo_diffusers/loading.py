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
"""Loads a pipeline as the command line does: model, LoRAs, device, precision and a bound on the memory."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import nano
from .acceleration import NO_LEVERS, OFFLOADS, Levers
from .defaults import read_default_options
from .errors import LoomVideoError, is_out_of_memory
from .parallel import is_leader
from .progress import message, progress_bar, stage


# torch, diffusers and transformers take seconds to import.
if TYPE_CHECKING:
    import torch

    from .memory import CallSize
    from .models.tiny_decoder import LoomVideoTinyDecoder
    from .parallel import Processes
    from .pipelines import LoomVideoEditPipeline, LoomVideoPipeline

Pipeline = TypeVar("Pipeline", "LoomVideoPipeline", "LoomVideoEditPipeline")

DTYPES = ("bfloat16", "float16", "float32")

# Bytes that a bound on a CPU's memory must leave beyond what the libraries take: with less, Python itself fails in
# places that cannot say why.
SMALLEST_MEMORY = 200_000_000


def load_pipeline(
    pipeline_class: type[Pipeline],
    model: str = "nano",
    *,
    loras: Sequence[str] = (),
    lora_partial: bool = False,
    device: str | None = None,
    dtype: "torch.dtype | str | None" = None,
    max_memory: float | None = None,
    vae_decoder: str | None = None,
    memory: float | None = None,
    size: "CallSize | None" = None,
    processes: "Processes | None" = None,
    levers: Levers = NO_LEVERS,
) -> Pipeline:
    """
    Loads a pipeline, with one progress bar at a time.

    Args:
        pipeline_class: `LoomVideoPipeline` or `LoomVideoEditPipeline`.
        model: a model folder, a repository (OWNER/NAME), or `nano`.
        loras: files, folders or repositories of LoRAs. They are checked before the model is loaded.
        lora_partial: leave out the part of a LoRA that fits no layer instead of refusing it.
        device: by default the first that is there of cuda, mps and cpu.
        dtype: of the weights, or its name; by default float32 on a CPU, and bfloat16 elsewhere.
        max_memory: let what would take more gigabytes of the device's memory fail. On a CPU the bound is on the whole
            process, for as long as it runs, and works on Linux alone.
        vae_decoder: a tiny decoder in place of the VAE's own, see `load_vae_decoder`.
        memory: choose `levers.offload`, and how much the VAE does at once, so that calls are as fast as they can be
            in so many gigabytes of the device's memory. What is chosen is printed.
        size: of the calls that are to fit; by default what the model makes by default, or 121 frames of 480 x 832.
        processes: those that share its calls.
        levers: what makes it faster or smaller, such as `Levers(compile=True)`.

    Raises:
        LoomVideoError, LoomVideoInputError: if the model or a LoRA cannot be loaded, the device is not there or cannot
            do what is asked for, or its memory cannot be bounded.
        OSError: if a repository cannot be read.
    """
    import torch

    model = find_model(model)
    device = check_device(device or default_device())
    if max_memory is not None:
        bound_memory(device, max_memory)
    check_loras(model, loras, lora_partial)
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    tiny_decoder, chunk_size = None, None
    if vae_decoder is not None:
        from diffusers import AutoencoderKLWan

        tiny_decoder = load_vae_decoder(vae_decoder, AutoencoderKLWan.load_config(model, subfolder="vae")).to(dtype)
    if memory is not None:
        from .memory import CallSize, Counted, load_parts, plan_memory

        if levers.offload is not None:
            raise LoomVideoError("--memory chooses what to offload: leave out --offload, or --memory.")
        if size is None:
            names, options = ("height", "width", "num_frames", "window_frames"), read_default_options(model)
            size = CallSize(**{name: options[name] for name in names if name in options})
        offloads = () if device == "cpu" else OFFLOADS
        plan = plan_memory(Counted(load_parts(model, dtype, tiny_decoder), size, levers), memory, offloads)
        if is_leader():
            message(f"loomvideo: {plan.describe()}")
        levers, chunk_size = replace(levers, offload=plan.offload), plan.chunk_size
    pipe = _load_model(pipeline_class, model, dtype=dtype, **levers.loading_options(device, dtype))
    pipe.vae_chunk_size = chunk_size
    pipe.vae_decoder = tiny_decoder
    pipe.progress_bar = partial(progress_bar, desc="Denoising")
    for lora in loras:
        pipe.load_lora_weights(lora, allow_partial=lora_partial)
    if len(loras) > 1:
        pipe.set_adapters([name for names in pipe.get_list_adapters().values() for name in names])
    if processes is not None:
        processes.divide(pipe)
    try:
        levers.apply(pipe, device)
    except NotImplementedError as error:  # what PyTorch raises for a layer that was given no weights
        raise LoomVideoError(f"{model} lacks the weights of some layers: convert or download it again.") from error
    return pipe


def find_model(model: str) -> str:
    """
    Returns the folder or repository that `model` names, which can be `nano`.

    Raises:
        LoomVideoError: if it is neither.
    """
    if model == "nano":
        model = str(nano.MODEL)
    folder = Path(model)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise LoomVideoError(f"{model} has no model_index.json: make a model folder with `loomvideo convert`.")
    if not folder.exists() and (len(folder.parts) != 2 or folder.is_absolute()):
        raise LoomVideoError(f"{model} is neither a folder here nor the name of a repository (OWNER/NAME).")
    return model


def default_device() -> str:
    """The first that is there of cuda, of several the one of this process, mps and cpu."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> str:
    """Returns `device`, or raises a LoomVideoError if this machine has none of that name."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoomVideoError(f"{device} is no device of this machine: choose cpu, or leave --device out.") from error
    return device


def bound_memory(device: str, gigabytes: float) -> None:
    """Lets what would take more of a device's memory fail; on a CPU, of this process's memory, files apart."""
    import torch

    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total), device)
    elif device == "cpu" and sys.platform == "linux":
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii")
        taken = int(re.findall(r"VmData:\s+(\d+)", status)[0]) * 1024
        most, least = int(gigabytes * 1e9), taken + SMALLEST_MEMORY
        if most < least:
            raise LoomVideoError(
                f"--max-memory must be {least / 1e9:.1f} or more: the libraries take {taken / 1e9:.1f} GB."
            )
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    else:
        raise LoomVideoError(f"--max-memory works on cuda, and on cpu in Linux, not on {device}: leave it out.")


def check_loras(model: str, loras: Sequence[str], allow_partial: bool = False) -> None:
    """Refuses LoRAs that do not fit before the model is loaded, and prints what is left out of those that do."""
    if not loras:
        return
    import torch

    from . import LoomVideoPipeline, LoomVideoTransformer3DModel

    config = LoomVideoTransformer3DModel.load_config(model, subfolder="transformer")
    with torch.device("meta"):
        transformer = LoomVideoTransformer3DModel.from_config(config)
    for lora in loras:
        left_out = LoomVideoPipeline.check_lora_weights(lora, transformer, allow_partial=allow_partial)
        if left_out:
            message(f"loomvideo: {left_out}")


def load_vae_decoder(source: str, vae_config: Mapping[str, Any]) -> "LoomVideoTinyDecoder":
    """
    Loads a tiny decoder, to be set as `pipe.vae_decoder`.

    Args:
        source: a file, folder or repository of weights of the TAEHV family, such as `taew2_2.safetensors`;
            OWNER/NAME/FILE names one of several in a repository. `nano` is that of the nano in the package.
        vae_config: configuration of the VAE whose latents it is to decode.

    Raises:
        LoomVideoError: if it cannot be read, is no such decoder, or is one of other latents.
    """
    from .models.tiny_decoder import LoomVideoTinyDecoder
    from .pipelines.loomvideo_lora_files import find_file, read_tensors

    try:
        path, _, is_pickled = find_file(str(nano.TINY_DECODER) if source == "nano" else source, {})
        tensors, _ = read_tensors(path, is_pickled)
        factors = (vae_config["scale_factor_spatial"], vae_config["scale_factor_temporal"])
        tiny_decoder = LoomVideoTinyDecoder.from_tensors(tensors, *factors)
        if tiny_decoder.latent_channels != vae_config["z_dim"]:
            raise LoomVideoError(
                f"it decodes latents of {tiny_decoder.latent_channels} channels, but the model's have "
                f"{vae_config['z_dim']}."
            )
    except ValueError as error:
        raise LoomVideoError(f"{source} cannot be used as a decoder: {str(error).removesuffix('.')}.") from error
    return tiny_decoder


def _load_model(pipeline_class: type[Pipeline], model: str, **options: Any) -> Pipeline:
    from safetensors import SafetensorError

    try:
        # While a repository is downloaded, the Hub's own bars show how far that is.
        with stage("Loading the model") if os.path.isdir(model) else nullcontext():
            return pipeline_class.from_pretrained(model, **options)
    except (SafetensorError, ValueError, RuntimeError) as error:
        # What files can cause that are damaged, or are not those of this model
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()).removesuffix(".")
        raise LoomVideoError(f"{model} cannot be loaded: {reason}.") from error
