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
"""Generates, edits, edits with a reference and composes references: `python -m loomvideo_diffusers.nano.demo`."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..media import contact_sheet, write_image, write_video
from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline
from . import MODEL, NUM_FRAMES, OPTIONS, SEED, SIDE
from .world import Scene, Thing, draw_frame


OUTPUT_DIR = Path("outputs/nano-demo")


def main() -> None:
    pipe = LoomVideoPipeline.from_pretrained(MODEL, dtype=torch.float32)
    edit = LoomVideoEditPipeline.from_pipe(pipe)
    size = {"height": SIDE, "width": SIDE, "num_frames": NUM_FRAMES}

    generation = "a large red heart moves right on a checkered background"
    heart = _run(pipe, generation, **size)

    change = "make the heart blue"
    blue_heart = _run(edit, change, video=heart)

    change_by_reference = "turn the heart into the shape of @Image 1"
    star = _picture("star", "green", "black")
    starry = _run(edit, change_by_reference, video=heart, reference_images=star)

    composition = "@Image 1 moves up and to the left on @Image 2"
    pictures = [_picture("triangle", "orange", "white"), PIL.Image.fromarray(draw_frame(Scene((), "striped"), 0))]
    composed = _run(pipe, composition, reference_images=pictures, **size)

    rows: list[tuple[str, Any]] = [
        (f"generate: {generation}", heart),
        ("source", heart),
        (f"edit: {change}", blue_heart),
        ("source", heart),
        ("@Image 1", [star]),
        (f"edit: {change_by_reference}", starry),
        ("@Image 1, @Image 2", pictures),
        (f"generate: {composition}", composed),
    ]
    videos = {"generated": heart, "edited": blue_heart, "edited-by-reference": starry, "composed": composed}
    for name, video in videos.items():
        for suffix in ("mp4", "gif"):
            path = OUTPUT_DIR / f"{name}.{suffix}"
            write_video(path, video)
            print(f"Wrote {path}.")
    path = OUTPUT_DIR / "contact-sheet.png"
    sheet = contact_sheet([clip for _, clip in rows], height=SIDE, labels=[label for label, _ in rows])
    write_image(path, sheet)
    print(f"Wrote {path}: each source above its result.")


def _run(pipe: LoomVideoPipeline | LoomVideoEditPipeline, prompt: str, **inputs: Any) -> np.ndarray:
    """Calls a pipeline as nano is best called; returns the video, `[F, SIDE, SIDE, 3]` in [0, 1]."""
    generator = torch.Generator().manual_seed(SEED)
    return pipe(prompt, generator=generator, **inputs, **OPTIONS).frames[0]


def _picture(shape: str, color: str, background: str) -> PIL.Image.Image:
    thing = Thing(shape, color, "large", "still", (SIDE / 2, SIDE / 2))
    return PIL.Image.fromarray(draw_frame(Scene((thing,), background), 0))


if __name__ == "__main__":
    main()
