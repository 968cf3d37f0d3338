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
"""The words for what LoomVideo-nano's world holds, and the choice among them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from .world import BACKGROUNDS, COLORS


Choice = TypeVar("Choice")

# Words and phrases that begin with an asterisk never occur in training: what they are made of does, so that they can
# be understood, and they are what is measured. The first entry of each list is the common word.
COLOR_WORDS = {
    "red": (
        "red",
        "crimson",
        "scarlet",
        "reddish",
        "ruby",
        "cherry red",
        "bright red",
        "maroon",
        "burgundy",
        "vermilion",
        "dark red",
        "*rose red",
    ),
    "orange": (
        "orange",
        "tangerine",
        "amber",
        "orangey",
        "bright orange",
        "carrot orange",
        "pumpkin orange",
        "*orangeish",
    ),
    "yellow": (
        "yellow",
        "golden",
        "gold",
        "yellowish",
        "lemon",
        "lemon yellow",
        "mustard",
        "canary yellow",
        "light yellow",
        "*bright yellow",
    ),
    "green": (
        "green",
        "emerald",
        "lime green",
        "grass green",
        "dark green",
        "bright green",
        "lime",
        "forest green",
        "jade",
        "leaf green",
        "*greenish",
    ),
    "turquoise": (
        "turquoise",
        "cyan",
        "teal",
        "aqua",
        "turquoise blue",
        "blue-green",
        "aquamarine",
        "cyan blue",
        "*bright turquoise",
    ),
    "blue": (
        "blue",
        "navy",
        "azure",
        "dark blue",
        "royal blue",
        "navy blue",
        "bright blue",
        "cobalt",
        "sapphire",
        "cobalt blue",
        "deep blue",
        "*bluish",
    ),
    "purple": (
        "purple",
        "violet",
        "lilac",
        "purplish",
        "plum",
        "dark purple",
        "lavender",
        "mauve",
        "grape",
        "deep purple",
        "*bright purple",
    ),
    "pink": (
        "pink",
        "rose",
        "magenta",
        "pinkish",
        "hot pink",
        "light pink",
        "fuchsia",
        "pale pink",
        "bubblegum pink",
        "*bright pink",
    ),
}
SHAPE_WORDS = {
    "circle": (
        "circle",
        "disc",
        "disk",
        "ball",
        "dot",
        "round shape",
        "sphere",
        "circular shape",
        "orb",
        "circle shape",
        "round object",
        "*round form",
    ),
    "square": (
        "square",
        "box",
        "block",
        "cube",
        "square shape",
        "quadrangle",
        "four-sided shape",
        "square object",
        "tile",
        "*square form",
    ),
    "triangle": (
        "triangle",
        "triangular shape",
        "pyramid",
        "triangular thing",
        "three-sided shape",
        "triangle shape",
        "three-cornered shape",
        "*triangular form",
    ),
    "star": (
        "star",
        "star shape",
        "five-pointed star",
        "star-shaped thing",
        "starfish",
        "pentagram",
        "*star-shaped form",
    ),
    "heart": (
        "heart",
        "heart shape",
        "love heart",
        "valentine heart",
        "heart-shaped object",
        "heart symbol",
        "valentine",
        "*heart-shaped form",
    ),
    "cross": (
        "cross",
        "plus sign",
        "plus",
        "cross shape",
        "plus symbol",
        "cross-shaped thing",
        "plus shape",
        "addition sign",
        "cross symbol",
        "*cross-shaped form",
    ),
}
# What a shape is called together with a noun that says nothing, as "the round one"
SHAPE_ADJECTIVES = {
    "circle": ("round", "circular"),
    "square": ("square", "boxy"),
    "triangle": ("triangular", "three-cornered", "pointy"),
    "star": ("star-shaped", "starry"),
    "heart": ("heart-shaped",),
    "cross": ("cross-shaped", "plus-shaped"),
}
THING_WORDS = ("thing", "shape", "object", "figure", "item", "one", "element", "symbol")
ALL_WORDS = (
    "everything",
    "all of them",
    "all the shapes",
    "all shapes",
    "all the things",
    "all objects",
    "every shape",
    "each thing",
    "all",
    "them all",
    "every object",
    "*all things",
    "*every thing",
    "*all the objects",
)
BOTH_WORDS = ("both", "both shapes", "both of them", "both things", "*both objects")

SIZE_WORDS = {
    "small": (
        "small",
        "little",
        "tiny",
        "mini",
        "miniature",
        "small-sized",
        "minuscule",
        "very small",
        "teeny",
        "wee",
        "compact",
        "*very little",
    ),
    "medium": (
        "medium-sized",
        "medium",
        "mid-sized",
        "normal-sized",
        "average-sized",
        "medium size",
        "middle-sized",
        "*normal",
        "*average",
    ),
    "large": (
        "large",
        "big",
        "huge",
        "giant",
        "enormous",
        "massive",
        "very big",
        "gigantic",
        "oversized",
        "large-sized",
        "sizable",
        "great big",
        "*very large",
    ),
}
COMPARED_SIZE_WORDS = {
    "small": ("smaller", "smallest", "littler", "tiniest"),
    "large": ("bigger", "biggest", "larger", "largest"),
}

DIRECTION_WORDS = {
    "right": (
        "right",
        "east",
        "to the east",
        "eastward",
        "*eastwards",
        "to the right",
        "rightwards",
        "rightward",
        "towards the right",
        "from left to right",
        "to the right side",
        "toward the right side",
        "to the right edge",
        "across to the right",
        "rightwards across the screen",
        "*toward the right",
        "*towards the right edge",
    ),
    "left": (
        "left",
        "west",
        "to the west",
        "westward",
        "*westwards",
        "to the left",
        "leftwards",
        "leftward",
        "toward the left",
        "from right to left",
        "to the left side",
        "towards the left edge",
        "across to the left",
        "*towards the left",
        "*toward the left side",
    ),
    "up": (
        "up",
        "north",
        "to the north",
        "northward",
        "*northwards",
        "upwards",
        "upward",
        "to the top",
        "towards the top",
        "from bottom to top",
        "straight up",
        "up the screen",
        "to the upper edge",
        "toward the sky",
        "*toward the top",
        "*to the top edge",
    ),
    "down": (
        "down",
        "south",
        "to the south",
        "southward",
        "*southwards",
        "downwards",
        "downward",
        "to the bottom",
        "toward the bottom",
        "from top to bottom",
        "straight down",
        "down the screen",
        "to the bottom edge",
        "toward the ground",
        "*towards the bottom",
        "*to the lower edge",
    ),
}
_VERTICALS = {
    "up": ("up", "upwards", "top", "upper", "north"),
    "down": ("down", "downwards", "bottom", "lower", "south"),
}
for _vertical, (_way, _wards, _edge, _adjective, _pole) in _VERTICALS.items():
    for _side, _quarter in (("right", "east"), ("left", "west")):
        DIRECTION_WORDS[f"{_vertical}-{_side}"] = (
            f"{_way} and to the {_side}",
            f"to the {_adjective} {_side}",
            f"diagonally {_way} and {_side}",
            f"{_way} and {_side}",
            f"to the {_edge} {_side}",
            f"{_way}-{_side}",
            f"to the {_side} and {_way}",
            f"diagonally to the {_edge} {_side}",
            f"toward the {_edge} {_side} corner",
            f"{_wards} and to the {_side}",
            f"{_way} {_side}",
            f"{_pole}{_quarter}",
            f"to the {_pole}{_quarter}",
            f"off to the {_adjective} {_side}",
            f"diagonally {_way} to the {_side}",
            f"*to the {_edge} {_side} corner",
            f"*diagonally to the {_adjective} {_side}",
            f"*{_side} and {_way}",
        )

# Verbs of movement: told, continuing and ordered
MOVE_WORDS: tuple[str, ...] = (
    "moves|moving|move",
    "slides|sliding|slide",
    "drifts|drifting|drift",
    "glides|gliding|glide",
    "floats|floating|float",
    "goes|going|go",
    "travels|traveling|travel",
    "flies|flying|fly",
    "heads|heading|head",
    "runs|running|run",
    "wanders|wandering|wander",
    "shifts|shifting|shift",
    "rolls|rolling|roll",
    "walks|walking|walk",
    "sails|sailing|sail",
    "crawls|crawling|crawl",
    "creeps|creeping|creep",
    "swims|swimming|swim",
    "cruises|cruising|cruise",
    "scrolls|scrolling|scroll",
    "progresses|progressing|progress",
    "is moving|that is moving|be moving",
)
# Those that say the direction by themselves
DIRECTED_MOVE_WORDS = {
    "up": ("rises|rising|rise", "ascends|ascending|ascend", "climbs|climbing|climb"),
    "down": (
        "falls|falling|fall",
        "sinks|sinking|sink",
        "drops|dropping|drop",
        "descends|descending|descend",
    ),
}
STILL_WORDS = (
    "stays still|staying still|stay still",
    "does not move|not moving|not move",
    "stands still|standing still|stand still",
    "rests|resting|rest",
    "stays in place|at rest|stay in place",
    "is motionless|motionless|be motionless",
    "stays put|staying put|stay put",
    "doesn't move|that does not move|hold still",
    "is still|still|be still",
    "is static|static|be static",
    "sits still|sitting still|sit still",
    "hovers in place|hovering in place|hover in place",
    "is frozen|frozen|be frozen",
    "is at rest|that is at rest|be at rest",
    "remains in place|stationary|be stationary",
    "*stands in place|that stays still|stand in place",
    "*rests in place|resting in place|rest in place",
)

# What stands before a noun instead, as "the motionless one"
STILL_ADJECTIVES = ("still", "motionless", "static", "resting", "*unmoving")

PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "at the left", "on the left side", "at the left edge", "*on the left edge"),
    "right": ("on the right", "at the right", "on the right side", "at the right edge", "*at the right side"),
    "top": ("at the top", "in the upper half", "near the top", "at the upper edge", "up top", "*at the top edge"),
    "bottom": ("at the bottom", "in the lower half", "near the bottom", "at the lower edge", "*at the bottom edge"),
    "middle": ("in the middle", "in the center", "in the centre", "at the center", "centered", "*in the very middle"),
}
for _edge, _adjective in (("top", "upper"), ("bottom", "lower")):
    for _side in ("left", "right"):
        PLACE_WORDS[f"{_edge} {_side}"] = (
            f"in the {_edge} {_side} corner",
            f"at the {_edge} {_side}",
            f"in the {_edge} {_side}",
            f"in the {_adjective} {_side}",
            f"in the {_adjective} {_side} corner",
            f"on the {_edge} {_side}",
            f"in the {_side} {_edge} corner",
            f"*at the {_adjective} {_side}",
            f"*near the {_edge} {_side} corner",
            f"*in the corner at the {_edge} {_side}",
        )
# What stands before a noun instead, as "the left one"
PLACE_ADJECTIVES = {
    "left": ("left", "leftmost", "left-hand"),
    "right": ("right", "rightmost", "right-hand"),
    "top": ("top", "upper", "topmost"),
    "bottom": ("bottom", "lower", "lowest"),
    "middle": ("middle", "central", "center"),
    "top left": ("top left", "upper left"),
    "top right": ("top right", "upper right"),
    "bottom left": ("bottom left", "lower left"),
    "bottom right": ("bottom right", "lower right"),
}

GROUND_WORDS = ("background", "backdrop", "back", "ground", "canvas", "surface", "bg", "wallpaper")
# What a background is: an adjective, and with a preposition or an article a noun
GROUND_ADJECTIVES = {
    "striped": ("striped", "stripy", "*stripey"),
    "checkered": ("checkered", "chequered", "checked", "checkerboard", "*chessboard"),
    "white": ("white", "plain white", "solid white", "snow white", "bright white", "*pure white"),
    "black": ("black", "plain black", "solid black", "pitch black", "dark", "pure black", "*deep black"),
}
GROUND_ADJECTIVES |= {name: (*COLOR_WORDS[name], f"plain {name}", f"solid {name}") for name in COLORS}
GROUND_NOUNS = {
    "striped": (
        "stripes",
        "a striped pattern",
        "a stripe pattern",
        "lines",
        "zebra stripes",
        "horizontal stripes",
        "*a pattern of stripes",
    ),
    "checkered": (
        "a checkerboard",
        "checks",
        "a chessboard",
        "a checkered pattern",
        "a checker pattern",
        "a checkerboard pattern",
        "*a pattern of checks",
        "squares",
    ),
    **{
        name: (name, f"plain {name}", f"solid {name}", f"a {name} color")
        for name in BACKGROUNDS
        if name not in ("striped", "checkered")
    },
}
PREPOSITIONS = ("on", "over", "against", "in front of", "on top of", "across")

# How many times as often as another the common word comes up
COMMON = 6
# How many times as often new words come up where they may
NEW = 3


@dataclass
class Phrasing:
    """
    How something is said.

    Attributes:
        rng: the randomness of all choices.
        may_be_new: whether words and phrases may be used that training never has.
        is_new: whether one of them was.
        meaning: what was said, for each change or each thing that is described, and one for the background: by what it
            is about, such as `kind`, `color` and `place`, a word of the world's.
    """

    rng: np.random.Generator
    may_be_new: bool = False
    is_new: bool = field(default=False, init=False)
    meaning: list[dict[str, str]] = field(default_factory=list, init=False)

    def pick(self, options: Sequence[str]) -> str:
        """Draws one of the words or phrases, the first more often than each of the others."""
        weights = [
            (NEW if self.may_be_new else 0) if option.startswith("*") else 1 + (place == 0) * min(COMMON, len(options))
            for place, option in enumerate(options)
        ]
        chosen = self.among(options, weights)
        self.is_new |= chosen.startswith("*")
        return chosen.removeprefix("*")

    def among(self, options: Sequence[Choice], weights: Sequence[float] | None = None) -> Choice:
        """Draws one of any options."""
        shares = None if weights is None else np.array(weights) / sum(weights)
        return options[int(self.rng.choice(len(options), p=shares))]

    def happens(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def typed(text: str, rng: np.random.Generator) -> str:
    """Spells a sentence as people do: with and without capitals, marks and mistakes."""
    if rng.random() < 0.12:
        text = misspell(text, rng)
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + str(rng.choice(["", ".", "!", "?"], p=[0.7, 0.22, 0.06, 0.02]))


def misspell(text: str, rng: np.random.Generator) -> str:
    """Drops, doubles, swaps or replaces a letter of a word of five letters or more, if there is one."""
    words = text.split(" ")
    places = [place for place, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not places:
        return text
    place = places[rng.integers(len(places))]
    word = words[place]
    letter = int(rng.integers(1, len(word) - 1))
    words[place] = [
        word[:letter] + word[letter + 1 :],
        word[:letter] + word[letter] + word[letter:],
        word[:letter] + word[letter + 1] + word[letter] + word[letter + 2 :],
        word[:letter] + chr(ord("a") + rng.integers(26)) + word[letter + 1 :],
    ][rng.integers(4)]
    return " ".join(words)
