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
"""One call on several devices, whose processes share the tokens of a video, or the branches of guidance."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import LoomVideoError


if TYPE_CHECKING:
    from .pipelines import LoomVideoEditPipeline, LoomVideoPipeline

T = TypeVar("T")

KINDS = ("ulysses", "ulysses_anything", "ring", "ring_anything", "branches")


@dataclass(frozen=True)
class Division:
    """
    How the work of a call is divided over processes, their numbers multiplied.

    Attributes:
        ulysses, ulysses_anything: processes with a part of the tokens each, and in attention of the heads; their
            numbers must be divisible, or with `ulysses_anything` need not be.
        ring, ring_anything: processes with a part of the tokens each, that pass keys and values around.
        branches: processes with a branch of guidance each, of which there are up to three.

    Raises:
        LoomVideoError: if nothing is divided, or a number is none.
    """

    ulysses: int = 1
    ulysses_anything: int = 1
    ring: int = 1
    ring_anything: int = 1
    branches: int = 1

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1 or self.num_processes == 1:
            raise LoomVideoError("A division needs a number of processes from 2, such as ulysses=2.")
        if self.branches > 3:
            raise LoomVideoError(f"Guidance has three branches at most, and not {self.branches}: add ulysses=N.")
        if self.ulysses_anything > 1 and max(self.ulysses, self.ring, self.ring_anything) > 1:
            raise LoomVideoError("ulysses_anything cannot be combined with ulysses and ring: choose one.")
        if self.ring_anything > 1 and max(self.ulysses, self.ring) > 1:
            raise LoomVideoError("ring_anything cannot be combined with ulysses and ring: choose one.")

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Division":
        """
        Makes one of words such as `ulysses=2`.

        Raises:
            LoomVideoError: if they say none.
        """
        numbers: dict[str, int] = {}
        for word in words:
            kind, _, number = word.partition("=")
            if kind not in KINDS or not number.isdecimal() or kind in numbers:
                raise LoomVideoError(f"--parallel takes {', '.join(f'{kind}=N' for kind in KINDS)}, and not {word}.")
            numbers[kind] = int(number)
        return cls(**numbers)

    @property
    def num_processes(self) -> int:
        return math.prod(vars(self).values())


class Processes:
    """
    This process among those that share a call; `torchrun` starts them.

    Args:
        division: what each does.
        device: of this process; by default its GPU, or else the CPU.

    Raises:
        LoomVideoError: if there are not as many processes as are needed, or the device cannot do it.
    """

    def __init__(self, division: Division, device: str):
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh

        check_processes(division, device)
        self.division = division
        self.device_type = device.partition(":")[0]
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if self.device_type == "cuda" else "cpu:gloo")
        ring, ulysses = (max(division.ring, division.ring_anything), max(division.ulysses, division.ulysses_anything))
        names = ("branches", "ring", "ulysses")
        self.mesh = init_device_mesh(self.device_type, (division.branches, ring, ulysses), mesh_dim_names=names)

    def share(self, value: T | None) -> T:
        """Returns in all processes what the leader gave."""
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        shared = values[0]
        assert shared is not None
        return shared

    def divide(self, pipe: "LoomVideoPipeline | LoomVideoEditPipeline") -> None:
        """
        Divides the calls of a pipeline, which all processes have to make alike.

        Raises:
            LoomVideoError: if the backend of attention cannot be divided.
        """
        from diffusers import ContextParallelConfig

        from .parallel_vae import divide_vae

        pipe.is_leader = is_leader()
        divide_vae(pipe.vae, self.mesh._flatten().get_group())
        if self.division.branches > 1:
            pipe.branch_group = self.mesh["branches"].get_group()
        if self.mesh["ring", "ulysses"].size() == 1:
            return
        heads, ulysses = pipe.transformer.config.num_attention_heads, self.division.ulysses
        if heads % ulysses:
            raise LoomVideoError(f"{heads} heads cannot be divided evenly by {ulysses}: use ulysses_anything.")
        config = ContextParallelConfig(
            ring_degree=self.mesh["ring"].size(),
            ulysses_degree=self.mesh["ulysses"].size(),
            ulysses_anything=self.division.ulysses_anything > 1,
            ring_anything=self.division.ring_anything > 1,
            mesh=self.mesh["ring", "ulysses"],
        )
        try:
            _with_devices(self.device_type, lambda: pipe.transformer.enable_parallelism(config=config))
        except ValueError as error:
            raise LoomVideoError(
                f"This cannot be divided: {' '.join(str(error).split()).removesuffix('.')}."
            ) from error


def check_processes(division: Division, device: str) -> None:
    """Raises a LoomVideoError if there are not as many processes as a division needs, or the device cannot do it."""
    number, needed = int(os.environ.get("WORLD_SIZE", 1)), division.num_processes
    if number != needed:
        raise LoomVideoError(
            f"--parallel needs {needed} processes, and there {'is' if number == 1 else 'are'} {number}: start them by "
            f"`torchrun --nproc-per-node {needed} -m loomvideo_diffusers ...`."
        )
    if device == "cpu" and max(division.ring, division.ring_anything) > 1:
        raise LoomVideoError("No attention on CPUs says what a ring has to know: divide by ulysses there.")


def is_leader() -> bool:
    """Whether this is the process that reads, writes and speaks for all."""
    return int(os.environ.get("RANK", 0)) == 0


def _with_devices(device_type: str, enable: Callable[[], Any]) -> None:
    """Diffusers counts accelerators to choose one, and there is none among CPUs, of which each process has one."""
    import torch

    count = torch.accelerator.device_count
    if device_type == "cpu":
        torch.accelerator.device_count = lambda: int(os.environ["WORLD_SIZE"])
    try:
        enable()
    finally:
        torch.accelerator.device_count = count
