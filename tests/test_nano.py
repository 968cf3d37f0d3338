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
"""LoomVideo-nano: its world, its judge, and the recipe that makes it."""

import csv
import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import Qwen3VLProcessor

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.media import write_whole
from loomvideo_diffusers.nano import (
    MODEL,
    NUM_FRAMES,
    SIDE,
    autoencoder,
    denoised,
    evaluation,
    export,
    fitting,
    joint,
    language,
)
from loomvideo_diffusers.nano import untrained as untrained_module
from loomvideo_diffusers.nano.autoencoder import Stage, refine_decoder, train_autoencoder
from loomvideo_diffusers.nano.contents import OPTIONS, ContentsReader, encode_contents
from loomvideo_diffusers.nano.curves import plot_curves
from loomvideo_diffusers.nano.denoised import LateScheduler, draw_targets, read_denoised, sample_batch, write_denoised
from loomvideo_diffusers.nano.edits import KINDS, Edit, apply, sample_edit
from loomvideo_diffusers.nano.evaluation import ABLATIONS, evaluate, evaluate_task
from loomvideo_diffusers.nano.export import assemble, load_trained, write_card
from loomvideo_diffusers.nano.joint import clips_of, write_latents
from loomvideo_diffusers.nano.judge import judge, look
from loomvideo_diffusers.nano.language import train_language
from loomvideo_diffusers.nano.tasks import TASKS, Example, sample_example, sample_family, sample_held_out, say
from loomvideo_diffusers.nano.unseen import read_unseen
from loomvideo_diffusers.nano.untrained import make_processor, make_untrained
from loomvideo_diffusers.nano.words import (
    ALL_WORDS,
    COLOR_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    STILL_ADJECTIVES,
    Phrasing,
    misspell,
)
from loomvideo_diffusers.nano.world import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    background_pixels,
    draw_mask,
    is_held_out,
    render,
    sample_format,
    sample_scene,
)
from loomvideo_diffusers.pipelines.loomvideo_mllm import DEFAULT_NEGATIVE_PROMPT, NEGATIVE_PROMPT_PREFIX


# World


SQUARE = Thing("square", "red", "medium", "right", (42.0, 40.0))


def test_a_scene_is_drawn_as_described():
    scene = Scene((SQUARE,), "black")
    video = render(scene)
    assert video.shape == (NUM_FRAMES, SIDE, SIDE, 3)
    assert video.dtype == np.uint8
    assert tuple(video[0, 40, 30]) == tuple(video[-1, 40, 54]) == COLORS["red"]
    assert tuple(video[0, 40, 54]) == tuple(video[-1, 40, 30]) == (14, 14, 18)
    assert np.array_equal(render(replace(scene, is_inverted=True)), 255 - video)
    outline = render(Scene((replace(SQUARE, is_outline=True),), "black"))
    assert tuple(outline[0, 40, 30]) == (14, 14, 18)
    assert tuple(outline[0, 40, 32 - 11]) == COLORS["red"]
    assert render(replace(scene, width=128), 33).shape == (33, 96, 128, 3)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_backgrounds(name):
    pixels = background_pixels(name, 128, 96)
    assert pixels.shape == (96, 128, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == (2 if name in ("striped", "checkered") else 1)
    assert name not in COLORS or tuple(pixels[0, 0]) == COLORS[name]


def test_shapes_cover_fractions_of_pixels():
    """A shape's area stays the same wherever it lies, and what is outside of the frame is cut off."""
    areas = [draw_mask("star", 15, (x, 40.25)).sum() for x in (40, 40.25, 40.5, 40.75)]
    assert max(areas) - min(areas) < 1e-3
    assert draw_mask("circle", 15, (0, 48)).sum() == pytest.approx(
        draw_mask("circle", 15, (48, 48)).sum() / 2, rel=0.05
    )
    assert draw_mask("circle", 15, (-40, 48)).sum() == 0


@pytest.mark.parametrize("num_things", [1, 2, 3])
def test_things_stay_within_the_frame_and_apart(num_things):
    """In any frame, each is drawn whole, near its place, and a line of the background is around it."""
    for index in range(60):
        rng = np.random.default_rng([8, index])
        width, height, _ = sample_format(rng)
        scene, places = sample_scene(rng, False, num_things, width, height)
        assert (
            len({thing.shape for thing in scene.things}) == len({thing.color for thing in scene.things}) == num_things
        )
        assert scene.background not in {thing.color for thing in scene.things}
        for thing, place in zip(scene.things, places):
            ideal = np.array(PLACES[place]) * (width, height)
            assert (np.abs(np.array(thing.middle) - ideal) <= 16).all()
        for time in (0, 0.5, 1):
            masks = [
                draw_mask(thing.shape, thing.radius, thing.center(time), False, width, height)
                for thing in scene.things
            ]
            for thing, mask in zip(scene.things, masks):
                whole = draw_mask(thing.shape, thing.radius, (48, 48)).sum()
                assert mask.sum() == pytest.approx(whole, rel=0.02)
            assert (sum(mask > 0 for mask in masks) <= 1).all()


def test_training_never_shows_what_is_held_out():
    """One color of every shape is held out of sources, targets and references; everything else comes up."""
    held_out = [(shape, color) for shape in SHAPES for color in COLORS if is_held_out(shape, color)]
    assert Counter(shape for shape, _ in held_out) == dict.fromkeys(SHAPES, 1)
    seen, backgrounds, directions, sizes, tasks, formats = set(), set(), set(), set(), set(), set()
    for index in range(40):
        for example in sample_family(np.random.default_rng([1, index])):
            tasks.add(example.task)
            formats.add((example.target.width, example.target.height, example.num_frames))
            for scene in (example.target, example.source, *example.references):
                for thing in scene.things if scene is not None else ():
                    seen.add((thing.shape, thing.color))
                    directions.add(thing.direction)
                    sizes.add(thing.size)
                backgrounds |= {scene.background} if scene is not None else set()
    assert seen == {(shape, color) for shape in SHAPES for color in COLORS} - set(held_out)
    assert backgrounds == set(BACKGROUNDS)
    assert directions == set(DIRECTIONS)
    assert sizes == set(SIZES)
    assert tasks == set(TASKS)
    assert formats == {(width, height, frames) for width in (96, 128) for height in (96,) for frames in (1, 17, 33)}


# Edits


TWO_THINGS = Scene((SQUARE, Thing("heart", "blue", "small", "still", (48.0, 80.0))), "white")


@pytest.mark.parametrize(
    ("edit", "target"),
    [
        (Edit("recolor", (0,), "pink"), Scene((replace(SQUARE, color="pink"), TWO_THINGS.things[1]), "white")),
        (
            Edit("redirect", (0, 1), "up"),
            replace(TWO_THINGS, things=tuple(replace(t, direction="up") for t in TWO_THINGS.things)),
        ),
        (Edit("remove", (0,)), Scene((TWO_THINGS.things[1],), "white")),
        (Edit("remove", (0, 1)), Scene((), "white")),
        (Edit("background", (), "green"), replace(TWO_THINGS, background="green")),
        (Edit("invert"), replace(TWO_THINGS, is_inverted=True)),
    ],
)
def test_edits(edit, target):
    assert apply(TWO_THINGS, [edit]) == target


def test_edits_name_things_as_they_were():
    """Of two changes, the second finds its thing though the first took another one away."""
    result = apply(TWO_THINGS, [Edit("remove", (0,)), Edit("replace", (1,), "star")])
    assert result.things == (replace(TWO_THINGS.things[1], shape="star"),)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(LookupError, match="nothing to outline"):
        sample_edit("outline", Scene((replace(SQUARE, is_outline=True),), "white"), np.random.default_rng(0))


# Words


NEW_WORDS = {
    option[1:]
    for words in (*COLOR_WORDS.values(), *SHAPE_WORDS.values(), *SIZE_WORDS.values(), ALL_WORDS, STILL_ADJECTIVES)
    for option in words
    if option.startswith("*") and not any(option[1:] in other for other in words if not other.startswith("*"))
}


def test_training_never_has_words_that_are_held_out():
    """Neither in prompts nor in what the vocabulary is made of; in measurements each of them comes up."""
    families = (sample_family(np.random.default_rng([9, index])) for index in range(40))
    phrasing = Phrasing(np.random.default_rng(0))
    trained = " | ".join(say(example, phrasing).prompt for example in itertools.chain.from_iterable(families))
    measured = " | ".join(
        sample_held_out(task, np.random.default_rng([9, index])).prompt for task in TASKS for index in range(60)
    )
    assert len(NEW_WORDS) > 15
    assert [word for word in NEW_WORDS if f" {word} " in trained] == []
    assert sum(f" {word} " in measured for word in NEW_WORDS) > len(NEW_WORDS) / 2


@pytest.mark.parametrize("task", TASKS)
def test_held_out_examples(task):
    """What is measured was never seen: the result, where a change can make it so, and the words."""
    for index in range(12):
        example = sample_held_out(task, np.random.default_rng([2, index]))
        shown = [thing for scene in (example.target, example.source) if scene for thing in scene.things]
        assert task in ("image", "two requests") or any(is_held_out(thing.shape, thing.color) for thing in shown)
        for reference in example.references:
            if "recolor" in task or "replace" in task or "shape and color" in task:
                assert not any(is_held_out(thing.shape, thing.color) for thing in reference.things)
        for number in range(1, len(example.references) + 1):
            assert f"@Image {number}" in example.prompt


@pytest.mark.parametrize("task", [task for task in TASKS if "several" in task and "video" not in task])
def test_one_of_several_is_told_apart(task):
    """What is said of a thing is true of it, and mostly by itself of it alone."""
    for index in range(40):
        example = sample_example(task, np.random.default_rng([10, index]))
        (edit,), things, (said,) = example.edits, example.source.things, example.meaning
        named = things[edit.indexes[0]]
        assert all(said[name] == getattr(named, name) for name in ("shape", "color", "size") if name in said)
        if said.keys() & {"shape", "color", "direction"}:
            fits = [
                thing for thing in things if all(said.get(name, value) == value for name, value in vars(thing).items())
            ]
            # A thing of several that moves, by itself, is called "the moving one".
            assert fits == [named]
        else:
            assert said.keys() & {"size", "place"}


def test_sentences_say_what_is_meant():
    """The value of each change is in its words, and descriptions name all that is not as usual."""
    for task, words in {"recolor": COLOR_WORDS, "replace": SHAPE_WORDS}.items():
        for index in range(40):
            example = sample_example(task, np.random.default_rng([11, index]))
            assert any(word in example.prompt for word in words[example.edits[0].value])
            assert example.meaning[0]["value"] == example.edits[0].value
    for index in range(40):
        example = sample_example("text to video", np.random.default_rng([11, index]))
        (thing,), (said, ground) = example.target.things, example.meaning
        assert {name: said[name] for name in ("shape", "color", "size", "direction")} == {
            name: getattr(thing, name) for name in ("shape", "color", "size", "direction")
        }
        assert any(word in example.prompt for word in COLOR_WORDS[thing.color])
        assert any(word in example.prompt for word in SHAPE_WORDS[thing.shape])
        assert ground == {"kind": "ground", "value": example.target.background}


def test_misspelled_words_differ_by_one_letter():
    rng, words = np.random.default_rng(0), ["make", "the", "triangle", "bigger"]
    for _ in range(50):
        typed_words = misspell(" ".join(words), rng).split()
        wrong = [(typed_word, word) for typed_word, word in zip(typed_words, words, strict=True) if typed_word != word]
        assert len(wrong) <= 1
        for typed_word, word in wrong:
            assert word in ("triangle", "bigger")
            assert abs(len(typed_word) - len(word)) <= 1
            assert typed_word[0] == word[0]
    assert misspell("a red dot", rng) == "a red dot"


def test_unseen_sentences():
    """Each asks for something, of scenes that the world has, and all kinds of changes are among them."""
    examples = read_unseen()
    kinds = Counter(edit.kind for example in examples for edit in example.edits)
    assert len(examples) == len({example.prompt for example in examples}) > 190
    assert kinds.keys() == set(KINDS)
    assert min(kinds.values()) >= 8
    assert sum(len(example.edits) > 1 for example in examples) >= 15
    for example in examples[::4]:
        assert example.target != example.source
        assert judge(example, render(example.target, example.num_frames))["success"]


# Judge


def test_the_judge_is_right():
    """On results drawn as they should be, at least 99 times in 100."""
    judgements = []
    for task in TASKS:
        for index in range(2):
            example = sample_held_out(task, np.random.default_rng([3, index]))
            judgements.append(judge(example, render(example.target, example.num_frames))["success"])
    assert np.mean(judgements) >= 0.99


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("color", lambda scene: apply(scene, [Edit("recolor", (1,), "pink")])),
        ("shape", lambda scene: apply(scene, [Edit("replace", (1,), "cross")])),
        ("shape", lambda scene: apply(scene, [Edit("outline", (0,))])),
        ("size", lambda scene: apply(scene, [Edit("resize", (0,), "small")])),
        ("background", lambda scene: replace(scene, background="striped")),
        ("path", lambda scene: replace(scene, things=(replace(SQUARE, middle=(46.0, 40.0)), scene.things[1]))),
        (
            "nothing else",
            lambda scene: apply(scene, [Edit("add", (), Thing("star", "green", "small", "still", (82, 82)))]),
        ),
    ],
)
def test_the_judge_sees_what_is_wrong(name, change):
    """Each kind of mistake is found, in either of two things, and only that."""
    judgement = judge(Example("", TWO_THINGS, replace(TWO_THINGS, background="black")), render(change(TWO_THINGS)))
    assert not judgement["success"]
    assert [key for key, value in judgement.items() if value is False] == [name, "success"]


def test_the_judge_sees_what_is_left():
    """Of what was to be removed."""
    source = Scene((SQUARE,), "white")
    example = Example("", replace(source, things=()), source)
    assert judge(example, render(example.target))["success"]
    assert not judge(example, render(source))["success"]


def test_the_judge_sees_what_stayed_as_it_was():
    example = Example("", TWO_THINGS, apply(TWO_THINGS, [Edit("recolor", (0,), "pink")]))
    clip = render(TWO_THINGS)
    assert judge(example, clip)["untouched"] > 70
    noise = np.random.default_rng(0).choice([-8, 8], clip.shape)
    noisy = np.where((clip > 8) & (clip < 247), clip + noise, clip - 8 * (clip >= 247)).astype(np.uint8)
    assert judge(example, noisy)["untouched"] == pytest.approx(10 * np.log10(255**2 / 64), abs=0.1)


def test_the_judge_sees_what_words_leave_open():
    """A video from words may be a little off its place, and no more; without a shape, it shows none."""
    scene = Scene((replace(SQUARE, middle=(48.0, 48.0)),), "black")
    example = Example("text to video", scene)

    def seen(x):
        return judge(example, render(Scene((replace(SQUARE, middle=(x, 48.0)),), "black")))

    assert seen(58.0)["success"]
    assert not seen(65.0)["place"]
    assert not judge(example, render(Scene((replace(scene.things[0], direction="up"),), "black")))["direction"]
    noise = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    assert not judge(example, noise)["success"]
    assert look(render(Scene((), "striped"))) == ("striped", None)
    # What has the shape in part is nearest to it, and still is not it.
    clip = render(scene)
    clip[np.random.default_rng(0).random(clip.shape[:3]) < 0.35] = background_pixels("black")[0, 0]
    assert look(clip)[1].shape == "square"
    assert not judge(example, clip)["shape"]


def test_the_judge_sees_whether_a_form_lasts():
    """A shape that is another one in every second frame is not as constant as one that stays."""
    scene = Scene((replace(SQUARE, middle=(48.0, 48.0)),), "white")
    clip, other = render(scene), render(apply(scene, [Edit("replace", (0,), "star")]))
    example = Example("text to video", scene)
    assert judge(example, clip)["constancy of filled square"] == 1
    flickering = np.where(np.arange(NUM_FRAMES)[:, None, None, None] % 2, clip, other)
    assert judge(example, flickering)["constancy of filled square"] < 0.8


# Recipe


def test_prompts_are_short():
    """Every word of the tasks is a token of its own, and the whole negative prompt is a handful."""
    tokenizer = make_processor().tokenizer
    prompt = "Generate a video: A small red square moves right"
    assert tokenizer.tokenize(prompt) == tokenizer.tokenize(prompt.lower())
    assert len(tokenizer(prompt).input_ids) == len(prompt.split()) + 1
    assert len(tokenizer(NEGATIVE_PROMPT_PREFIX + DEFAULT_NEGATIVE_PROMPT).input_ids) < 16
    other = "Pferde, 馬! 1234"
    assert tokenizer.decode(tokenizer(other).input_ids) == other.lower()


@pytest.fixture(scope="module")
def trained_autoencoder(tmp_path_factory):
    """Trained for four steps without a break."""
    with pytest.MonkeyPatch.context() as context:
        shorten(context)
        return train_autoencoder(tmp_path_factory.mktemp("unbroken"))


def shorten(context):
    context.setattr(autoencoder, "STAGES", (Stage(2, 2, 1, 32, 0.0), Stage(2, 1, 5, 32, 0.05)))
    context.setattr(autoencoder, "NUM_MEASURED_CLIPS", 2)
    context.setattr(fitting, "CHECKPOINT_EVERY", 2)
    context.setattr(language, "STEPS", 4)
    context.setattr(language, "BATCH_SIZE", 4)
    context.setattr(untrained_module, "NUM_SENTENCES", 4)
    context.setattr(joint, "NUM_FAMILIES", 2)
    context.setattr(joint, "STEPS", 2)
    context.setattr(joint, "TOKENS_PER_BATCH", 400)
    context.setattr(joint, "IS_COMPILED", False)  # which takes minutes


@pytest.fixture(scope="module")
def trained_language(tmp_path_factory):
    """Trained for four steps without a break."""
    with pytest.MonkeyPatch.context() as context:
        shorten(context)
        return train_language(tmp_path_factory.mktemp("unbroken"))


@pytest.fixture(scope="module")
def untrained(trained_autoencoder, trained_language, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nano") / "untrained"
    make_untrained(folder, trained_autoencoder, trained_language)
    return folder


@pytest.mark.parametrize("name", ["autoencoder", "language"])
def test_it_resumes(name, trained_autoencoder, trained_language, tmp_path, monkeypatch):
    """Interrupted after its first checkpoint, it ends with the same weights and the same log."""
    shorten(monkeypatch)
    train, unbroken = {
        "autoencoder": (train_autoencoder, trained_autoencoder),
        "language": (train_language, trained_language),
    }[name]

    def write_and_stop(path, write):
        write_whole(path, write)
        if path.suffix == ".pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(fitting, "write_whole", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    resumed = train(tmp_path)
    assert not resumed.with_suffix(".pt").exists()
    assert resumed.with_suffix(".csv").read_text() == unbroken.with_suffix(".csv").read_text()
    for file in unbroken.rglob("*.safetensors"):
        others = load_file(resumed / file.relative_to(unbroken))
        assert all(torch.equal(tensor, others[key]) for key, tensor in load_file(file).items())


def test_sentences_reach_the_mllm_as_prompts_do(trained_language):
    """What is read of a sentence are the tokens that follow it, wherever it ends."""
    processor = Qwen3VLProcessor.from_pretrained(trained_language / "processor")
    inputs, meanings = language.Sentences(processor)[0]
    ends = inputs["attention_mask"].sum(dim=1)
    for row, end in zip(inputs["input_ids"], ends):
        assert processor.tokenizer.decode(row[end - 5 : end]) == "<|im_end|>\n<|im_start|>assistant\n"
    kinds = language.COLUMNS["kind"]
    assert meanings.shape == (language.BATCH_SIZE, 4, len(language.COLUMNS))
    assert (meanings[:, 0, 0] > 0).all()
    change = sample_example("recolor", np.random.default_rng(0))
    encoded = language.encode_meaning(change.meaning)
    assert kinds[encoded[0, 0]] == "recolor"
    assert language.COLUMNS["value"][encoded[0, 1]] == change.edits[0].value
    assert not encoded[1:].any()


def test_the_mllm_learns(tmp_path, monkeypatch):
    """In a few steps, the loss falls."""
    shorten(monkeypatch)
    monkeypatch.setattr(language, "STEPS", 30)
    monkeypatch.setattr(fitting, "WARMUP_STEPS", 5)
    monkeypatch.setattr(language, "BATCH_SIZE", 8)
    folder = train_language(tmp_path)
    with open(folder.with_suffix(".csv"), newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_the_decoder_is_refined_alone(trained_autoencoder, untrained, tmp_path, monkeypatch):
    """It learns from latents that denoising made of clips; what is encoded stays as it was."""
    for module in (autoencoder, denoised):
        monkeypatch.setattr(module, "NUM_BATCHES", 2)
    monkeypatch.setattr(autoencoder, "DECODER_STEPS", 3)
    monkeypatch.setattr(denoised, "BATCH_SIZE", 1)
    pipe = LoomVideoPipeline.from_pretrained(untrained)
    truths = iter([pipe.encode_pixels(draw_targets(sample_batch(index))) for index in range(2)])
    sigmas = []

    def know_all(module, args, inputs, output):
        """The velocity from the clip to its noise, in the place of the model's."""
        sigma = inputs["timestep"].view(-1, 1, 1, 1, 1) / 1000
        if not sigmas or sigma[0] > sigmas[-1]:
            know_all.truth = next(truths)
        sigmas.append(float(sigma[0]))
        return ((inputs["hidden_states"] - know_all.truth) / sigma,)

    hook = pipe.transformer.register_forward_hook(know_all, with_kwargs=True)
    write_denoised(pipe, tmp_path / "denoised")
    hook.remove()
    latents, pixels = read_denoised(tmp_path / "denoised", 1)
    assert pixels.shape == (1, 3, NUM_FRAMES, SIDE, SIDE)
    assert torch.allclose(latents, know_all.truth, atol=1e-2)
    assert max(sigmas) < denoised.MOST_NOISE
    assert not isinstance(pipe.scheduler, LateScheduler)

    before = AutoencoderKLWan.from_pretrained(trained_autoencoder)
    after = AutoencoderKLWan.from_pretrained(refine_decoder(trained_autoencoder, tmp_path / "denoised", tmp_path))
    assert before.config.latents_std == after.config.latents_std
    pixels = torch.rand(1, 3, 5, 32, 32)
    latents = [vae.encode(pixels).latent_dist.mode() for vae in (before, after)]
    assert torch.equal(*latents)
    assert not torch.equal(*[vae.decode(latents[0]).sample for vae in (before, after)])


@pytest.fixture(scope="module")
def latents(untrained, tmp_path_factory):
    """Of the clips of two families."""
    folder = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as context:
        shorten(context)
        write_latents(LoomVideoPipeline.from_pretrained(untrained), folder)
    return folder


def test_latents_are_those_of_the_clips(untrained, latents, monkeypatch):
    """Each clip of a family has its own, as the pipelines encode it; what is there is not made again."""
    pipe = LoomVideoPipeline.from_pretrained(untrained)
    family = sample_family(np.random.default_rng([0, 1]))
    names, stored = clips_of(family), load_file(latents / "00001.safetensors")
    assert stored.keys() == set(names.values())
    for (scene, num_frames), name in list(names.items())[:: len(names) // 4]:
        pixels = torch.from_numpy(render(scene, num_frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        assert torch.allclose(pipe.encode_pixels(pixels)[0], stored[name].float(), atol=2e-2)
    monkeypatch.setattr(joint, "NUM_FAMILIES", 2)
    before = {file: file.stat().st_mtime_ns for file in latents.iterdir()}
    write_latents(pipe, latents)
    assert {file: file.stat().st_mtime_ns for file in latents.iterdir()} == before


def test_batches_hold_what_the_pipelines_pass(untrained, latents, monkeypatch):
    """Prompts are laid out as in the calls, new at each step, and sources and references are their own."""
    monkeypatch.setattr(joint, "NUM_FAMILIES", 2)
    monkeypatch.setattr(joint, "TOKENS_PER_BATCH", 5760)
    processor = Qwen3VLProcessor.from_pretrained(untrained / "processor")
    batches = joint.Batches(latents, processor)
    for index in range(12):
        batch = batches[index]
        size, channels, num_latents, height, width = batch["latents"].shape
        shape = (4 * num_latents - 3, 8 * height, 8 * width, len(batch["reference_hidden_states"]))
        assert (size, channels) == (joint.batch_size(shape), 24)
        assert all(part.shape == (size, 24, 1, height, width) for part in batch["reference_hidden_states"])
        assert ((batch["source_scale"] > 0) & (batch["source_scale"] < 1)).all()
        texts = processor.tokenizer.batch_decode(batch["prompt_inputs"]["input_ids"])
        num_sources = sum("edit this" in text for text in texts)
        assert len({*texts}) > size / 2
        if shape[-1]:
            assert all("with reference images: " in text or "user\n<|vision" in text for text in texts)
        elif batch["source_hidden_states"] is not None:
            has_source = batch["source_hidden_states"].flatten(1).any(dim=1)
            assert 0 <= has_source.sum() - num_sources <= size / 3  # a few go without words
        assert torch.equal(batch["latents"], batches[index]["latents"])


def test_contents_are_where_things_are():
    """A token says what is seen in it while it lasts, and the background is said everywhere."""
    thing = Thing("square", "red", "large", "right", (48.0, 48.0), is_outline=True)
    example = Example("text to video", Scene((thing,), "striped"))
    contents = encode_contents(example)
    assert contents.shape == (5, 6, 6, len(OPTIONS))
    said = [options[number] for options, number in zip(OPTIONS.values(), contents[2, 3, 3])]
    assert said == ["square", "red", "large", "right", "outlined", "striped"]
    is_thing = contents[..., 0] > 0
    columns = (is_thing * torch.arange(6)).sum(dim=(1, 2)) / is_thing.sum(dim=(1, 2))
    assert (columns.diff() >= 0).all()
    assert columns[-1] - columns[0] > 0.5
    assert not contents[~is_thing][:, :-1].any()
    inverted = replace(example, num_frames=1, target=replace(example.target, is_inverted=True))
    contents = encode_contents(inverted)
    said = [options[number] for options, number in zip(OPTIONS.values(), contents[0, 3, 3])]
    assert said == ["square", "red", "large", "still", "outlined", "inverted striped"]


def test_the_reader_learns_contents():
    """From hidden states that hold the contents it learns to read them, whatever tokens follow."""
    examples = [sample_example("several things to video", np.random.default_rng(seed)) for seed in range(40)]
    contents = torch.stack(
        [encode_contents(one) for one in examples if joint._shape(one) == (NUM_FRAMES, SIDE, SIDE, 0)][:4]
    )
    torch.manual_seed(0)
    told = torch.cat([F.one_hot(contents.flatten(1, 3)[..., n], 24) for n in range(len(OPTIONS))], dim=-1).float()
    told = torch.cat([told, torch.randn(4, 36, told.shape[-1])], dim=1)
    reader = ContentsReader(told.shape[-1])
    optimizer = torch.optim.AdamW(reader.parameters(), lr=0.03)
    first = reader(told, contents)
    for _ in range(60):
        optimizer.zero_grad()
        loss = reader(told, contents)
        loss.backward()
        optimizer.step()
    assert loss < 0.05 * first


def test_what_an_edit_changes_counts_more():
    source = torch.randn(2, 24, 5, 12, 12)
    latents = source.clone()
    latents[0, :, :, :3] += 1
    weights = joint.token_weights(latents, source)
    assert weights.shape == (2, 1, 5, 12, 12)
    assert weights.mean().item() == pytest.approx(1)
    assert torch.allclose(weights[0, :, :, :3], 4 * weights[1, :, :, :3])
    assert torch.equal(joint.token_weights(latents, None), torch.ones_like(weights))


def test_pictures_come_first(untrained, latents, monkeypatch):
    """They are most of the samples at the beginning, and fewer than videos at the end."""
    monkeypatch.setattr(joint, "NUM_FAMILIES", 2)
    monkeypatch.setattr(joint, "TOKENS_PER_BATCH", 1000)
    monkeypatch.setattr(joint, "STEPS", 1000)
    batches = joint.Batches(latents, Qwen3VLProcessor.from_pretrained(untrained / "processor"))

    def share_of_pictures(steps):
        counts = Counter()
        for step in steps:
            size, _, num_frames, *_ = batches[step]["latents"].shape
            counts[num_frames == 1] += size
        return counts[True] / counts.total()

    assert share_of_pictures(range(40)) > 0.75
    assert share_of_pictures(range(960, 1000)) < 0.6


def test_conditions_are_dropped(monkeypatch):
    """A twentieth of samples goes without any, unless there are references, and another without words."""
    rng = np.random.default_rng(0)
    plain, referring = (sample_example(task, rng) for task in ("recolor", "recolor by reference"))
    dropped = Counter(joint._drop(plain, rng) for _ in range(2000))
    assert dropped["all"] == pytest.approx(100, abs=35)
    assert dropped["text"] == pytest.approx(100, abs=35)
    assert {joint._drop(referring, rng) for _ in range(200)} == {"", "text"}


def test_training(untrained, latents, tmp_path, monkeypatch):
    """For two steps, into a model that the pipelines run."""
    shorten(monkeypatch)
    backend = _AttentionBackendRegistry.get_active_backend()
    trained = joint.train(untrained, latents, tmp_path)
    assert _AttentionBackendRegistry.get_active_backend() == backend
    assemble(load_trained(untrained, trained), untrained / "vae", tmp_path / "model")
    # Like the model in the package, it has no code, and its index is that of the package's.
    assert not list((tmp_path / "model").rglob("*.py"))
    index, expected = (json.loads((folder / "model_index.json").read_text()) for folder in (tmp_path / "model", MODEL))
    assert {name: index[name] for name in expected if name[0] != "_"} == {
        name: expected[name] for name in expected if name[0] != "_"
    }
    assert index["_class_name"] == expected["_class_name"]
    pipe = LoomVideoPipeline.from_pretrained(tmp_path / "model")
    video = pipe("a red square moves right", height=SIDE, width=SIDE, num_frames=5, num_inference_steps=1).frames
    assert video.shape == (1, 5, SIDE, SIDE, 3)
    weights = load_file(trained / "transformer" / "diffusion_pytorch_model.safetensors")
    name = "blocks.0.ffn.net.0.proj.weight"
    assert torch.equal(pipe.transformer.get_parameter(name).half(), weights[name].half())
    before = load_file(untrained / "transformer" / "diffusion_pytorch_model.safetensors")
    assert not torch.equal(weights["proj_out.weight"], before["proj_out.weight"])


# Evaluation


def test_what_is_taken_away(untrained):
    """Without the source or all layers, the transformer gives what it gives for the arguments that mean that."""
    transformer = LoomVideoPipeline.from_pretrained(untrained).transformer
    torch.nn.init.normal_(transformer.proj_out.weight)  # zeros before training
    torch.nn.init.normal_(transformer.source_patch_embedding.weight)
    inputs = {
        "hidden_states": torch.randn(1, 24, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, 3, 192),
        "source_hidden_states": torch.randn(1, 24, 2, 4, 4),
        "source_scale": torch.tensor([0.5]),
    }
    changed = {
        "source": {"source_scale": torch.zeros(1)},
        "deepstack": {"encoder_hidden_states": inputs["encoder_hidden_states"][:, -1:].repeat(1, 8, 1, 1)},
    }

    def run(**others):
        with torch.no_grad():
            return transformer(**(inputs | others), return_dict=False)[0]

    for without, others in changed.items():
        with ABLATIONS[without](transformer):
            result = run()
        assert torch.equal(result, run(**others))
        assert not torch.equal(result, run())


def test_evaluation(untrained):
    """An example's results for two seeds are judged, and depend on the seed; references are taken away."""
    pipe = LoomVideoPipeline.from_pretrained(untrained)
    torch.nn.init.normal_(pipe.transformer.proj_out.weight)
    options = {"num_examples": 1, "seeds": (0, 1), "num_inference_steps": 1}
    judged = evaluate_task(pipe, "reference to video", **options)
    assert [judgement["success"] for *_, judgement in judged] == [False, False]
    assert not np.array_equal(judged[0][1], judged[1][1])
    (without, _) = evaluate_task(pipe, "reference to video", without="references", **options)
    assert without[0] == judged[0][0]
    assert not np.array_equal(without[1], judged[0][1])


@pytest.mark.slow
def test_card(untrained, trained_autoencoder, tmp_path, monkeypatch):
    """What is measured, once and not again, is in the card's tables; samples and curves are pictures."""
    results_file, samples = tmp_path / "results.json", tmp_path / "model" / "samples"
    shutil.copytree(untrained, tmp_path / "model")
    some = {"whole": (("recolor", "text to image"), {}), "without the source": (("recolor",), {"without": "source"})}
    for module in (evaluation, export):
        monkeypatch.setattr(module, "EVALUATIONS", some)
        monkeypatch.setattr(module, "OPTIONS", module.OPTIONS | {"num_inference_steps": 1})
    # What was measured before is not measured again, which would give another number.
    shares = {"shape": 0.5, "color": 0.0, "size": 1.0, "background": 1.0, "nothing else": 1.0, "place": 0.25}
    before = {"number": 3, "success": 0.0, "constancy of outlined cross": 0.875} | shares
    results_file.write_text(json.dumps({"whole": {"text to image": before}}))
    results = evaluate(tmp_path / "model", results_file, samples, 1, 1)
    assert results == json.loads(results_file.read_text())
    assert results["whole"]["text to image"] == before
    assert {name: list(tasks) for name, tasks in results.items()} == {name: list(some[name][0]) for name in some}
    assert {file.name for file in samples.iterdir()} == {"recolor-failures.png"}

    log = trained_autoencoder.with_suffix(".csv")
    (tmp_path / "trained.csv").write_text("step,error\n1,0.5\n2,0.25\n")
    logs = {"Autoencoder": (log, "psnr"), "Transformer": (tmp_path / "trained.csv", "error")}
    plot_curves(logs, samples / "curves.png")
    assert PIL.Image.open(samples / "curves.png").size == (800, 350)

    write_card(tmp_path / "model", results)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "apache-2.0"
    row = next(line for line in card.text.splitlines() if line.startswith("| text to image |"))
    assert "| 50% | 0% | 100% | 100% | 100% | place 25% |" in row
    assert "| 0.875 |" in next(line for line in card.text.splitlines() if line.startswith("| cross |"))
    assert "(samples/recolor-failures.png)" in card.text
    pipe = LoomVideoPipeline.from_pretrained(untrained)
    assert f"| transformer | {pipe.transformer.num_parameters():,} |" in card.text
    assert f"| text_encoder | {pipe.text_encoder.num_parameters():,} |" in card.text
