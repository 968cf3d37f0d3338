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
"""Writes LoomVideo-nano's training data: clips, pictures and files of records, as `loomvideo train` reads them."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
from tqdm import tqdm

from ..media import FRAMES_PER_SECOND, write_image
from ..media.files import replace_folder
from . import SEED, SIDE
from .tasks import TASKS, Example, sample_family
from .world import Scene, render


# The records of video tasks that are asked of images
IMAGES = "images"


def write_dataset(folder: Path, num_families: int) -> None:
    """
    Writes so many families of examples, each into a folder of its own, unless `folder` is there already.

    The records are divided by task, `text-to-video.jsonl` and so on, for the weights that the training gives them.
    Those of video tasks that are asked of images are together in `images.jsonl`.
    """
    if folder.exists():
        return

    def write(unfinished: Path) -> None:
        lines: dict[str, list[str]] = {name: [] for name in (*TASKS, IMAGES)}
        for index in tqdm(range(num_families), desc="Drawing clips"):
            family = sample_family(np.random.default_rng([SEED, index]))
            for example, record in zip(family, _write_family(unfinished, f"{index:05d}", family)):
                is_as_image = example.num_frames == 1 and example.task != "text to image"
                lines[IMAGES if is_as_image else example.task].append(json.dumps(record) + "\n")
        for name, of_file in lines.items():
            (unfinished / f"{name.replace(' ', '-')}.jsonl").write_text("".join(of_file), encoding="utf-8")

    replace_folder(folder, write)


def _write_family(root: Path, name: str, family: list[Example]) -> list[dict[str, Any]]:
    """Draws every scene of a family once, and returns the records of its examples."""
    (root / name).mkdir(parents=True)
    paths: dict[tuple[Scene, int], str] = {}

    def draw(scene: Scene, num_frames: int) -> str:
        if (scene, num_frames) not in paths:
            path = f"{name}/{len(paths):02d}.{'png' if num_frames == 1 else 'mp4'}"
            frames = render(scene, num_frames)
            if num_frames == 1:
                write_image(root / path, frames[0])
            else:
                _write_exact(root / path, frames)
            paths[scene, num_frames] = path
        return paths[scene, num_frames]

    records = []
    for example in family:
        kind = "image" if example.num_frames == 1 else "video"
        target = draw(example.target, example.num_frames)
        record: dict[str, Any] = {"instruction": example.prompt, f"target_{kind}_path": target}
        if example.source is not None:
            record[f"source_{kind}_path"] = draw(example.source, example.num_frames)
        if example.references:
            record["reference_image_paths"] = [draw(reference, 1) for reference in example.references]
        records.append(record)
    return records


def _write_exact(path: Path, frames: np.ndarray) -> None:
    """Writes uint8 `[F, H, W, 3]` as an mp4 without loss, in RGB."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=FRAMES_PER_SECOND, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "rgb24"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
