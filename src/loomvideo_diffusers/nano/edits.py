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
"""The changes that LoomVideo-nano is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .world import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    is_held_out,
    keeps_clear,
    place_middle,
    stays_inside,
)


KINDS = ("recolor", "replace", "resize", "redirect", "outline", "remove", "add", "background", "invert")
# Those that are done to a thing
OF_THINGS = KINDS[:6]
# What they give a new value to
CHANGED = {"recolor": "color", "replace": "shape", "resize": "size", "redirect": "direction"}


@dataclass(frozen=True)
class Edit:
    """
    One change.

    Attributes:
        kind: of `KINDS`.
        indexes: which of the scene's things are changed.
        value: the new color, shape, size, direction or background, or the thing that is added.
        place: of the thing that is added.
    """

    kind: str
    indexes: tuple[int, ...] = ()
    value: str | Thing | None = None
    place: str = ""


def apply(scene: Scene, edits: Sequence[Edit]) -> Scene:
    """Makes changes, all of which name the things by their places in the scene as it was."""
    things: list[Thing | None] = list(scene.things)
    for edit in edits:
        if edit.kind == "background":
            scene = replace(scene, background=str(edit.value))
        elif edit.kind == "invert":
            scene = replace(scene, is_inverted=not scene.is_inverted)
        elif isinstance(edit.value, Thing):
            things.append(edit.value)
        for index in edit.indexes:
            if (thing := things[index]) is not None:
                things[index] = _change(thing, edit)
    return replace(scene, things=tuple(thing for thing in things if thing is not None))


def _change(thing: Thing, edit: Edit) -> Thing | None:
    if edit.kind == "remove":
        return None
    if edit.kind == "outline":
        return replace(thing, is_outline=True)
    changed: dict[str, Any] = {CHANGED[edit.kind]: edit.value}
    return replace(thing, **changed)


def sample_edit(
    kind: str, scene: Scene, rng: np.random.Generator, indexes: tuple[int, ...] = (0,), held_out: bool = False
) -> Edit:
    """
    Draws a change of a kind.

    Args:
        kind: of `KINDS`.
        scene: what is changed.
        rng: the randomness.
        indexes: which things are changed, if the kind is one of `OF_THINGS`.
        held_out: whether a recolored or replaced thing, if it is the first, is then of a pair held out.

    Raises:
        LookupError: if nothing of this kind can be done.
    """
    if kind == "add":
        return _sample_addition(scene, rng)
    values = {
        "recolor": [color for color in COLORS if color != scene.background],
        "replace": SHAPES,
        "resize": SIZES,
        "redirect": DIRECTIONS,
        "background": BACKGROUNDS,
    }.get(kind, (None,))
    edits = [Edit(kind, indexes if kind in OF_THINGS else (), value) for value in values]
    possible = [edit for edit in edits if _is_possible(scene, edit, held_out)]
    if not possible:
        raise LookupError(f"There is nothing to {kind}.")
    return possible[rng.integers(len(possible))]


def _is_possible(scene: Scene, edit: Edit, held_out: bool) -> bool:
    """Whether a change leaves a scene that the world has, other than it was."""
    target = apply(scene, [edit])
    if edit.kind == "background" and edit.value in {thing.color for thing in target.things}:
        return False
    if target == scene or edit.kind in ("background", "invert", "remove"):
        return target != scene
    if all(target.things[index] == scene.things[index] for index in edit.indexes):
        return False
    if edit.kind in ("recolor", "replace"):
        if any(target.things[index] == scene.things[index] for index in edit.indexes):
            return False
        return all(
            is_held_out(target.things[index].shape, target.things[index].color) == (held_out and index == 0)
            for index in edit.indexes
        )
    return is_whole(target)


def is_whole(scene: Scene) -> bool:
    """Whether all things stay within the frame and clear of each other."""
    return all(
        stays_inside(thing, scene.width, scene.height) and keeps_clear(thing, scene.things[:index])
        for index, thing in enumerate(scene.things)
    )


def _sample_addition(scene: Scene, rng: np.random.Generator) -> Edit:
    """Draws a thing that is at rest, of another shape and color than what is there."""
    for _ in range(50):
        shape, color = str(rng.choice(SHAPES)), str(rng.choice(list(COLORS)))
        size, place = str(rng.choice(list(SIZES)[:2])), str(rng.choice(list(PLACES)))
        thing = Thing(shape, color, size, "still", place_middle(rng, place, size, "still", scene.width, scene.height))
        is_other = all(shape != other.shape and color != other.color for other in scene.things)
        if (
            is_other
            and color != scene.background
            and not is_held_out(shape, color)
            and keeps_clear(thing, scene.things)
        ):
            return Edit("add", (), thing, place)
    raise LookupError("There is no room to add a thing.")
