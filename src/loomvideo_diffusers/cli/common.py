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
"""What several commands share: options, the settings that they and the model give, and what is printed."""

import argparse
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..acceleration import CACHES, OFFLOADS, SCHEDULERS, Levers
from ..defaults import complete_settings
from ..descriptions import OPTIONS_OF_SETTINGS, describe_result
from ..loading import DTYPES, check_device, default_device, find_model
from ..parallel import KINDS, Division, Processes, check_processes, is_leader


if TYPE_CHECKING:
    from ..footage import EditPlan, GenerationPlan
    from ..footage.watching import Watch

Plan = TypeVar("Plan", "EditPlan", "GenerationPlan")


def seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError("the seed must be from 0 to 2^63 - 1")
    return int(text)


def finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"it must be a number, but is {text}")
    return number


def rate(text: str) -> float:
    number = finite(text)
    if not 1 / 3600 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"it must be from 1/3600 to 1000, but is {text}")
    return number


def positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 10**6:
        raise argparse.ArgumentTypeError(f"it must be a whole number from 1, but is {text}")
    return int(text)


def gigabytes(text: str) -> float:
    number = finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"it must be more than 0 GB, but is {text}")
    return number


def add_command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=summary, description=summary)


def add_sampling_options(command: argparse.ArgumentParser, output: str, frames: str) -> None:
    """Adds the options of `generate` and `edit`; the help texts of two differ."""
    option = command.add_argument
    option("-o", "--output", type=Path, metavar="FILE", help=output)
    option(
        "--model",
        default="nano",
        metavar="nano|PATH|REPO",
        help="model folder or repository (default: nano, a small model of coloured shapes in the package)",
    )
    option("--lora", nargs="+", default=[], metavar="PATH|REPO", help="LoRA file, folder or repository")
    option("--lora-partial", action="store_true", help="skip the layers of a LoRA that the model does not have")
    option("--lora-scale", type=finite, metavar="S", help="weight of the LoRAs (default: 1)")
    option("--reference", nargs="+", type=Path, default=[], metavar="IMAGE", help="@Image 1, ... of the prompt")
    option("--negative-prompt", metavar="TEXT", help="what to avoid (default: the published negative prompt)")
    option("--frames", type=int, metavar="N", help=frames)
    option("--height", type=int, metavar="PIXELS", help="height that the model works at, a multiple of 32")
    option("--width", type=int, metavar="PIXELS", help="width that the model works at, a multiple of 32")
    option("--window", type=int, metavar="N", help="frames to denoise at once, 4k + 1; bounds memory (default: 121)")
    option("--overlap", type=int, metavar="N", help="frames that windows share, 4k (default: a quarter of a window)")
    option("--steps", type=int, metavar="N", help="denoising steps (default: the model's own, or 50)")
    option("--sigmas", nargs="+", type=finite, metavar="S", help="noise levels from 1 down, in place of --steps")
    option(
        "--guidance-scale",
        type=finite,
        metavar="S",
        help="weight of the prompt (default: the model's own, or 5 to generate and 2.5 to edit)",
    )
    option(
        "--guidance-scale-visual",
        type=finite,
        metavar="S",
        help="weight of the source and the references (default: the model's own, or 1.5)",
    )
    option("--seed", type=seed, metavar="N", help="seed of the noise (default: random)")
    option("--watch", type=Path, metavar="FILE", help="video or image of what it is becoming, anew every 4 steps")
    add_machine_options(command)
    option(
        "--parallel",
        nargs="+",
        metavar="KIND=N",
        help=f"share one run over the processes that torchrun started: {', '.join(f'{kind}=N' for kind in KINDS)}",
    )


def add_machine_options(command: argparse.ArgumentParser) -> None:
    """Adds the options that say on what, how fast and in how much memory a pipeline runs."""
    option = command.add_argument_group("speed and memory").add_argument
    option("--device", metavar="DEVICE", help="default: the first available of cuda, mps and cpu")
    option("--dtype", choices=DTYPES, help="default: bfloat16, or float32 on cpu")
    option("--compile", action="store_true", help="compile the transformer: a slow first step, and faster others")
    option(
        "--quantize",
        nargs="+",
        default=[],
        metavar="KIND[:PART]",
        help="float8, int8 or nf4 weights, of both large models or as in float8:transformer nf4:mllm",
    )
    option("--attention", metavar="BACKEND", help="attention of Diffusers: native, flash, sage, xformers, ...")
    option(
        "--cache",
        metavar="KIND",
        help=f"{', '.join(CACHES)}: skip what hardly changes from step to step, an approximation",
    )
    option(
        "--memory",
        type=gigabytes,
        metavar="GB",
        help="choose what to offload, and how much the VAE does at once, to fit a card of so much",
    )
    option(
        "--offload",
        choices=OFFLOADS,
        help="keep on the device only the model, or the blocks, that are running; or do so with the MLLM's blocks",
    )
    option("--cpu-offload", dest="offload", action="store_const", const="model", help=argparse.SUPPRESS)
    option("--scheduler", choices=SCHEDULERS, help="default: the model's own, unipc")
    option(
        "--vae-decoder",
        metavar="nano|PATH|REPO",
        help="decode by a tiny decoder (TAEHV) in a fraction of the time and memory, an approximation",
    )
    option(
        "--max-memory",
        type=gigabytes,
        metavar="GB",
        help="stop instead of using more of the device's memory than this",
    )


def plan_together(arguments: argparse.Namespace, make_plan: "Callable[[], Plan]") -> "tuple[Plan, Processes | None]":
    """
    Makes a plan; with `--parallel` the leader makes it, and all processes have it.

    Returns:
        The plan and the processes.

    Raises:
        LoomVideoError: if the plan cannot be made, or there are not as many processes as `--parallel` asks for.
    """
    if arguments.parallel is None:
        return make_plan(), None
    division, device = Division.parse(arguments.parallel), check_device(arguments.device or default_device())
    check_processes(division, device)
    plan = make_plan() if is_leader() else None
    processes = Processes(division, device)
    return processes.share(plan), processes


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    The settings that the command line gives, or else the model: see `complete_settings`.

    Raises:
        LoomVideoError: if there is no such model, or it cannot work at the given size.
    """
    given = {name: getattr(arguments, option, None) for option, name in OPTIONS_OF_SETTINGS.items()}
    return complete_settings(find_model(arguments.model), given)


def loading_options(arguments: argparse.Namespace, plan: "EditPlan | GenerationPlan | None" = None) -> dict[str, Any]:
    """The arguments of `load_pipeline`, to run a plan, or else any."""
    options: dict[str, Any] = {"loras": arguments.lora, "lora_partial": arguments.lora_partial}
    if plan is not None and arguments.memory is not None:
        from ..memory import size_of

        options["size"] = size_of(plan)
    return {"model": arguments.model} | options | machine_options(arguments)


def machine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those arguments of `load_pipeline` that `add_machine_options` adds."""
    return {
        "device": arguments.device,
        "dtype": arguments.dtype,
        "max_memory": arguments.max_memory,
        "vae_decoder": arguments.vae_decoder,
        "memory": arguments.memory,
        "levers": Levers(**{field.name: getattr(arguments, field.name) for field in fields(Levers)}),
    }


def watch_of(arguments: argparse.Namespace, *others: Path | None) -> "Watch | None":
    """
    The callback that `--watch` asks for.

    Args:
        arguments: of the command line.
        others: files that are read or written, which it must not be.

    Raises:
        LoomVideoError: if there can be no such file.
    """
    if arguments.watch is None:
        return None
    from ..footage.plan import check_distinct
    from ..footage.watching import Watch, watch_in

    check_distinct([arguments.watch], [path for path in others if path is not None])
    return watch_in(arguments.watch) if is_leader() else Watch(lambda step, frames: None)


def describe(command: str, arguments: argparse.Namespace, settings: Any, given: Mapping[str, Any]) -> str:
    """
    What a result says about itself: see `describe_result`.

    Args:
        command: `generate` or `edit`.
        arguments: of the command line.
        settings: of the plan.
        given: values of options that the model, the seed or a job determine.
    """
    left_out = ("function", "watch", "parallel")
    options = {name: value for name, value in vars(arguments).items() if name not in left_out}
    return describe_result(command, options | dict(given), settings)


def print_report(files: Mapping[Path | str, str], seconds: Mapping[str, float]) -> None:
    """Prints what was written, and after the first file how long each stage took."""
    times = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    for index, (path, words) in enumerate(files.items()):
        print(f"Wrote {path}: {words}{f' ({times})' if index == 0 and times else ''}.")


def silence_imports() -> None:
    """Silences warnings of libraries while they are imported: the user can do nothing about them."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def silence_libraries() -> None:
    """Silences all but errors of diffusers and transformers, and their progress bars, which the command's replace."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
