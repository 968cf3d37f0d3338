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
"""What was denoised so far, kept beside the output, so that an edit that was interrupted can be resumed."""

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..media.files import remove_leftovers, write_whole


@dataclass
class DenoisingState:
    """
    How far denoising got.

    Attributes:
        latents: after the last step, `[1, C, T, h, w]`.
        num_done: how many timesteps were done.
        num_timesteps: of how many.
        scheduler_attributes: what the scheduler remembers of them.
    """

    latents: torch.Tensor
    num_done: int
    num_timesteps: int
    scheduler_attributes: dict[str, Any]


class ResumeFile:
    """
    A hidden file beside the output with the state after the last step.

    Args:
        output: the file that the edit writes. What is resumed may be written as another kind of file.
        digest: of all that the latents depend on; the file of an edit with another digest is ignored.
        seed: of the edit.
    """

    def __init__(self, output: Path, digest: str, seed: int):
        self.path = _resume_path(output)
        self.digest = digest
        self.seed = seed

    def read(self, device: torch.device) -> DenoisingState | None:
        """Returns the state of the same edit, on `device`, if it was interrupted."""
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata()
                if metadata["digest"] != self.digest:
                    return None
                attributes = json.loads(metadata["attributes"])
                counts = int(metadata["num_steps"]), int(metadata["num_timesteps"])
                tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError):
            return None
        latents = tensors.pop("latents")
        for name, tensor in tensors.items():
            attribute, _, index = name.partition(" ")
            if index:
                attributes[attribute][int(index)] = tensor
            else:
                attributes[attribute] = tensor
        return DenoisingState(latents, *counts, attributes)

    def write(self, latents: torch.Tensor, num_done: int, scheduler: SchedulerMixin) -> None:
        """Replaces the file by the state after `num_done` timesteps."""
        tensors = {"latents": latents}
        attributes: dict[str, Any] = {}
        for name, value in vars(scheduler).items():
            # What a scheduler remembers of earlier steps has the latents' shape; the rest it computes anew.
            if isinstance(value, torch.Tensor) and value.shape == latents.shape:
                tensors[name] = value
            elif isinstance(value, list):
                attributes[name] = [None if isinstance(entry, torch.Tensor) else entry for entry in value]
                tensors |= {
                    f"{name} {index}": entry for index, entry in enumerate(value) if isinstance(entry, torch.Tensor)
                }
            elif value is None or isinstance(value, (int, float)):
                attributes[name] = value
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"digest": self.digest, "seed": str(self.seed), "attributes": json.dumps(attributes)}
        metadata |= {"num_steps": str(num_done), "num_timesteps": str(len(scheduler.timesteps))}
        write_whole(self.path, lambda file: save_file(tensors, file, metadata))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        remove_leftovers(self.path)


def choose_seed(output: Path | None) -> int:
    """The seed of an interrupted edit of this output, so that it can be resumed, or else a random one."""
    if output is not None:
        try:
            with safe_open(_resume_path(output), "pt") as file:
                return int(file.metadata()["seed"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            pass
    return secrets.randbelow(2**32)


def _resume_path(output: Path) -> Path:
    return output.with_name(f".unfinished-{output.stem}.safetensors")
