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
"""Sentences by people who had not seen LoomVideo-nano's grammar, and what each of them asks for."""

import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np

from . import SEED
from .edits import Edit, apply, is_whole
from .tasks import Example
from .world import Scene, Thing, place_middle


# What the sentences are for
UNSEEN = ("edits in unseen words", "videos from unseen words")

# How often things are placed anew until they fit beside each other
NUM_TRIES = 1000
# The frame is wide if they would not fit otherwise.
WIDTHS = (96, 128)


def read_unseen() -> list[Example]:
    """Reads the sentences, each with a scene that is drawn for it where it leaves places open."""
    lines = files("loomvideo_diffusers.nano").joinpath("unseen.jsonl").read_text(encoding="utf-8").splitlines()
    return [_make(json.loads(line), np.random.default_rng([SEED, 8, index])) for index, line in enumerate(lines)]


def _make(row: dict[str, Any], rng: np.random.Generator) -> Example:
    described = row.get("source") or row["target"]
    places = tuple(thing["place"] for thing in described["things"])
    for width in np.repeat(WIDTHS, NUM_TRIES):
        scene = Scene((), described["background"], int(width))
        scene = replace(scene, things=tuple(_place(thing, scene, rng) for thing in described["things"]))
        edits = tuple(_edit(edit, scene, rng) for edit in row.get("edits", ()))
        target = apply(scene, edits)
        if is_whole(scene) and is_whole(target):
            task = "unseen words for edits" if edits else "unseen words for videos"
            return Example(
                task, target, scene if edits else None, (), edits=edits, places=places, prompt=row["prompt"]
            )
    raise LookupError(f"{row['prompt']}: the things do not fit into the frame.")


def _place(thing: dict[str, str], scene: Scene, rng: np.random.Generator) -> Thing:
    """Draws a thing near its place, half of the time nearer to the middle of the frame, where there is more room."""
    size = (scene.width, scene.height)
    middle = np.array(place_middle(rng, thing["place"], thing["size"], thing["direction"], *size))
    x, y = (middle + max(0.0, rng.uniform(-0.4, 0.4)) * (np.array(size) / 2 - middle)).tolist()
    return Thing(thing["shape"], thing["color"], thing["size"], thing["direction"], (x, y))


def _edit(edit: dict[str, Any], scene: Scene, rng: np.random.Generator) -> Edit:
    if edit["kind"] == "add":
        return Edit("add", (), _place(edit["thing"], scene, rng), edit["thing"]["place"])
    indexes: tuple[int, ...] = ()
    if "index" in edit:
        indexes = tuple(range(len(scene.things))) if edit["index"] == "all" else (edit["index"],)
    return Edit(edit["kind"], indexes, edit.get("value"))
