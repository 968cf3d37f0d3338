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
"""What LoomVideo-nano is trained on and measured by: words, source, references and result of a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from . import NUM_FRAMES
from .edits import CHANGED, OF_THINGS, Edit, apply, is_whole, sample_edit
from .phrases import MIXED_SUBJECTS, ON_IMAGE, SUBJECTS, ask, ask_by_reference, caption
from .words import Phrasing, typed
from .world import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, Thing, is_held_out, sample_format, sample_scene


@dataclass(frozen=True)
class Example:
    """
    One thing to do, and how it looks when it is done right.

    Attributes:
        task: a key of `TASKS`.
        target: the result.
        source: what is edited, or None.
        references: what the reference images show.
        num_frames: 1 for an image.
        edits: what is changed, in the order of the words.
        places: of the things in the source, or else in the target; of `PLACES`.
        prompt: the words, in which references are called `@Image 1` and `@Image 2`; nothing until they are drawn.
        meaning: what the words say, as in a `Phrasing`.
    """

    task: str
    target: Scene
    source: Scene | None = None
    references: tuple[Scene, ...] = ()
    num_frames: int = NUM_FRAMES
    edits: tuple[Edit, ...] = ()
    places: tuple[str, ...] = ()
    prompt: str = ""
    meaning: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Stage:
    """
    What a task is made of.

    Attributes:
        scene: of one thing, or of several.
        places: of its things.
        rng: the randomness.
        held_out: whether the result is to show a pair of shape and color that is held out.
    """

    scene: Scene
    places: tuple[str, ...]
    rng: np.random.Generator
    held_out: bool = False

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]


# How many things tasks are about: one, several, or any number
ONE, SEVERAL, ANY = (1,), (2, 3), (1, 2, 3)


def edit(kind: str, stage: Stage) -> Example:
    """A change of a thing, or of the background or all colors. Raises LookupError if it cannot be done."""
    index = 0 if stage.held_out else int(stage.rng.integers(len(stage.scene.things)))
    if stage.held_out and kind == "remove" and len(stage.scene.things) > 1:
        index = 1  # so that what is held out can be seen in the result
    is_changed = stage.held_out and kind in ("recolor", "replace")
    return _edited(stage, [sample_edit(kind, stage.scene, stage.rng, (index,), is_changed)])


def edit_everything(stage: Stage) -> Example:
    """The same change of all things."""
    indexes = tuple(range(len(stage.scene.things)))
    return _edited(stage, [sample_edit(stage.pick(OF_THINGS), stage.scene, stage.rng, indexes)])


def edit_twice(stage: Stage) -> Example:
    """Two changes, of the same thing or of two."""
    scene, rng = stage.scene, stage.rng
    first, second = rng.choice(TWICE, 2)
    indexes = rng.integers(len(scene.things), size=2)
    if rng.random() < 0.5:
        indexes[1] = indexes[0]
    if first == second and (first not in OF_THINGS or indexes[0] == indexes[1]):
        raise LookupError("The same cannot be asked for twice.")
    edits = [sample_edit(str(kind), scene, rng, (int(index),)) for kind, index in zip((first, second), indexes)]
    target = apply(scene, edits)
    shown = [(thing.shape, thing.color) for thing in target.things if thing not in scene.things]
    is_known = not any(is_held_out(*pair) for pair in shown) and len({*shown}) == len(shown)
    is_lost = "remove" in (first, second) and edits[0].indexes == edits[1].indexes
    is_seen = target.background not in {thing.color for thing in target.things}
    if is_lost or not is_known or not is_seen or not is_whole(target):
        raise LookupError("The two changes do not go together.")
    return _edited(stage, edits)


def _edited(stage: Stage, edits: Sequence[Edit]) -> Example:
    return Example("", apply(stage.scene, edits), stage.scene, edits=tuple(edits))


def edit_image(stage: Stage) -> Example:
    """Any change of a picture."""
    return replace(edit(stage.pick(OF_IMAGES), stage), num_frames=1)


def show(stage: Stage) -> Example:
    """A video from words."""
    return Example("", stage.scene)


def edit_by_reference(kind: str, stage: Stage) -> Example:
    """A change to the color, the shape or the background of a picture."""
    is_changed = stage.held_out and kind != "background"
    change = sample_edit(kind, stage.scene, stage.rng, (0,), is_changed)
    thing, value = stage.scene.things[0], str(change.value)
    if kind == "background":
        reference = Scene((), value, stage.scene.width, stage.scene.height)
    elif kind == "recolor":
        shapes = [shape for shape in SHAPES if shape != thing.shape and not is_held_out(shape, value)]
        reference = portrait(stage.pick(shapes), value, stage)
    else:
        colors = [color for color in COLORS if color != thing.color and not is_held_out(value, color)]
        reference = portrait(value, stage.pick(colors), stage)
    return Example("", apply(stage.scene, [change]), stage.scene, (reference,), edits=(change,))


def reference_to_video(stage: Stage) -> Example:
    thing = stage.scene.things[0]
    return Example("", stage.scene, None, (portrait(thing.shape, thing.color, stage, thing.size),))


def thing_and_background_to_video(stage: Stage) -> Example:
    ground = Scene((), stage.scene.background, stage.scene.width, stage.scene.height)
    return replace(reference_to_video(stage), references=(*reference_to_video(stage).references, ground))


def shape_and_color_to_video(stage: Stage) -> Example:
    thing = stage.scene.things[0]
    colors = [color for color in COLORS if color != thing.color and not is_held_out(thing.shape, color)]
    shapes = [shape for shape in SHAPES if shape != thing.shape and not is_held_out(shape, thing.color)]
    references = (
        portrait(thing.shape, stage.pick(colors), stage, thing.size),
        portrait(stage.pick(shapes), thing.color, stage),
    )
    return Example("", stage.scene, None, references)


def portrait(shape: str, color: str, stage: Stage, size: str = "") -> Scene:
    """A reference image: one thing in the middle of any background."""
    width, height = stage.scene.width, stage.scene.height
    background = stage.pick([name for name in BACKGROUNDS if name != color])
    thing = Thing(shape, color, size or stage.pick(list(SIZES)), "still", (width / 2, height / 2))
    return Scene((thing,), background, width, height)


# What can be asked for together, and of a picture
TWICE = ("recolor", "replace", "resize", "redirect", "outline", "background", "add", "remove")
OF_IMAGES = ("recolor", "replace", "resize", "outline", "remove", "add", "background", "invert")

Make = Callable[[Stage], Example]


def _edits(kinds: Sequence[str], suffix: str = "") -> dict[str, Make]:
    return {f"{kind}{suffix}": partial(edit, kind) for kind in kinds}


# Whatever can be asked of a scene: of how many things, and how
TASKS: dict[str, tuple[tuple[int, ...], Make]] = {
    **{name: (ONE, make) for name, make in _edits(OF_THINGS).items()},
    **{name: (ANY, make) for name, make in _edits(("add", "background", "invert")).items()},
    **{name: (SEVERAL, make) for name, make in _edits(OF_THINGS, " one of several").items()},
    "everything": (SEVERAL, edit_everything),
    "two requests": (ANY, edit_twice),
    "image": (ANY, edit_image),
    "recolor by reference": (ONE, partial(edit_by_reference, "recolor")),
    "replace by reference": (ONE, partial(edit_by_reference, "replace")),
    "background by reference": (ANY, partial(edit_by_reference, "background")),
    "text to video": (ONE, show),
    "text to image": (ONE, lambda stage: replace(show(stage), num_frames=1)),
    "several things to video": (SEVERAL, show),
    "reference to video": (ONE, reference_to_video),
    "thing and background to video": (ONE, thing_and_background_to_video),
    "shape and color to video": (ONE, shape_and_color_to_video),
}


def make_example(task: str, stage: Stage) -> Example:
    """Draws an example of a task, without words. Raises LookupError if it cannot be done with the scene."""
    return replace(TASKS[task][1](stage), task=task, places=stage.places)


def say(example: Example, phrasing: Phrasing) -> Example:
    """Puts an example into words."""
    if example.source is None:
        words = _describe(example, phrasing)
    else:
        # In a picture, nothing is told apart by how it moves.
        source = example.source if example.num_frames > 1 else at_rest(example.source)
        if example.references:
            words = ask_by_reference(source, example.places, example.edits[0], phrasing)
        else:
            words = ask(source, example.places, example.edits, phrasing)
    return replace(example, prompt=words, meaning=tuple(phrasing.meaning))


def _describe(example: Example, phrasing: Phrasing) -> str:
    scene = example.target if example.num_frames > 1 else at_rest(example.target)
    subject = on = ""
    if example.references:
        subjects = MIXED_SUBJECTS if example.task == "shape and color to video" else SUBJECTS
        subject = phrasing.pick(subjects).format(shape=scene.things[0].shape)
    if example.task == "thing and background to video":
        on = phrasing.pick(ON_IMAGE)
    return caption(scene, example.places, phrasing, example.num_frames > 1, subject, on)


def at_rest(scene: Scene) -> Scene:
    """A scene halfway through the motion, in which nothing moves."""
    return replace(scene, things=tuple(replace(thing, direction="still") for thing in scene.things))


def sample_example(task: str, rng: np.random.Generator, held_out: bool = False) -> Example:
    """
    Draws an example of a task, of any format.

    Args:
        task: of `TASKS`.
        rng: the randomness.
        held_out: whether the result shows a shape in a color, and the words are such as training never has.
    """
    is_changed = task.startswith(("recolor", "replace"))
    while True:
        width, height, num_frames = sample_format(rng)
        num_things = int(rng.choice(TASKS[task][0]))
        scene, places = sample_scene(rng, held_out and not is_changed, num_things, width, height)
        try:
            example = make_example(task, Stage(scene, tuple(places), rng, held_out))
        except LookupError:
            continue
        if example.num_frames > 1:
            example = replace(example, num_frames=num_frames)
        while True:
            phrasing = Phrasing(rng, may_be_new=held_out)
            said = say(example, phrasing)
            if phrasing.is_new == held_out:
                return said


def sample_held_out(task: str, rng: np.random.Generator) -> Example:
    """Draws what training never shows: the result, where it can be, and the words, spelled as people do."""
    example = sample_example(task, rng, held_out=True)
    return replace(example, prompt=typed(example.prompt, rng))


def sample_family(rng: np.random.Generator) -> list[Example]:
    """
    Draws two scenes for training, of one thing and of several, and all that can be asked of them, so that many
    examples share few clips; and the same of pictures, which teach shapes and colors with a fifth of the tokens. All
    of them are without words.
    """
    width, height, num_frames = sample_format(rng)
    examples: list[Example] = []
    for num_things in (1, int(rng.choice(SEVERAL))):
        scene, places = sample_scene(rng, False, num_things, width, height)
        stage = Stage(scene, tuple(places), rng)
        for task, (numbers, _) in TASKS.items():
            if num_things in numbers and (numbers != ANY or rng.random() < 0.6):
                examples += _make_with_relatives(task, stage)
    return [replace(example, num_frames=num_frames) if example.num_frames > 1 else example for example in examples]


def _make_with_relatives(task: str, stage: Stage) -> list[Example]:
    """An example of a task and what shares its clips: backwards, told as a caption, and as a picture."""
    try:
        example = make_example(task, stage)
    except LookupError:
        return []
    examples = [example]
    if example.source is not None and not example.references and example.num_frames > 1:
        examples += _backwards(example)
        if not {"add", "remove", "invert"} & {edit.kind for edit in example.edits}:
            name = "text to video" if len(example.target.things) == 1 else "several things to video"
            examples.append(Example(name, example.target, places=example.places))
    return examples + [
        replace(each, num_frames=1)
        for each in examples
        if each.num_frames > 1 and not any(edit.kind == "redirect" for edit in each.edits)
    ]


def _backwards(example: Example) -> list[Example]:
    """What takes a change back, if that can be asked for."""
    source, target, edit = example.source, example.target, example.edits[0]
    if source is None or len(example.edits) > 1:
        return []
    olds = {getattr(source.things[index], CHANGED[edit.kind]) for index in edit.indexes if edit.kind in CHANGED}
    places = example.places
    if edit.kind == "add":
        back, places = Edit("remove", (len(source.things),)), (*places, edit.place)
    elif edit.kind == "background":
        back = replace(edit, value=source.background)
    elif len(olds) == 1:
        back = replace(edit, value=olds.pop())
    else:
        return []
    return [replace(example, source=target, target=source, edits=(back,), places=places)]
