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
"""Makes LoomVideo-nano from nothing, or goes on where it was interrupted: `python -m loomvideo_diffusers.nano`."""

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import torch

from .autoencoder import train_autoencoder
from .dataset import write_dataset
from .untrained import make_untrained


# The paths of the settings, nano.yaml, begin with it.
OUTPUT_DIR = Path("outputs/nano")
NUM_FAMILIES = 1000


def main() -> None:
    autoencoder = train_autoencoder(OUTPUT_DIR)
    make_untrained(OUTPUT_DIR / "untrained", autoencoder)
    write_dataset(OUTPUT_DIR / "data", NUM_FAMILIES)
    settings = str(files("loomvideo_diffusers.nano").joinpath("nano.yaml"))
    # Clips are independent of each other, so a process for each core encodes more of them than threads would.
    num_processes = 1 if torch.cuda.is_available() else os.cpu_count()
    _run(
        "torch.distributed.run",
        f"--nproc_per_node={num_processes}",
        "-m",
        "loomvideo_diffusers.training",
        settings,
        "--precompute-only",
    )
    _run("loomvideo_diffusers.training", settings, "--resume")


def _run(module: str, *arguments: str) -> None:
    environment = os.environ | ({} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"})
    if module.startswith("torch."):
        environment["OMP_NUM_THREADS"] = "1"
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, env=environment)


if __name__ == "__main__":
    main()
