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
"""What people say to LoomVideo-nano: scenes described, and changes ordered and wished for."""

from collections.abc import Sequence

from .edits import Edit
from .words import (
    ALL_WORDS,
    BOTH_WORDS,
    COLOR_WORDS,
    COMPARED_SIZE_WORDS,
    DIRECTED_MOVE_WORDS,
    DIRECTION_WORDS,
    GROUND_ADJECTIVES,
    GROUND_NOUNS,
    GROUND_WORDS,
    MOVE_WORDS,
    PLACE_ADJECTIVES,
    PLACE_WORDS,
    PREPOSITIONS,
    SHAPE_ADJECTIVES,
    SHAPE_WORDS,
    SIZE_WORDS,
    STILL_ADJECTIVES,
    STILL_WORDS,
    THING_WORDS,
    Phrasing,
    with_article,
)
from .world import DIRECTIONS, SIZES, Scene, Thing


# How a change is ordered. {thing} is "the star", "it" or "everything"; {color} and {size} are words alone, {shape} and
# {new} have an article, {way} is a movement as after "let it", {where} a place; {on} is "on a white background",
# {ground} "a white background" and {adjective} "white". An asterisk marks what training never has.
ORDERS = {
    "recolor": (
        "make {thing} {color}",
        "turn {thing} to {color}",
        "make {thing} look {color}",
        "make {thing} a {color} color",
        "turn {thing} {color}",
        "paint {thing} {color}",
        "color {thing} {color}",
        "colour {thing} {color}",
        "change {thing} to {color}",
        "change the color of {thing} to {color}",
        "change the colour of {thing} to {color}",
        "give {thing} a {color} color",
        "recolor {thing} in {color}",
        "recolour {thing} {color}",
        "dye {thing} {color}",
        "set the color of {thing} to {color}",
        "switch {thing} to {color}",
        "tint {thing} {color}",
        "let {thing} be {color}",
        "have {thing} turn {color}",
        "fill {thing} with {color}",
        "render {thing} in {color}",
        "show {thing} in {color}",
        "turn the color of {thing} into {color}",
        "*recolor {thing} to {color}",
        "*paint {thing} in {color}",
        "*make the color of {thing} {color}",
        "*give {thing} the color {color}",
    ),
    "replace": (
        "turn {thing} into {shape}",
        "make {thing} into {shape}",
        "turn {thing} to {shape}",
        "have {shape} instead of {thing}",
        "replace {thing} with {shape}",
        "replace {thing} by {shape}",
        "change {thing} to {shape}",
        "change {thing} into {shape}",
        "make {thing} {shape}",
        "swap {thing} for {shape}",
        "transform {thing} into {shape}",
        "convert {thing} to {shape}",
        "exchange {thing} for {shape}",
        "substitute {shape} for {thing}",
        "morph {thing} into {shape}",
        "put {shape} in place of {thing}",
        "put {shape} where {thing} is",
        "make {shape} out of {thing}",
        "let {thing} become {shape}",
        "have {thing} be {shape}",
        "change the shape of {thing} to {shape}",
        "switch {thing} to {shape}",
        "use {shape} instead of {thing}",
        "show {shape} in place of {thing}",
        "*transform {thing} to {shape}",
        "*convert {thing} into {shape}",
        "*swap {thing} with {shape}",
        "*turn the shape of {thing} into {shape}",
    ),
    "bigger": (
        "make {thing} bigger",
        "size {thing} up",
        "make {thing} grow",
        "make {thing} twice as big",
        "double the size of {thing}",
        "have {thing} get bigger",
        "make {thing} larger",
        "enlarge {thing}",
        "scale {thing} up",
        "scale up {thing}",
        "increase the size of {thing}",
        "let {thing} be bigger",
        "grow {thing}",
        "let {thing} grow",
        "blow {thing} up",
        "give {thing} a bigger size",
        "increase {thing} in size",
        "expand {thing}",
        "magnify {thing}",
        "turn {thing} into a bigger one",
        "make {thing} a bit bigger",
        "*let {thing} be larger",
        "*make {thing} a bit larger",
        "*give {thing} a larger size",
    ),
    "smaller": (
        "make {thing} smaller",
        "size {thing} down",
        "make {thing} shrink",
        "make {thing} half as big",
        "halve the size of {thing}",
        "have {thing} get smaller",
        "shrink {thing}",
        "scale {thing} down",
        "scale down {thing}",
        "reduce the size of {thing}",
        "decrease the size of {thing}",
        "let {thing} be smaller",
        "let {thing} shrink",
        "reduce {thing} in size",
        "give {thing} a smaller size",
        "make {thing} a bit smaller",
        "minimize {thing}",
        "turn {thing} into a smaller one",
        "*have {thing} shrink",
        "*let {thing} be a bit smaller",
    ),
    "size": (
        "make {thing} {size}",
        "set {thing} to a {size} size",
        "give {thing} a {size} size",
        "let {thing} be {size}",
        "turn {thing} {size}",
        "make {thing} a {size} one",
        "change the size of {thing} to {size}",
        "set the size of {thing} to {size}",
        "change {thing} to {size}",
        "have {thing} be {size}",
        "*make the size of {thing} {size}",
        "*change {thing} to a {size} one",
    ),
    "redirect": (
        "let {thing} {way}",
        "make {thing} start to {way}",
        "let {thing} {way} instead",
        "have {thing} {way} from now on",
        "make {thing} {way}",
        "have {thing} {way}",
        "get {thing} to {way}",
        "change the motion of {thing} so that it {ways}",
        "make it so that {thing} {ways}",
        "see that {thing} {ways}",
        "*cause {thing} to {way}",
        "*make sure that {thing} {ways}",
    ),
    "direct": (
        "send {thing} {direction}",
        "move {thing} {direction}",
        "change the direction of {thing} to {direction}",
        "set the direction of {thing} to {direction}",
        "turn the movement of {thing} {direction}",
        "let the motion of {thing} be {direction}",
        "push {thing} {direction}",
        "slide {thing} {direction}",
        "animate {thing} {direction}",
        "have {thing} go {direction} instead",
        "make {thing} move {direction} instead",
        "*direct {thing} {direction}",
        "*change the motion of {thing} to {direction}",
    ),
    "reverse": (
        "reverse the direction of {thing}",
        "let {thing} move the other way",
        "make {thing} go the other way",
        "turn {thing} around",
        "make {thing} move in the opposite direction",
        "let {thing} go in the opposite direction",
        "reverse the motion of {thing}",
        "reverse {thing}",
        "have {thing} move the other way",
        "send {thing} the other way",
        "send {thing} back",
        "flip the direction of {thing}",
        "*let {thing} go the other way",
        "*make {thing} go in the opposite direction",
        "*flip the motion of {thing}",
    ),
    "stop": (
        "stop {thing}",
        "freeze {thing}",
        "halt {thing}",
        "make {thing} stop",
        "make {thing} stop moving",
        "stop {thing} from moving",
        "let {thing} rest",
        "keep {thing} in place",
        "keep {thing} still",
        "hold {thing} still",
        "stop the motion of {thing}",
        "do not let {thing} move",
        "freeze {thing} in place",
        "pause {thing}",
        "*hold {thing} in place",
        "*stop the movement of {thing}",
        "*let {thing} stop",
    ),
    "outline": (
        "draw only the outline of {thing}",
        "unfill {thing}",
        "draw a thin line around {thing} and leave it empty",
        "show nothing but the border of {thing}",
        "show {thing} as a wireframe",
        "make {thing} an outline",
        "show {thing} as an outline",
        "outline {thing}",
        "turn {thing} into an outline",
        "keep only the outline of {thing}",
        "keep only the contour of {thing}",
        "hollow out {thing}",
        "make {thing} hollow",
        "draw {thing} as an outline",
        "show just the edges of {thing}",
        "turn {thing} into a line drawing",
        "take the filling out of {thing}",
        "remove the fill of {thing}",
        "draw {thing} in outline style",
        "leave only the border of {thing}",
        "empty {thing}",
        "make {thing} an empty outline",
        "make {thing} a wireframe",
        "reduce {thing} to an outline",
        "reduce {thing} to its outline",
        "show only the contour of {thing}",
        "*leave only the outline of {thing}",
        "*draw just the contour of {thing}",
        "*turn {thing} into a contour",
    ),
    "remove": (
        "remove {thing}",
        "kick {thing} out",
        "kick out {thing}",
        "do away with {thing}",
        "i have no need for {thing}, remove it",
        "strike {thing}",
        "kill {thing}",
        "take {thing} off",
        "make {thing} be gone",
        "cut {thing}",
        "take {thing} out of the scene",
        "erase {thing}",
        "delete {thing}",
        "take away {thing}",
        "take {thing} away",
        "take {thing} out",
        "get rid of {thing}",
        "eliminate {thing}",
        "make {thing} disappear",
        "make {thing} vanish",
        "let {thing} disappear",
        "drop {thing}",
        "hide {thing}",
        "cut {thing} out",
        "clear {thing} away",
        "wipe {thing} out",
        "lose {thing}",
        "throw {thing} out",
        "make {thing} go away",
        "leave out {thing}",
        "scrap {thing}",
        "remove {thing} from the video",
        "*let {thing} vanish",
        "*throw {thing} away",
        "*have {thing} disappear",
        "*delete {thing} from the video",
    ),
    "add": (
        "add {new} {where}",
        "set down {new} {where}",
        "let {new} appear {where}",
        "bring {new} in {where}",
        "drop {new} {where}",
        "put {new} {where}",
        "place {new} {where}",
        "insert {new} {where}",
        "draw {new} {where}",
        "include {new} {where}",
        "show {new} {where}",
        "also put {new} {where}",
        "{where}, add {new}",
        "let there be {new} {where}",
        "paint {new} {where}",
        "bring in {new} {where}",
        "have {new} {where}",
        "give me {new} {where}",
        "add {new} that sits {where}",
        "*also add {new} {where}",
        "*{where}, put {new}",
        "*set {new} {where}",
    ),
    "background": (
        "change the background to {ground}",
        "make everything behind {thing} {adjective}",
        "make what is behind {thing} {adjective}",
        "fill what's behind {thing} with {noun}",
        "let {thing} move over {ground}",
        "use {ground} instead of this one",
        "go for {ground}",
        "put {noun} behind {thing}",
        "set {noun} behind {thing}",
        "make the whole background {adjective}",
        "turn the background to {adjective}",
        "make it {on}",
        "make the background {adjective}",
        "put {thing} {on}",
        "replace the background with {ground}",
        "give it {ground}",
        "set the background to {adjective}",
        "use {ground}",
        "turn the background {adjective}",
        "paint the background {adjective}",
        "color the background {adjective}",
        "change the background to {adjective}",
        "swap the background for {ground}",
        "place {thing} {on}",
        "make the backdrop {adjective}",
        "show {thing} {on}",
        "set {thing} {on}",
        "let the background be {adjective}",
        "switch to {ground}",
        "change the backdrop to {ground}",
        "turn the background into {noun}",
        "make the background {noun}",
        "replace the background by {noun}",
        "have {thing} {on}",
        "fill the background with {noun}",
        "change the color of the background to {adjective}",
        "*exchange the background for {ground}",
        "*turn the backdrop {adjective}",
        "*let the backdrop be {adjective}",
        "*give {thing} {ground}",
    ),
    "invert": (
        "invert the colors",
        "show it like a film negative",
        "turn all colors into their complements",
        "make a negative of the whole video",
        "do a color inversion",
        "make it a negative",
        "show it in inverted colors",
        "invert everything",
        "invert the video",
        "invert it",
        "turn it into a negative",
        "reverse the colors",
        "reverse all colors",
        "flip the colors",
        "flip all the colors",
        "invert all colors",
        "show the negative",
        "make a photo negative of it",
        "use inverted colors",
        "swap all colors for their opposites",
        "make the colors inverted",
        "invert the colours",
        "negate the colors",
        "turn every color into its opposite",
        "*turn the video into a negative",
        "*invert the colors of everything",
        "*flip the colours",
        "*show everything in inverted colors",
    ),
}
# How it is wished for
WISHES = {
    "recolor": (
        "{thing} should be {color}",
        "can {thing} be {color}",
        "could {thing} be {color}",
        "{thing} to {color}",
        "{thing} -> {color}",
        "i want to see {thing} in {color}",
        "i'd love {thing} to be {color}",
        "{thing} ought to be {color} now",
        "let me see {thing} in {color}",
        "i want {thing} to be {color}",
        "i would like {thing} to be {color}",
        "i'd like {thing} {color}",
        "i want {thing} {color}",
        "i want {thing} in {color}",
        "{thing} in {color}",
        "{thing} must be {color}",
        "{thing} needs to be {color}",
        "{thing} has to be {color}",
        "what if {thing} was {color}",
        "what if {thing} were {color}",
        "{thing} would look better in {color}",
        "i'd prefer {thing} in {color}",
        "{thing} is supposed to be {color}",
        "it would be nice if {thing} was {color}",
        "{thing} but {color}",
        "how about {thing} in {color}",
        "{thing}: {color}",
        "{thing} becomes {color}",
        "{thing} turns {color}",
        "i wish {thing} were {color}",
        "{thing} is {color} now",
        "*i would like {thing} in {color}",
        "*how about making {thing} {color}",
        "*{thing} ought to be {color}",
        "*it would be nice to have {thing} in {color}",
    ),
    "replace": (
        "{thing} should be {shape}",
        "{thing} is now {shape}",
        "i'd like to see {shape} where {thing} is",
        "can {thing} be {shape}",
        "could {thing} be {shape}",
        "{thing} to {shape}",
        "{thing} -> {shape}",
        "i want to see {shape} instead of {thing}",
        "instead of {thing}, {shape}",
        "instead of {thing} i want {shape}",
        "let me see {shape} instead of {thing}",
        "{thing} should become {shape}",
        "{thing} should turn into {shape}",
        "i want {thing} to be {shape}",
        "i want {thing} to become {shape}",
        "i want {shape} instead of {thing}",
        "{shape} instead of {thing}",
        "{shape} in place of {thing}",
        "i would like {shape} instead of {thing}",
        "i'd rather have {shape} than {thing}",
        "{thing} as {shape}",
        "there should be {shape} instead of {thing}",
        "{thing} must be {shape}",
        "{thing} needs to be {shape}",
        "what if {thing} was {shape}",
        "{thing} becomes {shape}",
        "{thing} turns into {shape}",
        "how about {shape} instead of {thing}",
        "it would be nice if {thing} was {shape}",
        "i prefer {shape} to {thing}",
        "not {thing} but {shape}",
        "{thing} is {shape} now",
        "*there should be {shape} in place of {thing}",
        "*{thing} has to be {shape}",
        "*i would like {thing} to be {shape}",
        "*i wish {thing} were {shape}",
    ),
    "bigger": (
        "{thing} should be bigger",
        "can {thing} be bigger",
        "could {thing} be larger",
        "{thing} bigger",
        "i want to see {thing} bigger",
        "i want {thing} bigger",
        "i want {thing} to be larger",
        "i would like {thing} to be bigger",
        "{thing} must be bigger",
        "{thing} needs to be bigger",
        "a bigger version of {thing}",
        "{thing} is too small",
        "bigger {thing} please",
        "{thing} could be larger",
        "{thing} but bigger",
        "what if {thing} was larger",
        "*{thing} must be larger",
        "*i'd like {thing} bigger",
    ),
    "smaller": (
        "{thing} should be smaller",
        "can {thing} be smaller",
        "could {thing} be smaller",
        "{thing} smaller",
        "i want to see {thing} smaller",
        "i want {thing} smaller",
        "i want {thing} to be smaller",
        "i would like {thing} to be smaller",
        "{thing} must be smaller",
        "{thing} needs to be smaller",
        "a smaller version of {thing}",
        "{thing} is too big",
        "{thing} is too large",
        "{thing} could be smaller",
        "{thing} but smaller",
        "what if {thing} was smaller",
        "*{thing} has to be smaller",
        "*i'd like {thing} smaller",
    ),
    "size": (
        "{thing} should be {size}",
        "can {thing} be {size}",
        "could {thing} be {size}",
        "i want a {size} version of {thing}",
        "i want {thing} to be {size}",
        "i want {thing} {size}",
        "{thing} must be {size}",
        "i would like {thing} to be {size}",
        "what if {thing} was {size}",
        "{thing} but {size}",
        "{thing} needs to be {size}",
        "*i'd like {thing} {size}",
        "*{thing} has to be {size}",
    ),
    "redirect": (
        "{thing} should {way}",
        "{thing} is supposed to {way} now",
        "from now on {thing} {ways}",
        "it's time for {thing} to {way}",
        "can {thing} {way}",
        "could {thing} {way}",
        "i'd love {thing} to {way}",
        "i want to see {thing} {moving}",
        "{thing} ought to {way} now",
        "i want {thing} to {way}",
        "i would like {thing} to {way}",
        "{thing} must {way}",
        "{thing} needs to {way}",
        "{thing} is supposed to {way}",
        "what if {thing} would {way}",
        "it would be nice if {thing} would {way}",
        "{thing} {ways}",
        "{thing} has to {way}",
        "{thing} {moving}",
        "i want {thing} {moving}",
        "{thing} now {ways}",
        "*i'd like {thing} to {way}",
        "*{thing} ought to {way}",
        "*how about {thing} {moving}",
    ),
    "outline": (
        "{thing} should be an outline",
        "{thing} hollow",
        "{thing} should only be a thin line",
        "{thing} as a wireframe",
        "{thing} unfilled",
        "can {thing} be an outline",
        "could {thing} be hollow",
        "i want to see just the outline of {thing}",
        "{thing} should be hollow",
        "i want {thing} as an outline",
        "i want {thing} to be an outline",
        "only the outline of {thing}",
        "just the contour of {thing}",
        "just the outline of {thing}",
        "{thing} as an outline",
        "{thing} in outline style",
        "i want only the outline of {thing}",
        "i want to see only the edges of {thing}",
        "{thing} should not be filled",
        "{thing} should be empty inside",
        "i want {thing} hollow",
        "{thing} without the filling",
        "*only the contour of {thing}",
        "*{thing} must be hollow",
        "*i'd like {thing} as an outline",
    ),
    "remove": (
        "{thing} should disappear",
        "i have no need for {thing}",
        "{thing} is not needed",
        "{thing} away",
        "{thing} gone",
        "no {thing}",
        "no more {thing}",
        "can {thing} go away",
        "could {thing} disappear",
        "can you do without {thing}",
        "everything but {thing}",
        "{thing} should go",
        "{thing} should go away",
        "i don't want {thing}",
        "i do not want {thing}",
        "i want {thing} gone",
        "i don't want to see {thing}",
        "{thing} has to go",
        "{thing} must go",
        "{thing} should not be there",
        "{thing} should be gone",
        "without {thing}",
        "i don't need {thing}",
        "the video without {thing}",
        "{thing} needs to go",
        "i want {thing} removed",
        "there should be no sign of {thing}",
        "{thing} disappears",
        "{thing} must not be there",
        "*{thing} should vanish",
        "*i do not need {thing}",
        "*i want {thing} to be gone",
        "*{thing} has to disappear",
    ),
    "add": (
        "there should be {new} {where}",
        "{new} has to appear {where}",
        "{new} should appear {where}",
        "i'd like a new thing: {new} {where}",
        "can there be {new} {where}",
        "could we have {new} {where}",
        "can we have {new} {where}",
        "i'd love {new} {where}",
        "{where}, {new}",
        "i want {new} {where}",
        "i want to have {new} {where}",
        "i would like {new} {where}",
        "i'd like to see {new} {where}",
        "also {new} {where}",
        "{new} {where} too",
        "{new} {where}",
        "with {new} {where}",
        "there must be {new} {where}",
        "i need {new} {where}",
        "{where} there should be {new}",
        "how about {new} {where}",
        "{new} should be {where}",
        "what is missing is {new} {where}",
        "*i would like to see {new} {where}",
        "*{new} must be {where}",
        "*it would be nice to have {new} {where}",
    ),
    "background": (
        "the background should be {adjective}",
        "{noun} in the background",
        "{noun} as the background",
        "i want to see {ground}",
        "i'd rather have {ground}",
        "with {noun} as background",
        "{noun} behind {thing}",
        "i'd like {noun} behind {thing}",
        "can the background be {adjective}",
        "can we have {ground}",
        "could the background be {adjective}",
        "background: {adjective}",
        "background {adjective}",
        "the background to {adjective}",
        "i want the background to be {adjective}",
        "i want {ground}",
        "{ground} please",
        "i would like {ground}",
        "{thing} should be {on}",
        "the background must be {adjective}",
        "i want {thing} {on}",
        "{adjective} background",
        "{on}",
        "{thing} {on}",
        "{ground} instead",
        "the background in {adjective}",
        "with {ground}",
        "what if the background was {adjective}",
        "the background needs to be {adjective}",
        "it should be {on}",
        "how about {ground}",
        "there should be {noun} in the background",
        "the same {on}",
        "the background becomes {adjective}",
        "*the background has to be {adjective}",
        "*i'd like {ground}",
        "*the backdrop should be {adjective}",
        "*what about {ground}",
    ),
    "invert": (
        "inverted colors",
        "color inversion",
        "a film negative of it",
        "every color inverted",
        "i want every color inverted, the background too",
        "negative style",
        "i want it as a negative",
        "all colors should be inverted",
        "as a negative",
        "like a photo negative",
        "the colors should be inverted",
        "i want inverted colors",
        "i'd like the negative of this",
        "the negative",
        "*the colors must be inverted",
        "*i would like inverted colors",
        "*it should be a negative",
    ),
    # When all things are meant, or the only one, they need no names.
    "outline all": (
        "outline style",
        "outlines only",
        "only outlines",
        "just outlines",
        "as a line drawing",
        "as outlines",
        "line art",
        "just the outlines",
        "draw only outlines",
        "show outlines only",
        "turn it into line art",
        "only the contours",
        "no fill",
        "no filling, just the outline",
        "*show only outlines",
        "*just the contours",
        "*draw it as line art",
    ),
    "remove all": (
        "empty scene",
        "leave only the background",
        "clear the scene",
        "just the background",
        "only the background",
        "an empty background",
        "nothing but the background",
        "empty the scene",
        "keep only the background",
        "show nothing but the background",
        "i want to see only the background",
        "*an empty scene",
        "*i want nothing but the background",
    ),
    "recolor the only one": (
        "a {color} one instead",
        "i don't like {old}, use {color}",
        "use {color} instead",
        "use {color}",
        "go for {color}",
        "{color} instead",
        "can it be {color}",
        "no, {color}",
        "in {color} please",
        "{color} please",
        "i want a {color} one",
        "the same in {color}",
        "the same thing but {color}",
        "the color should be {color}",
        "change the color to {color}",
        "{color} instead of {old}",
        "not {old} but {color}",
        "make that {color}",
        "i'd like a {color} one",
        "a {color} {old_shape} instead",
        "now in {color}",
        "from {old} to {color}",
        "i meant a {color} {old_shape}",
        "*the same but in {color}",
        "*the color must be {color}",
        "*i would like a {color} one",
    ),
    "replace the only one": (
        "{shape} instead",
        "use {shape} instead",
        "a video of {shape} instead",
        "no, {shape}",
        "i want {shape}",
        "i'd rather have {shape}",
        "the same but with {shape}",
        "{shape} please",
        "the shape should be {shape}",
        "change the shape to {shape}",
        "now with {shape}",
        "i meant {shape}",
        "*i would rather have {shape}",
        "*the shape must be {shape}",
    ),
}
ORDERS_BY_REFERENCE = {
    "recolor": (
        "make {thing} the color of {image}",
        "give {thing} the color in {image}",
        "paint {thing} in the color of {image}",
        "make {thing} as {image} is colored",
        "recolor {thing} like {image}",
        "color {thing} like {image}",
        "use the color of {image} for {thing}",
        "{thing} should have the color of {image}",
        "i want {thing} in the color of {image}",
        "give {thing} the colour of {image}",
        "take the color from {image} for {thing}",
        "apply the color of {image} to {thing}",
        "{thing} should be colored like {image}",
        "change the color of {thing} to that of {image}",
        "make {thing} the same color as {image}",
        "paint {thing} like the one in {image}",
        "match the color of {thing} to {image}",
        "*give {thing} the same color as {image}",
        "*color {thing} like the one in {image}",
        "*{thing} must have the color of {image}",
        "*i want {thing} colored like {image}",
    ),
    "replace": (
        "turn {thing} into the shape of {image}",
        "give {thing} the shape in {image}",
        "replace {thing} with the shape of {image}",
        "make {thing} the shape of {image}",
        "change {thing} to the shape in {image}",
        "{thing} should have the shape of {image}",
        "i want {thing} to have the shape of {image}",
        "use the shape of {image} for {thing}",
        "shape {thing} like {image}",
        "make {thing} shaped like {image}",
        "take the shape from {image} for {thing}",
        "apply the shape of {image} to {thing}",
        "change the shape of {thing} to that of {image}",
        "make {thing} the same shape as {image}",
        "{thing} should be shaped like the one in {image}",
        "transform {thing} into the form in {image}",
        "give {thing} the form of {image}",
        "*give {thing} the same shape as {image}",
        "*shape {thing} like the one in {image}",
        "*{thing} must have the shape of {image}",
        "*i want {thing} shaped like {image}",
    ),
    "background": (
        "use the background of {image}",
        "put {thing} on the background of {image}",
        "change the background to that of {image}",
        "put {thing} on {image}",
        "replace the background with {image}",
        "take the background from {image}",
        "the background should be that of {image}",
        "i want the background of {image}",
        "use {image} as the background",
        "make the background like {image}",
        "set {image} as the backdrop",
        "change the background to {image}",
        "place {thing} in front of {image}",
        "give it the background of {image}",
        "the background should look like {image}",
        "swap the background for {image}",
        "show {thing} over {image}",
        "*use {image} as the backdrop",
        "*place {thing} on {image}",
        "*make the background that of {image}",
        "*i want {image} as the background",
    ),
}
# What a thing in a picture is called
SUBJECTS = (
    "@Image 1",
    "the shape in @Image 1",
    "the {shape} in @Image 1",
    "the thing in @Image 1",
    "the {shape} of @Image 1",
    "the object from @Image 1",
    "what is in @Image 1",
    "*the thing of @Image 1",
    "*the object in @Image 1",
)
MIXED_SUBJECTS = (
    "the shape of @Image 1 in the color of @Image 2",
    "a shape as in @Image 1, colored like @Image 2",
    "the shape in @Image 1 with the color of @Image 2",
    "the shape from @Image 1 in the colour of @Image 2",
    "something shaped like @Image 1 and colored like @Image 2",
    "a thing with the shape of @Image 1 and the color of @Image 2",
    "*the shape of @Image 1 colored like @Image 2",
    "*something with the shape of @Image 1 and the color of @Image 2",
)
ON_IMAGE = (
    "on @Image 2",
    "over the background of @Image 2",
    "in front of @Image 2",
    "on the background of @Image 2",
    "over @Image 2",
    "against @Image 2",
    "*on top of @Image 2",
    "*in front of the background of @Image 2",
)
# What stands around a change, in the place of {}
COURTESIES = (
    "please {}",
    "{}, please",
    "can you {}",
    "could you {}",
    "could you please {}",
    "i want you to {}",
    "now {}",
    "would you {}",
    "{} please",
    "just {}",
    "can you {} for me",
    "i need you to {}",
    "let's {}",
    "try to {}",
    "*can you please {}",
    "*now please {}",
)
# What comes before all
OPENINGS = (
    "ok, ",
    "so, ",
    "hi, ",
    "hmm, ",
    "next, ",
    "while you're at it, ",
    "one more thing: ",
    "and ",
    "*well, ",
    "*oh, ",
)
REST = (
    " and nothing else",
    ", nothing else",
    ", leave the rest as it is",
    " and keep everything else the same",
    ", keep the rest",
    " but change nothing else",
    ". keep everything else as it was",
    " without changing anything else",
    "*, and leave everything else as it is",
    "* but keep the rest",
)
JOINTS = (
    " and ",
    ", ",
    " and then ",
    ", then ",
    "; ",
    ". then ",
    " and also ",
    ". ",
    ", and ",
    " plus ",
    "*, and then ",
    "*. also, ",
)
PRONOUNS = ("it", "this", "that")

# How a scene is described: {np} is "a red star", {told} and {moving} are movements as in "it moves up" and "moving up"
VIDEO_CAPTIONS = (
    "{np} {told}{on}",
    "could i have {np} {moving}{on}",
    "how about {np} {moving}{on}",
    "can you show me {np} {moving}{on}",
    "please make a clip of {np} {moving}{on}",
    "give me {np} {moving}{on}",
    "there's {np} {moving}{on}",
    "one {np} {moving}{on}",
    "i want to watch {np} {moving}{on}",
    "let {np} {way}{on}",
    "{np} {moving}{on}",
    "{np}, {moving}{on}",
    "{on}, {np} {told}",
    "{on}, {np}, {moving}",
    "a video of {np} {moving}{on}",
    "a clip of {np} {moving}{on}",
    "a video of {np} that {told}{on}",
    "show {np} {moving}{on}",
    "show me {np} that {told}{on}",
    "there is {np} that {told}{on}",
    "{np} that {told}{on}",
    "i want to see {np} {moving}{on}",
    "i want {np} {moving}{on}",
    "{np} which {told}{on}",
    "animate {np} {moving}{on}",
    "draw {np} {moving}{on}",
    "make {np} {moving}{on}",
    "generate {np} {moving}{on}",
    "{np}. it {told}{on}",
    "{np} is {moving}{on}",
    "{np} {on}, {moving}",
    "please show {np} {moving}{on}",
    "*a clip of {np} that {told}{on}",
    "*show me {np} {moving}{on}",
    "*i want to see {np} that {told}{on}",
    "*an animation of {np} {moving}{on}",
)
LISTS = (
    "{}",
    "there are {}",
    "show {}",
    "a video of {}",
    "i want to see {}",
    "{number} shapes: {}",
    "{number} things: {}",
    "i want {}",
    "draw {}",
    "*show me {}",
    "*i want {number} shapes: {}",
)
IMAGE_CAPTIONS = (
    "{np}{on}",
    "could i have {np}{on}",
    "how about {np}{on}",
    "give me {np}{on}",
    "can you show me {np}{on}",
    "there's {np}{on}",
    "one {np}{on}",
    "a picture of {np}{on}",
    "an image of {np}{on}",
    "{on}, {np}",
    "a drawing of {np}{on}",
    "show {np}{on}",
    "draw {np}{on}",
    "show me {np}{on}",
    "there is {np}{on}",
    "i want to see {np}{on}",
    "a photo of {np}{on}",
    "paint {np}{on}",
    "i want {np}{on}",
    "a picture with {np}{on}",
    "*draw me {np}{on}",
    "*an image with {np}{on}",
    "*show me a picture of {np}{on}",
)


def ask(scene: Scene, places: Sequence[str], edits: Sequence[Edit], phrasing: Phrasing) -> str:
    """Asks for changes of a scene, whose things are at `places`, in the order of the changes."""
    requests: list[str] = []
    named: tuple[int, ...] = ()
    phrasing.meaning = []
    for edit in edits:
        thing, said = _name_again(edit.indexes, named, phrasing) or name_things(scene, places, edit.indexes, phrasing)
        is_wish = phrasing.happens(0.45)
        template, value = _template(scene, edit, is_wish, phrasing)
        words = _words(scene, edit, phrasing)
        request = template.format(**words, thing=thing).strip()
        if not is_wish and phrasing.happens(0.2):
            request = phrasing.pick(COURTESIES).format(request)
        requests.append(request)
        if isinstance(edit.value, Thing):
            said = describe_fully(edit.value, edit.place)
        elif not edit.indexes or "{thing}" not in template:
            said = {}
        phrasing.meaning.append({"kind": edit.kind, "value": value} | said)
        named = edit.indexes
    text = phrasing.pick(JOINTS).join(requests)
    if phrasing.happens(0.06):
        text = f"two changes: {text}" if len(edits) > 1 and phrasing.happens(0.4) else phrasing.pick(OPENINGS) + text
    if phrasing.happens(0.06) and edits[0].kind != "invert":
        text += phrasing.pick(REST)
    return tidy(text)


def _template(scene: Scene, edit: Edit, is_wish: bool, phrasing: Phrasing) -> tuple[str, str]:
    """How to order a change, or to wish for it, and what it is then changed to."""
    form, value = edit.kind, edit.value if isinstance(edit.value, str) else ""
    things = [scene.things[index] for index in edit.indexes]
    if edit.kind == "redirect" and not is_wish:
        form = phrasing.among(("redirect", "stop" if value == "still" else "direct"))
        is_back = value != "still" and {thing.direction for thing in things} == {direction_back(value)}
        if is_back and phrasing.happens(0.4):
            form = value = "reverse"
    if edit.kind == "resize":
        sizes = list(SIZES)
        steps = {sizes.index(value) - sizes.index(thing.size) for thing in things}
        form = "size"
        if steps in ({1}, {-1}) and phrasing.happens(0.6):
            form = value = "bigger" if steps == {1} else "smaller"
    if f"{form} all" in WISHES and len(edit.indexes) == len(scene.things) and phrasing.happens(0.2):
        return phrasing.pick(WISHES[f"{form} all"]), value
    if is_wish and len(scene.things) == 1 and f"{form} the only one" in WISHES and phrasing.happens(0.4):
        form = f"{form} the only one"
    return phrasing.pick(WISHES[form] if is_wish else ORDERS[form]), value


def direction_back(direction: str) -> str:
    """The direction against another one."""
    step = DIRECTIONS[direction]
    return next(name for name, other in DIRECTIONS.items() if other == (-step[0], -step[1]))


def _words(scene: Scene, edit: Edit, phrasing: Phrasing) -> dict[str, str]:
    """What the places in a template stand for."""
    if edit.kind == "recolor":
        old = scene.things[edit.indexes[0]]
        words = {
            "color": COLOR_WORDS[str(edit.value)],
            "old": COLOR_WORDS[old.color],
            "old_shape": SHAPE_WORDS[old.shape],
        }
        return {name: phrasing.pick(options) for name, options in words.items()}
    if edit.kind == "replace":
        word = phrasing.pick(SHAPE_WORDS[str(edit.value)])
        is_plural = len(edit.indexes) > 1 and " " not in word and phrasing.happens(0.6)
        return {"shape": f"{word}s".replace("ss", "sses") if is_plural else with_article(word)}
    if edit.kind == "resize":
        return {"size": phrasing.pick(SIZE_WORDS[str(edit.value)])}
    if edit.kind == "redirect":
        ways, moving, way = move(str(edit.value), phrasing)
        direction = "" if edit.value == "still" else phrasing.pick(DIRECTION_WORDS[str(edit.value)])
        return {"ways": ways, "moving": moving, "way": way, "direction": direction}
    if edit.kind == "background":
        return describe_background(str(edit.value), phrasing)
    if isinstance(edit.value, Thing):
        where = phrasing.pick(PLACE_WORDS[edit.place])
        return {"new": describe(edit.value, phrasing), "where": where}
    return {}


def ask_by_reference(scene: Scene, places: Sequence[str], edit: Edit, phrasing: Phrasing) -> str:
    """Asks for a change whose value is to be seen in the first reference image."""
    thing, said = name_things(scene, places, edit.indexes, phrasing)
    request = phrasing.pick(ORDERS_BY_REFERENCE[edit.kind]).format(thing=thing, image="@Image 1")
    phrasing.meaning = [{"kind": edit.kind, "value": "image"} | (said if edit.indexes else {})]
    return tidy(request)


def name_things(
    scene: Scene, places: Sequence[str], indexes: Sequence[int], phrasing: Phrasing
) -> tuple[str, dict[str, str]]:
    """
    Names one of a scene's things, or all of them, so that it is clear which are meant.

    Returns:
        The words, and what they say of it.
    """
    if len(scene.things) > 1 and len(indexes) != 1:
        is_pair = len(scene.things) == 2 and phrasing.happens(0.3)
        return phrasing.pick(BOTH_WORDS if is_pair else ALL_WORDS), {"number": "all"}
    if len(scene.things) > 1:
        return _tell_apart(scene, places, indexes[0], phrasing)
    if not scene.things or phrasing.happens(0.25):
        return phrasing.pick(PRONOUNS), {}
    thing, nouns = scene.things[0], [word for word in THING_WORDS if word != "one"]
    noun = phrasing.pick(SHAPE_WORDS[thing.shape]) if phrasing.happens(0.75) else phrasing.pick(nouns)
    adjective = phrasing.pick(COLOR_WORDS[thing.color]) if phrasing.happens(0.25) else ""
    return _determine(f"{adjective} {noun}".strip(), phrasing), {}


def _tell_apart(scene: Scene, places: Sequence[str], index: int, phrasing: Phrasing) -> tuple[str, dict[str, str]]:
    """Names one thing of several by what it alone has: its shape, color, size, place or movement."""
    thing = scene.things[index]
    is_own_shape = all(thing.shape != other.shape for place, other in enumerate(scene.things) if place != index)
    before, after = _distinctions(scene, places, index, phrasing)
    if is_own_shape and phrasing.happens(0.09):
        adjective, noun = phrasing.pick(SHAPE_ADJECTIVES[thing.shape]), phrasing.pick(("one", *THING_WORDS))
        return _determine(f"{adjective} {noun}", phrasing, noun == "one"), {"shape": thing.shape}
    said, words = {}, ["", "", ""]
    if is_own_shape and (phrasing.happens(0.55) or not before + after):
        said["shape"], words[1] = thing.shape, phrasing.pick(SHAPE_WORDS[thing.shape])
        chosen = [phrasing.happens(0.4) and len(before) > 0, phrasing.happens(0.12) and len(after) > 0]
    else:
        words[1] = phrasing.pick(("one", "one", *THING_WORDS))
        is_before = len(before) > 0 and (not after or phrasing.happens(0.65))
        chosen = [is_before, not is_before]
    for position, options, is_chosen in zip((0, 2), (before, after), chosen):
        if is_chosen:
            about, value, forms = phrasing.among(options)
            words[position], said[about] = phrasing.pick(forms), value
    if words[:2] == ["", "one"] and not said.keys() & {"color"} and phrasing.happens(0.2):
        last = words[2].removeprefix("that is ").removeprefix("that ")
        return f"{phrasing.pick(('what is', 'whatever is', 'whichever is'))} {last}", said
    return _determine(" ".join(word for word in words if word), phrasing, words[1] == "one"), said


Distinction = tuple[str, str, Sequence[str]]


def _distinctions(
    scene: Scene, places: Sequence[str], index: int, phrasing: Phrasing
) -> tuple[list[Distinction], list[Distinction]]:
    """What one thing of several alone has, to say before a noun and after it: about what, the value, and its words."""
    thing = scene.things[index]
    others = [other for place, other in enumerate(scene.things) if place != index]
    before: list[Distinction] = []
    after: list[Distinction] = []
    if all(thing.size != other.size for other in others):
        before.append(("size", thing.size, SIZE_WORDS[thing.size]))
        is_largest = {other.radius < thing.radius for other in others}
        if len(is_largest) == 1:
            before.append(("size", thing.size, COMPARED_SIZE_WORDS["large" if True in is_largest else "small"]))
    if all(thing.color != other.color for other in others):
        color = COLOR_WORDS[thing.color][0]
        before += [("color", thing.color, COLOR_WORDS[thing.color])] * 3
        after.append(("color", thing.color, (f"that is {color}", f"in {color}")))
    side = _side(thing, others) or (places[index] if " " in places[index] or places[index] == "middle" else "")
    if side:
        before.append(("place", side, PLACE_ADJECTIVES[side]))
        after.append(("place", side, PLACE_WORDS[side]))
    if all(thing.direction != other.direction for other in others):
        told, moving, _ = move(thing.direction, phrasing)
        after.append(("direction", thing.direction, (moving if phrasing.happens(0.75) else f"that {told}",)))
        if thing.direction == "still":
            before.append(("direction", "still", STILL_ADJECTIVES))
        elif all(other.direction == "still" for other in others):
            before.append(("direction", thing.direction, ("moving",)))
    return before, after


def _side(thing: Thing, others: Sequence[Thing]) -> str:
    """The side of all others that a thing is clearly on, or nothing."""
    for axis, (lower, upper) in enumerate((("left", "right"), ("top", "bottom"))):
        distances = [thing.middle[axis] - other.middle[axis] for other in others]
        if max(distances) < -15:
            return lower
        if min(distances) > 15:
            return upper
    return ""


def _determine(noun: str, phrasing: Phrasing, is_sure: bool = False) -> str:
    """Puts an article before a noun, or leaves it bare."""
    return f"{phrasing.among(('the', '', 'that', 'this', 'my'), (80, 0 if is_sure else 14, 3, 2, 1))} {noun}".strip()


def _name_again(
    indexes: tuple[int, ...], named: tuple[int, ...], phrasing: Phrasing
) -> tuple[str, dict[str, str]] | None:
    """A pronoun, mostly, if what is meant was named just before."""
    if not named or indexes != named or phrasing.happens(0.3):
        return None
    return ("it", {"number": "same"}) if len(indexes) == 1 else ("them", {"number": "all"})


def describe_fully(thing: Thing, place: str) -> dict[str, str]:
    """All there is to say of a thing."""
    return {
        "shape": thing.shape,
        "color": thing.color,
        "size": thing.size,
        "direction": thing.direction,
        "place": place,
    }


def describe(thing: Thing, phrasing: Phrasing) -> str:
    """Describes a thing: its size, color and shape. What is not said to be of another size is medium."""
    color, shape = phrasing.pick(COLOR_WORDS[thing.color]), phrasing.pick(SHAPE_WORDS[thing.shape])
    size = phrasing.pick(SIZE_WORDS[thing.size]) if thing.size != "medium" or phrasing.happens(0.15) else ""
    words = f"{size} {color} {shape}".strip()
    if phrasing.happens(0.12):
        words = phrasing.pick(
            (
                f"{size} {shape} in {color}",
                f"{size} {shape}, {color}",
                f"{color} {shape}, {size}",
                f"{size} {shape} that is {color}",
            )
        )
    words = words.strip(" ,")
    if thing.is_outline:
        words = phrasing.pick(
            ("outlined {}", "hollow {}", "outline of a {}", "empty {}", "contour of a {}", "*hollow outline of a {}")
        ).format(words)
    return words if phrasing.happens(0.15) else with_article(words)


def move(direction: str, phrasing: Phrasing) -> list[str]:
    """A movement, or rest: told, as in "it moves up", continuing, and as in "let it move up"."""
    if direction == "still":
        return phrasing.pick(STILL_WORDS).split("|")
    words = f" {phrasing.pick(DIRECTION_WORDS[direction])}"
    verbs = MOVE_WORDS
    if direction in DIRECTED_MOVE_WORDS and phrasing.happens(0.2):
        verbs = DIRECTED_MOVE_WORDS[direction]
        words = words if phrasing.happens(0.3) else ""
    return [form + words for form in phrasing.pick(verbs).split("|")]


def describe_background(name: str, phrasing: Phrasing) -> dict[str, str]:
    """A background as an adjective, as a noun, with an article, and with a preposition."""
    adjective, noun = phrasing.pick(GROUND_ADJECTIVES[name]), phrasing.pick(GROUND_NOUNS[name])
    ground = with_article(f"{adjective} {phrasing.pick(GROUND_WORDS)}")
    if phrasing.happens(0.08):
        ground = f"a {phrasing.pick(GROUND_WORDS[:2])} of {noun}"
    on = f"{phrasing.pick(PREPOSITIONS)} {ground if phrasing.happens(0.65) else noun}"
    return {"adjective": adjective, "noun": noun, "ground": ground, "on": on}


def caption(
    scene: Scene, places: Sequence[str], phrasing: Phrasing, is_video: bool = True, subject: str = "", on: str = ""
) -> str:
    """
    Describes a scene.

    Args:
        scene: what to describe.
        places: of its things, of `PLACES`. A lone thing that is not said to be elsewhere is in the middle, what is not
            said to move is at rest, and a background that is not mentioned is white.
        phrasing: how.
        is_video: whether movements are told.
        subject, on: the words to use for the only thing and for the background, such as names of references.
    """
    phrasing.meaning = [{"kind": "show"} | describe_fully(thing, place) for thing, place in zip(scene.things, places)]
    if subject:
        phrasing.meaning[0] |= {"shape": "", "color": "", "size": ""}
    phrasing.meaning.append({"kind": "ground", "value": "image" if on else scene.background})
    if not on and not (scene.background == "white" and phrasing.happens(0.5)):
        words = describe_background(scene.background, phrasing)
        on = words["on"]
        if phrasing.happens(0.15):
            on = phrasing.pick(
                (
                    "with {ground}",
                    ". the background is {adjective}",
                    ", {ground}",
                    ", {adjective} background",
                    "with {noun} in the background",
                    ", background: {adjective}",
                    ", {noun} behind it",
                    ", the background all {adjective}",
                    ", on {noun}",
                    "; background {adjective}",
                )
            ).format(**words)
    template = phrasing.pick(VIDEO_CAPTIONS if is_video else IMAGE_CAPTIONS)
    if not on.startswith(PREPOSITIONS) and template.startswith("{on}"):
        template = "{np} {told}{on}" if is_video else "{np}{on}"
    parts = []
    for thing, place in zip(scene.things, places):
        name = subject or describe(thing, phrasing)
        if len(scene.things) > 1 or place != "middle" or phrasing.happens(0.1):
            name += f" {phrasing.pick(PLACE_WORDS[place])}"
        parts.append((name, move(thing.direction, phrasing) if is_video else ["", "", ""], thing.direction))
    if len(parts) > 1:
        return tidy(_list_things(parts, on, phrasing))
    name, (told, moving, way), direction = parts[0]
    if is_video and direction == "still" and phrasing.happens(0.4):
        template = phrasing.pick(IMAGE_CAPTIONS[:1])
    return tidy(
        template.format(
            np=name, told=told, moving=moving, way=way, on=f" {on}" if on and not template.startswith("{on}") else on
        )
    )


def _list_things(parts: list[tuple[str, list[str], str]], on: str, phrasing: Phrasing) -> str:
    """Tells of several things, one after the other."""
    form = phrasing.among((0, 1), (0.6, 0.4))
    named = [
        name if direction == "still" and phrasing.happens(0.4) else f"{name} {moves[form]}".strip()
        for name, moves, direction in parts
    ]
    text = (
        phrasing.pick((", ", " and ", "; ")).join(named[:-1])
        + phrasing.pick((" and ", ", and ", ", ", "; ", " with ", "* plus "))
        + named[-1]
    )
    if form == 1:
        text = phrasing.pick(LISTS).replace("{number}", "two" if len(parts) == 2 else "three").format(text)
    if on.startswith(PREPOSITIONS) and phrasing.happens(0.2):
        return f"{on}, {text}"
    return f"{text} {on}"


def tidy(text: str) -> str:
    """Leaves one space between words, and none before marks."""
    return " ".join(text.replace(" ,", ",").replace(" .", ".").split())
