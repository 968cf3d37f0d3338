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

import argparse
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import torch

from .autoencoder import refine_decoder, train_autoencoder
from .curves import plot_curves
from .dataset import write_dataset
from .denoised import write_denoised
from .evaluation import evaluate
from .export import assemble, load_trained, write_card
from .untrained import make_untrained


OUTPUT_DIR = Path("outputs/nano")
NUM_FAMILIES = 600


def main() -> None:
    argparse.ArgumentParser(prog="python -m loomvideo_diffusers.nano", description=__doc__).parse_args()
    autoencoder = train_autoencoder(OUTPUT_DIR)
    make_untrained(OUTPUT_DIR / "untrained", autoencoder)
    write_dataset(OUTPUT_DIR / "data", NUM_FAMILIES)
    _train("nano.yaml")
    pipe = load_trained(OUTPUT_DIR / "untrained", OUTPUT_DIR / "run")
    write_denoised(pipe, OUTPUT_DIR / "denoised")
    decoder = refine_decoder(autoencoder, OUTPUT_DIR / "denoised", OUTPUT_DIR)
    assemble(pipe, decoder, OUTPUT_DIR / "first")
    _train("finish.yaml")

    model = OUTPUT_DIR / "loomvideo-nano"
    assemble(load_trained(OUTPUT_DIR / "first", OUTPUT_DIR / "finish"), decoder, model)
    results = evaluate(model, OUTPUT_DIR / "results.json", model / "samples")
    plot_curves(
        {
            "Autoencoder": autoencoder.with_suffix(".csv"),
            "Decoder, on whole clips": decoder.with_suffix(".csv"),
            "Transformer and MLLM": OUTPUT_DIR / "run" / "logs",
            "The same, finished": OUTPUT_DIR / "finish" / "logs",
        },
        model / "samples" / "curves.png",
    )
    write_card(model, results)
    print(f"Wrote {model}, without code, as the package has it; `save_pretrained` or `loomvideo push` add the code.")


def _train(settings: str) -> None:
    """Trains by a file of settings of this folder: first all features, then on them."""
    # Clips are independent of each other, so a process for each core encodes more of them than threads would.
    _run_training(settings, 1 if torch.cuda.is_available() else os.cpu_count() or 1, "--precompute-only")
    _run_training(settings, 1, "--resume")


def _run_training(settings: str, num_processes: int, option: str) -> None:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}"] if num_processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": str((os.cpu_count() or 1) // num_processes)}
    if not torch.cuda.is_available():
        # On CPUs, short sequences are faster through plain matrix products.
        environment |= {"ACCELERATE_USE_CPU": "true", "DIFFUSERS_ATTN_BACKEND": "_native_math"}
    path = str(files("loomvideo_diffusers.nano").joinpath(settings))
    command = [sys.executable, *launcher, "-m", "loomvideo_diffusers.training", path, option]
    subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
