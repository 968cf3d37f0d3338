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
from pathlib import Path

from ..pipelines import LoomVideoPipeline
from .autoencoder import refine_decoder, train_autoencoder
from .curves import plot_curves
from .denoised import write_denoised
from .evaluation import evaluate
from .export import assemble, load_trained, write_card
from .joint import train, write_latents
from .language import train_language
from .tiny import train_tiny_decoder
from .untrained import make_untrained


OUTPUT_DIR = Path("outputs/nano")


def main() -> None:
    argparse.ArgumentParser(prog="python -m loomvideo_diffusers.nano", description=__doc__).parse_args()
    autoencoder = train_autoencoder(OUTPUT_DIR)
    language = train_language(OUTPUT_DIR)
    untrained, latents = OUTPUT_DIR / "untrained", OUTPUT_DIR / "latents"
    make_untrained(untrained, autoencoder, language)
    write_latents(LoomVideoPipeline.from_pretrained(untrained, text_encoder=None, transformer=None), latents)
    trained = train(untrained, latents, OUTPUT_DIR)
    pipe = load_trained(untrained, trained)
    write_denoised(pipe, OUTPUT_DIR / "denoised")
    decoder = refine_decoder(autoencoder, OUTPUT_DIR / "denoised", OUTPUT_DIR)
    tiny_decoder = train_tiny_decoder(decoder, OUTPUT_DIR)

    model = OUTPUT_DIR / "loomvideo-nano"
    assemble(pipe, decoder, model)
    results = evaluate(model, OUTPUT_DIR / "results.json", model / "samples")
    plot_curves(
        {
            "Autoencoder": (autoencoder.with_suffix(".csv"), "psnr"),
            "MLLM, on sentences": (language.with_suffix(".csv"), "understood"),
            "Transformer and MLLM": (trained.with_suffix(".csv"), "error"),
            "Decoder, on denoised clips": (decoder.with_suffix(".csv"), "psnr"),
        },
        model / "samples" / "curves.png",
    )
    write_card(model, results)
    print(f"Wrote {tiny_decoder}.")
    print(f"Wrote {model}, without code, as the package has it; `save_pretrained` or `loomvideo push` add the code.")


if __name__ == "__main__":
    main()
