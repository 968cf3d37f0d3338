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
from typing import TypeVar

import numpy as np

from . import NUM_FRAMES, SIDE
from .world import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    add_thing,
    is_held_out,
    sample_scene,
)


Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Example:
    """
    One thing to do, and how it looks when it is done right.

    Attributes:
        task: a key of `TASKS`.
        prompt: the words, in which references are called `@Image 1` and `@Image 2`.
        target: the result.
        source: what is edited, or None.
        references: what the reference images show.
        num_frames: 1 for an image.
    """

    task: str
    prompt: str
    target: Scene
    source: Scene | None = None
    references: tuple[Scene, ...] = ()
    num_frames: int = NUM_FRAMES


SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("", "", "medium-sized"),
    "large": ("large", "big", "huge"),
}
DIRECTION_WORDS = {
    "right": ("right", "to the right", "rightwards"),
    "left": ("left", "to the left", "leftwards"),
    "up": ("up", "upwards", "to the top"),
    "down": ("down", "downwards", "to the bottom"),
    "up-right": ("up and to the right", "to the upper right", "diagonally up and right"),
    "up-left": ("up and to the left", "to the upper left", "diagonally up and left"),
    "down-right": ("down and to the right", "to the lower right", "diagonally down and right"),
    "down-left": ("down and to the left", "to the lower left", "diagonally down and left"),
}
VERBS = ("moves", "slides", "drifts", "glides", "floats")
STILL_WORDS = ("stays still", "does not move", "stands still", "rests in place")
BACKGROUND_WORDS = {
    "white": ("white background",),
    "black": ("black background",),
    "striped": ("striped background", "background of stripes"),
    "checkered": ("checkered background", "checkerboard background"),
}
# What edits are asked for with
PHRASES = {
    "recolor": (
        "make the {noun} {color}",
        "turn the {noun} {color}",
        "paint the {noun} {color}",
        "color the {noun} {color}",
        "change the color of the {noun} to {color}",
    ),
    "replace": (
        "turn the {noun} into a {shape}",
        "replace the {noun} with a {shape}",
        "change the {noun} to a {shape}",
        "make the {noun} a {shape}",
    ),
    "background": (
        "change the background to {background}",
        "put the {noun} on {background}",
        "replace the background with {background}",
        "give it {background}",
    ),
    "outline": (
        "draw only the outline of the {noun}",
        "make the {noun} an outline",
        "draw it as an outline",
        "outline style",
    ),
    "recolor by reference": (
        "make the {noun} the color of @Image 1",
        "give the {noun} the color in @Image 1",
        "paint the {noun} in the color of @Image 1",
    ),
    "replace by reference": (
        "turn the {noun} into the shape of @Image 1",
        "give the {noun} the shape in @Image 1",
        "replace the {noun} with the shape of @Image 1",
    ),
    "background by reference": (
        "use the background of @Image 1",
        "put the {noun} on the background of @Image 1",
        "change the background to that of @Image 1",
    ),
}
# What was changed like this can be changed back.
REVERSIBLE = ("recolor", "replace", "background")


def sample_family(rng: np.random.Generator) -> list[Example]:
    """
    Draws a scene for training and all that can be asked of it, so that many examples share few clips; and the same of
    the first frame of each clip, an image, which teaches shapes and colors with a fifth of the tokens.
    """
    scene = sample_scene(rng)
    examples = [make(scene, rng, False) for make in TASKS.values()]
    for example in examples[: len(REVERSIBLE)]:
        assert example.source is not None
        back = _ask(example.task, example.target, example.source, rng)
        examples.append(replace(example, prompt=back, source=example.target, target=example.source))
        examples.append(text_to_video(example.target, rng))
    return [*examples, *[replace(example, num_frames=1) for example in examples if example.num_frames > 1]]


def sample_held_out(task: str, rng: np.random.Generator) -> Example:
    """Draws an example whose result shows a shape in a color that training never shows it in."""
    while True:
        scene = sample_scene(rng, held_out=not task.startswith(("recolor", "replace")))
        try:
            return TASKS[task](scene, rng, True)
        except LookupError:  # some colors are held out of no shape
            continue


def _pick(rng: np.random.Generator, options: Sequence[Choice]) -> Choice:
    if not options:
        raise LookupError("there is nothing to choose from")
    return options[int(rng.integers(len(options)))]


def _noun(thing: Thing, rng: np.random.Generator) -> str:
    return _pick(rng, (thing.shape, thing.shape, f"{thing.color} {thing.shape}"))


def _ask(task: str, source: Scene, target: Scene, rng: np.random.Generator) -> str:
    """Asks for an edit of `PHRASES`."""
    words = {"background": _background(target.background, rng)} if task == "background" else {}
    words |= {"noun": _noun(source.things[0], rng), "color": target.things[0].color, "shape": target.things[0].shape}
    return _pick(rng, PHRASES[task]).format(**words)


def _describe(thing: Thing, rng: np.random.Generator) -> str:
    size = next(name for name, radius in SIZES.items() if radius == thing.radius)
    words = f"{_pick(rng, SIZE_WORDS[size])} {thing.color} {thing.shape}".strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _motion(thing: Thing, rng: np.random.Generator) -> str:
    if thing.direction == "still":
        return _pick(rng, STILL_WORDS)
    return f"{_pick(rng, VERBS)} {_pick(rng, DIRECTION_WORDS[thing.direction])}"


def _background(name: str, rng: np.random.Generator) -> str:
    return f"a {_pick(rng, BACKGROUND_WORDS[name])}"


def _caption(subject: str, motion: str, background: str, rng: np.random.Generator) -> str:
    """Puts a description together. A background that is not mentioned is white."""
    words = _background(background, rng)
    forms = [f"{subject} {motion} on {words}", f"{subject} {motion} over {words}", f"on {words}, {subject} {motion}"]
    return _pick(rng, [*forms, *[f"{subject} {motion}"] * (2 if background == "white" else 0)])


def text_to_video(scene: Scene, rng: np.random.Generator, held_out: bool = False) -> Example:
    thing = scene.things[0]
    return Example("text to video", _caption(_describe(thing, rng), _motion(thing, rng), scene.background, rng), scene)


def text_to_image(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    words = _describe(scene.things[0], rng)
    prompt = f"{words} on {_background(scene.background, rng)}"
    return Example("text to image", _pick(rng, (prompt, f"a picture of {prompt}")), scene, num_frames=1)


def recolor(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    thing = scene.things[0]
    color = _pick(
        rng, [color for color in COLORS if color != thing.color and is_held_out(thing.shape, color) == held_out]
    )
    target = replace(scene, things=(replace(thing, color=color),))
    return Example("recolor", _ask("recolor", scene, target, rng), target, scene)


def replace_shape(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    thing = scene.things[0]
    shape = _pick(
        rng, [shape for shape in SHAPES if shape != thing.shape and is_held_out(shape, thing.color) == held_out]
    )
    target = replace(scene, things=(replace(thing, shape=shape),))
    return Example("replace", _ask("replace", scene, target, rng), target, scene)


def change_background(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    target = replace(scene, background=_pick(rng, [name for name in BACKGROUNDS if name != scene.background]))
    return Example("background", _ask("background", scene, target, rng), target, scene)


def add(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    target, corner = add_thing(scene, rng)
    thing = target.things[1]
    words = f"{'an' if thing.color == 'orange' else 'a'} {thing.color} {thing.shape}"
    prompt = _pick(
        rng,
        (
            f"add {words} in the {corner} corner",
            f"put {words} into the {corner} corner",
            f"add {words} at the {corner}",
        ),
    )
    return Example("add", prompt, target, scene)


def remove(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    """Of two things, removes the one that does not move, so that the other stays."""
    source, _ = add_thing(scene, rng)
    noun = _pick(rng, (source.things[1].shape, f"{source.things[1].color} {source.things[1].shape}"))
    return Example("remove", f"{_pick(rng, ('remove', 'erase', 'delete', 'take away'))} the {noun}", scene, source)


def outline(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    target = replace(scene, style="outline")
    return Example("outline", _ask("outline", scene, target, rng), target, scene)


def invert(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    prompt = _pick(rng, ("invert the colors", "make it a negative", "show it in inverted colors", "negative style"))
    return Example("invert", prompt, replace(scene, style="inverted"), scene)


def recolor_by_reference(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    target = recolor(scene, rng, held_out).target
    color = target.things[0].color
    shapes = [shape for shape in SHAPES if shape != scene.things[0].shape and not is_held_out(shape, color)]
    prompt = _ask("recolor by reference", scene, target, rng)
    reference = _portrait(_pick(rng, shapes), color, rng)
    return Example("recolor by reference", prompt, target, scene, (reference,))


def replace_by_reference(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    target = replace_shape(scene, rng, held_out).target
    shape = target.things[0].shape
    colors = [color for color in COLORS if color != scene.things[0].color and not is_held_out(shape, color)]
    prompt = _ask("replace by reference", scene, target, rng)
    reference = _portrait(shape, _pick(rng, colors), rng, scene.things[0].radius)
    return Example("replace by reference", prompt, target, scene, (reference,))


def background_by_reference(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    target = change_background(scene, rng, held_out).target
    prompt = _ask("background by reference", scene, target, rng)
    return Example("background by reference", prompt, target, scene, (Scene((), target.background),))


def reference_to_video(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    thing = scene.things[0]
    subject = _pick(rng, ("@Image 1", "the shape in @Image 1", f"the {thing.shape} in @Image 1"))
    prompt = _caption(subject, _motion(thing, rng), scene.background, rng)
    return Example(
        "reference to video", prompt, scene, None, (_portrait(thing.shape, thing.color, rng, thing.radius),)
    )


def thing_and_background_to_video(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    thing = scene.things[0]
    subject = _pick(rng, ("@Image 1", "the shape in @Image 1", f"the {thing.shape} in @Image 1"))
    place = _pick(rng, ("on @Image 2", "over the background of @Image 2", "in front of @Image 2"))
    references = (_portrait(thing.shape, thing.color, rng, thing.radius), Scene((), scene.background))
    return Example(
        "thing and background to video", f"{subject} {_motion(thing, rng)} {place}", scene, None, references
    )


def shape_and_color_to_video(scene: Scene, rng: np.random.Generator, held_out: bool) -> Example:
    thing = scene.things[0]
    colors = [color for color in COLORS if color != thing.color and not is_held_out(thing.shape, color)]
    shapes = [shape for shape in SHAPES if shape != thing.shape and not is_held_out(shape, thing.color)]
    references = (
        _portrait(thing.shape, _pick(rng, colors), rng, thing.radius),
        _portrait(_pick(rng, shapes), thing.color, rng),
    )
    subject = _pick(
        rng, ("the shape of @Image 1 in the color of @Image 2", "a shape as in @Image 1, colored like @Image 2,")
    )
    prompt = _caption(subject, _motion(thing, rng), scene.background, rng)
    return Example("shape and color to video", prompt, scene, None, references)


def _portrait(shape: str, color: str, rng: np.random.Generator, radius: int | None = None) -> Scene:
    """A reference image: one thing in the middle of any background."""
    thing = Thing(shape, color, radius or _pick(rng, list(SIZES.values())), "still", (SIDE / 2, SIDE / 2))
    return Scene((thing,), _pick(rng, BACKGROUNDS))


# Whatever can be asked of a scene, the edits of `REVERSIBLE` first
TASKS: dict[str, Callable[[Scene, np.random.Generator, bool], Example]] = {
    "recolor": recolor,
    "replace": replace_shape,
    "background": change_background,
    "add": add,
    "remove": remove,
    "outline": outline,
    "invert": invert,
    "recolor by reference": recolor_by_reference,
    "replace by reference": replace_by_reference,
    "background by reference": background_by_reference,
    "text to video": text_to_video,
    "text to image": text_to_image,
    "reference to video": reference_to_video,
    "thing and background to video": thing_and_background_to_video,
    "shape and color to video": shape_and_color_to_video,
}
