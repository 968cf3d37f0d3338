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

import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from importlib.resources import files

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from diffusers import AutoencoderKLWan
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.media import read_image, read_video, write_whole
from loomvideo_diffusers.nano import MODEL, NUM_FRAMES, SIDE, autoencoder, denoised, evaluation, export
from loomvideo_diffusers.nano.autoencoder import Stage, refine_decoder, train_autoencoder
from loomvideo_diffusers.nano.curves import plot_curves
from loomvideo_diffusers.nano.dataset import write_dataset
from loomvideo_diffusers.nano.denoised import LateScheduler, draw_targets, read_denoised, sample_batch, write_denoised
from loomvideo_diffusers.nano.evaluation import ABLATIONS, evaluate, evaluate_task
from loomvideo_diffusers.nano.export import assemble, load_trained, write_card
from loomvideo_diffusers.nano.judge import judge, look
from loomvideo_diffusers.nano.tasks import BACKGROUND_WORDS, DIRECTION_WORDS, TASKS, sample_family, sample_held_out
from loomvideo_diffusers.nano.untrained import make_processor, make_untrained
from loomvideo_diffusers.nano.world import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    background_pixels,
    draw_mask,
    is_held_out,
    render,
    sample_scene,
)
from loomvideo_diffusers.pipelines.loomvideo_mllm import DEFAULT_NEGATIVE_PROMPT, NEGATIVE_PROMPT_PREFIX
from loomvideo_diffusers.training import TrainingConfig, load_config, train


# World


def test_a_scene_is_drawn_as_described():
    scene = Scene((Thing("square", "red", 17, "right", (30.0, 40.0)),), "black")
    video = render(scene)
    assert video.shape == (NUM_FRAMES, SIDE, SIDE, 3)
    assert video.dtype == np.uint8
    assert tuple(video[0, 40, 30]) == tuple(video[-1, 40, 54]) == COLORS["red"]
    assert tuple(video[0, 40, 54]) == tuple(video[-1, 40, 30]) == (14, 14, 18)
    inverted = Scene(scene.things, "black", "inverted")
    assert np.array_equal(render(inverted), 255 - video)
    outline = render(Scene(scene.things, "black", "outline"))
    assert tuple(outline[0, 40, 30]) == (14, 14, 18)
    assert tuple(outline[0, 40, 30 - 12]) == COLORS["red"]


def test_shapes_cover_fractions_of_pixels():
    """A shape's area stays the same wherever it lies, and what is outside of the frame is cut off."""
    areas = [draw_mask("star", 15, (x, 40.25)).sum() for x in (40, 40.25, 40.5, 40.75)]
    assert max(areas) - min(areas) < 1e-3
    assert draw_mask("circle", 15, (0, 48)).sum() == pytest.approx(
        draw_mask("circle", 15, (48, 48)).sum() / 2, rel=0.05
    )
    assert draw_mask("circle", 15, (-40, 48)).sum() == 0


def test_things_stay_within_the_frame():
    rng = np.random.default_rng(0)
    for _ in range(300):
        (thing,) = sample_scene(rng).things
        for time in (0, 1):
            assert all(thing.radius < position < SIDE - thing.radius for position in thing.center(time))


def test_training_never_shows_what_is_held_out():
    """One color of every shape is held out of sources, targets and references; everything else comes up."""
    held_out = [(shape, color) for shape in SHAPES for color in COLORS if is_held_out(shape, color)]
    assert Counter(shape for shape, _ in held_out) == dict.fromkeys(SHAPES, 1)
    seen, backgrounds, directions, radii, tasks = set(), set(), set(), set(), set()
    for index in range(60):
        for example in sample_family(np.random.default_rng([1, index])):
            tasks.add(example.task)
            for scene in (example.target, example.source, *example.references):
                for thing in scene.things if scene is not None else ():
                    seen.add((thing.shape, thing.color))
                    directions.add(thing.direction)
                    radii.add(thing.radius)
                backgrounds |= {scene.background} if scene is not None else set()
    assert seen == {(shape, color) for shape in SHAPES for color in COLORS} - set(held_out)
    assert backgrounds == set(BACKGROUNDS)
    assert directions == set(DIRECTIONS)
    assert radii > set(SIZES.values())
    assert tasks == set(TASKS)


def test_prompts_say_what_is_shown():
    """An edit, and what takes it back, name what the result has, and descriptions all of it."""
    for index in range(60):
        for example in sample_family(np.random.default_rng([5, index])):
            if example.task == "recolor":
                assert example.prompt.split()[-1] == example.target.things[0].color
            if example.task == "replace":
                assert example.prompt.split()[-1] == example.target.things[0].shape
            if example.task in ("background", "text to video"):
                background = example.target.background
                is_named = any(words in example.prompt for words in BACKGROUND_WORDS[background])
                assert is_named or (background == "white" and "background" not in example.prompt)
            if example.task == "text to video":
                thing = example.target.things[0]
                assert f"{thing.color} {thing.shape}" in example.prompt
                assert thing.direction == "still" or any(
                    words in example.prompt for words in DIRECTION_WORDS[thing.direction]
                )


@pytest.mark.parametrize("task", TASKS)
def test_held_out_examples(task):
    """What is measured was never seen: the result, and the words that ask for it are those of the scenes."""
    for index in range(20):
        example = sample_held_out(task, np.random.default_rng([2, index]))
        thing = example.target.things[0]
        assert is_held_out(thing.shape, thing.color)
        for reference in example.references:
            if "recolor" in task or "replace" in task or "shape and color" in task:
                assert not any(is_held_out(thing.shape, thing.color) for thing in reference.things)
        if task == "text to video":
            assert f"{thing.color} {thing.shape}" in example.prompt
        for number in range(1, len(example.references) + 1):
            assert f"@Image {number}" in example.prompt


# Judge


def test_the_judge_is_right():
    """On results drawn as they should be, at least 99 times in 100."""
    judgements = []
    for task in TASKS:
        for index in range(7):
            example = sample_held_out(task, np.random.default_rng([3, index]))
            judgements.append(judge(example, render(example.target, example.num_frames))["success"])
    assert np.mean(judgements) >= 0.99


def test_the_judge_sees_what_is_wrong():
    """Each kind of mistake is found, and only that."""
    example = next(
        example
        for index in range(1000)
        if (example := sample_held_out("recolor", np.random.default_rng([4, index]))).target.background == "black"
    )
    thing = example.target.things[0]
    wrong = {
        "color": replace(thing, color=example.source.things[0].color),
        "shape": replace(thing, shape="heart" if thing.shape != "heart" else "cross"),
        "path": replace(thing, start=(thing.start[0] + 4, thing.start[1])),
    }
    for name, other in wrong.items():
        judgement = judge(example, render(Scene((other,), "black")))
        assert not judgement["success"]
        assert [key for key in ("shape", "color", "background", "path") if not judgement[key]] == [name]
    judgement = judge(example, render(Scene((thing,), "white")))
    assert not judgement["background"]
    assert judgement["untouched"] < 10
    noise = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    assert not judge(example, noise)["success"]
    assert look(render(Scene((), "striped"))).shape is None
    # What has the shape in part is nearest to it, and still is not it.
    clip = render(example.target)
    clip[np.random.default_rng(0).random(clip.shape[:3]) < 0.35] = background_pixels("black")[0, 0]
    assert look(clip).shape == thing.shape
    assert not judge(example, clip)["shape"]


@pytest.mark.parametrize("task", ["add", "remove"])
def test_the_judge_sees_the_second_thing(task):
    """Nothing added, or nothing removed, is no success."""
    example = sample_held_out(task, np.random.default_rng([6, 0]))
    judgement = judge(example, render(example.source))
    assert not judgement["other"]
    assert judgement["shape"]
    assert judgement["path"]


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


@pytest.mark.parametrize("name", ["nano.yaml", "finish.yaml"])
def test_settings(name):
    """The settings in the package are complete, and train the branch of guidance that the pipelines run."""
    config = load_config(files("loomvideo_diffusers.nano").joinpath(name))
    assert config.data.drop_all_prompt == NEGATIVE_PROMPT_PREFIX + DEFAULT_NEGATIVE_PROMPT
    assert config.data.sizes == [(SIDE, SIDE)]
    assert config.data.max_frames == NUM_FRAMES


@pytest.fixture(scope="module")
def trained_autoencoder(tmp_path_factory):
    """Trained for four steps without a break."""
    with pytest.MonkeyPatch.context() as context:
        shorten(context)
        return train_autoencoder(tmp_path_factory.mktemp("unbroken"))


def shorten(context):
    context.setattr(autoencoder, "STAGES", (Stage(2, 2, 1, 32, 0.0), Stage(2, 1, 5, 32, 0.05)))
    context.setattr(autoencoder, "CHECKPOINT_EVERY", 2)
    context.setattr(autoencoder, "NUM_MEASURED_CLIPS", 2)


@pytest.fixture(scope="module")
def untrained(trained_autoencoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nano") / "untrained"
    make_untrained(folder, trained_autoencoder)
    return folder


def test_the_autoencoder_resumes(trained_autoencoder, tmp_path, monkeypatch):
    """Interrupted after its first checkpoint, it ends with the same weights and the same log."""
    shorten(monkeypatch)

    def write_and_stop(path, write):
        write_whole(path, write)
        if path.suffix == ".pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(autoencoder, "write_whole", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_autoencoder(tmp_path)
    resumed = train_autoencoder(tmp_path)
    assert not resumed.with_suffix(".pt").exists()
    assert resumed.with_suffix(".csv").read_text() == trained_autoencoder.with_suffix(".csv").read_text()
    weights = [load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (trained_autoencoder, resumed)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])


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


def test_dataset(tmp_path):
    """The files that the records name hold exactly what the examples are."""
    write_dataset(tmp_path / "data", 2)
    families = [sample_family(np.random.default_rng([0, index])) for index in range(2)]
    names = [*TASKS, "images"]

    def name_of(example):
        return "images" if example.num_frames == 1 and example.task != "text to image" else example.task

    examples = sorted(itertools.chain.from_iterable(families), key=lambda example: names.index(name_of(example)))
    record_files = [tmp_path / "data" / f"{name.replace(' ', '-')}.jsonl" for name in names]
    records = [json.loads(line) for file in record_files for line in file.read_text().splitlines()]
    assert [record["instruction"] for record in records] == [example.prompt for example in examples]
    for record, example in zip(records, examples):
        shown = {"source": example.source, "target": example.target}
        for role, scene in shown.items():
            if scene is not None and example.num_frames == 1:
                image = read_image(tmp_path / "data" / record[f"{role}_image_path"])
                assert np.array_equal(np.asarray(image), render(scene, 1)[0])
            elif scene is not None:
                video = read_video(tmp_path / "data" / record[f"{role}_video_path"])
                assert np.array_equal(video, render(scene))
        for path, scene in zip(record.get("reference_image_paths", []), example.references, strict=True):
            assert np.array_equal(np.asarray(read_image(tmp_path / "data" / path)), render(scene, 1)[0])


def test_training(untrained, tmp_path):
    """The settings in the package train the untrained model, for a step, into one that the pipelines run."""
    write_dataset(tmp_path / "data", 2)
    values = yaml.safe_load(files("loomvideo_diffusers.nano").joinpath("nano.yaml").read_text(encoding="utf-8"))
    values |= {"model": str(untrained), "output_dir": str(tmp_path / "run"), "steps": 1, "tracker": None}
    values["compile_blocks"] = False  # takes minutes
    for dataset in values["data"]["datasets"]:
        dataset["records"] = dataset["records"].replace("outputs/nano", str(tmp_path))
    values["data"] |= {"tokens_per_batch": 400, "features": str(tmp_path / "features"), "num_workers": 0}
    train(TrainingConfig.model_validate(values))
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    assemble(load_trained(untrained, tmp_path / "run"), untrained / "vae", tmp_path / "model")
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
    trained = load_file(tmp_path / "run" / "transformer" / "diffusion_pytorch_model.safetensors")
    name = "blocks.0.ffn.net.0.proj.weight"
    assert torch.equal(pipe.transformer.get_parameter(name).half(), trained[name].half())


# Evaluation


def test_what_is_taken_away(untrained):
    """Without the source or all layers, the transformer gives what it gives for the arguments that mean that."""
    transformer = LoomVideoPipeline.from_pretrained(untrained).transformer
    torch.nn.init.normal_(transformer.proj_out.weight)  # zeros before training
    torch.nn.init.normal_(transformer.source_patch_embedding.weight)
    inputs = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 8, 3, 192),
        "source_hidden_states": torch.randn(1, 16, 2, 4, 4),
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
    before = {"number": 3, "success": 0.0, "shape": 0.5, "color": 0.0, "background": 1.0, "direction": 0.0}
    results_file.write_text(json.dumps({"whole": {"text to image": before}}))
    results = evaluate(tmp_path / "model", results_file, samples, 1, 1)
    assert results == json.loads(results_file.read_text())
    assert results["whole"]["text to image"] == before
    assert {name: list(tasks) for name, tasks in results.items()} == {name: list(some[name][0]) for name in some}
    assert {file.name for file in samples.iterdir()} == {"recolor-failures.png"}

    writer = SummaryWriter(tmp_path / "logs")
    for step in (1, 2, 3):
        writer.add_scalar("loss", 1 / step, step)
    writer.close()
    log = trained_autoencoder.with_suffix(".csv")
    plot_curves({"Autoencoder": log, "Transformer": tmp_path / "logs"}, samples / "curves.png")
    assert PIL.Image.open(samples / "curves.png").size == (800, 350)

    write_card(tmp_path / "model", results)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "apache-2.0"
    row = next(line for line in card.text.splitlines() if line.startswith("| text to image |"))
    assert "| 50% |" in row
    assert "(samples/recolor-failures.png)" in card.text
    pipe = LoomVideoPipeline.from_pretrained(untrained)
    assert f"| transformer | {pipe.transformer.num_parameters():,} |" in card.text
    assert f"| text_encoder | {pipe.text_encoder.num_parameters():,} |" in card.text
