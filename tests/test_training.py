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
"""Fine-tuning: settings, data, features, resuming, several processes, and what goes wrong."""

import contextlib
import json
import os
import pty
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from conftest import FIXTURES, messages
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Qwen3VLModel

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.media.video import read_image, read_video, write_image, write_video
from loomvideo_diffusers.training import TrainingConfig, load_config, train
from loomvideo_diffusers.training import features as features_module
from loomvideo_diffusers.training.checkpoints import find_checkpoints
from loomvideo_diffusers.training.data import (
    Draw,
    TokenBatchSampler,
    TrainingDataset,
    num_tokens,
    read_clip,
    read_records,
    record_of,
)
from loomvideo_diffusers.training.features import Encoders, FeatureStore, hash_inputs
from loomvideo_diffusers.training.objective import (
    TransformerWithTextEncoder,
    dynamic_shift,
    group_by_shape,
    sample_timestep,
    squared_error,
)
from loomvideo_diffusers.training.trainer import make_sample


ALL_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "linear_1", "linear_2", "time_proj"]
ALL_LAYERS += ["patch_embedding", "source_patch_embedding", "proj_out"]


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Clips of a cat, their negatives, pictures, and records of all tasks."""
    folder = tmp_path_factory.mktemp("clips")
    frames = read_video(FIXTURES / "cat.mp4")
    for index in range(4):
        clip = frames[4 * index : 4 * index + 9, 10 * index : 10 * index + 96, 20 * index : 20 * index + 96]
        write_video(folder / f"cat-{index}.mp4", clip)
        write_video(folder / f"negative-{index}.mp4", 255 - clip)
    coffee = read_image(FIXTURES / "coffee.jpg")
    write_image(folder / "coffee.png", coffee)
    write_image(folder / "portrait.jpg", coffee.resize((64, 96)))
    records = [
        {"text": "a cat", "path": "cat-0.mp4"},
        {"text": "a cup of coffee", "path": "coffee.png"},
        {"instruction": "invert it", "source_video_path": "cat-1.mp4", "target_video_path": "negative-1.mp4"},
        {"instruction": "crop it", "source_image_path": "coffee.png", "target_image_path": "portrait.jpg"},
        {
            "instruction": "a cat (@Image 1) and a cup (@Image 2)",
            "reference_image_paths": ["portrait.jpg", "coffee.png"],
            "target_video_path": "cat-2.mp4",
        },
        {
            "instruction": "invert it, with the cup",
            "reference_image_paths": ["coffee.png"],
            "source_video_path": "cat-3.mp4",
            "target_video_path": "negative-3.mp4",
        },
    ]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    (folder / "cats.json").write_text(json.dumps([{"text": f"cat {i}", "path": f"cat-{i}.mp4"} for i in range(4)]))
    return folder


@pytest.fixture
def make_config(model_folder, clips, tmp_path):
    """Settings of a small run, on all tasks if nothing else is said; nested ones as `data={"key": value}`."""

    def make(**options) -> TrainingConfig:
        values = {
            "model": str(model_folder),
            "output_dir": str(tmp_path / "run"),
            "data": {"datasets": [{"records": str(clips / "records.jsonl")}], "sizes": [[64, 64]], "num_workers": 0},
            "lora": {"rank": 4},
            "optimizer": {"learning_rate": 1e-3, "lr_warmup_steps": 0},
            "steps": 4,
            "mixed_precision": "no",
            "gradient_checkpointing": False,
        }
        for key, value in options.items():
            values[key] = (
                values[key] | value if isinstance(value, dict) and isinstance(values.get(key), dict) else value
            )
        return TrainingConfig.model_validate(values).with_defaults({})

    return make


@pytest.fixture(autouse=True)
def new_accelerator():
    """Each run configures its process anew, as runs do that have a process of their own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def run_again(config: TrainingConfig, **options) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train(config, **options)


def write_config(config: TrainingConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return path


def command(config: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "loomvideo_diffusers.training", str(config), *options]


def equal_files(first: Path, second: Path) -> bool:
    first, second = load_file(first), load_file(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Settings


def test_settings(tmp_path, clips):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: a\noutput_dir: b\nmixed_precision: no\ndata:\n  datasets:\n  - records: {clips}\n  sizes: 720p\n"
        "optimizer:\n  learning_rate: 1e-4\n"
    )
    config = load_config(path)
    assert config.optimizer.learning_rate == 1e-4
    assert config.mixed_precision == "no"
    assert config.lora is None
    assert (1280, 704) in config.data.size_list()
    assert (704, 1280) in config.data.size_list()


BASE = {"model": "m", "output_dir": "o", "data": {"datasets": [{"records": "r"}]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": 3}, "the key `step` is unknown: did you mean `steps`?"),
        ({"lora": {"rnak": 3}}, "the key `lora.rnak` is unknown: did you mean `rank`?"),
        ({"data": {"datasets": [{"records": "r", "wieght": 1}]}}, "did you mean `weight`?"),
        ({"data": {}}, "the key `data.datasets` is missing"),
        ({"data": {"datasets": []}}, "`data.datasets`: "),
        (
            {"data": {"datasets": [{"records": "r"}, {"records": "s", "weight": 2}]}},
            "all datasets a `weight`, or none",
        ),
        ({"data": BASE["data"] | {"max_frames": 80}}, "`data.max_frames`: must be 4k + 1"),
        ({"data": BASE["data"] | {"sizes": [[100, 64]]}}, "`data.sizes.0.0`: input should be a multiple of 32"),
        ({"steps": 0}, "`steps`: input should be greater than 0"),
        ({"steps": "many"}, "`steps`: "),
        ({"optimizer": {"learning_rate": float("nan")}}, "`optimizer.learning_rate`: "),
        ({"lora": None}, "`lora` is empty: give it keys, or leave it out to train all weights"),
        ({"steps": True}, "`steps`: must not be true or false"),
        ({"data": BASE["data"] | {"drop_all": 0.9, "drop_text": 0.9}}, "must not be more than 1 together"),
        (
            {"validation": {"samples": [{"prompt": "a", "num_frames": 6}]}},
            "`validation.samples.0.num_frames`: must be 4k",
        ),
        ({"mixed_precision": "fp8"}, "`mixed_precision`: input should be 'bf16' or 'no'"),
        ({"validation": {"samples": [{"prompt": "a", "video": "v", "image": "i"}]}}, "both `video` and `image`"),
    ],
)
def test_bad_settings(tmp_path, change, message):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(BASE | change))
    with pytest.raises(ValueError, match=r"config\.yaml") as error:
        load_config(path)
    assert message in str(error.value)


def test_no_settings(tmp_path):
    path = tmp_path / "config.yaml"
    with pytest.raises(ValueError, match="cannot be read"):
        load_config(path)
    path.write_text("steps: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(path)
    path.write_text("")
    with pytest.raises(ValueError, match="has no keys"):
        load_config(path)


# Records


def test_records(make_config, clips):
    records = read_records(make_config(data={"sizes": [[64, 64], [32, 64]]}).data)[0]
    found = [record_of(row) for row in records]
    assert [record.full_prompt("nothing") for record in found] == [
        "Generate a video: a cat",
        "Generate an image: a cup of coffee",
        "Edit this video: invert it",
        "Edit this image: crop it",
        "Generate a video with reference images: a cat (@Image 1) and a cup (@Image 2)",
        "Edit this video with reference images: invert it, with the cup",
    ]
    assert {record.full_prompt(dropped) for record in found for dropped in ("text", "all")} == {""}
    assert [record.shape for record in found] == [
        (9, 64, 64, 0), (1, 64, 64, 0), (9, 64, 64, 0), (1, 64, 32, 0), (9, 64, 64, 2), (9, 64, 64, 1)
    ]  # fmt: skip
    assert found[2].source == str(clips / "cat-1.mp4")
    assert found[2].where == f"{clips / 'records.jsonl'}:3"

    clip = read_clip(found[5], "nothing")
    assert clip.target.shape == clip.source.shape == (9, 64, 64, 3)
    assert (clip.target.float() - (255 - clip.source.float())).abs().mean() < 3
    assert [reference.shape for reference in clip.references] == [(64, 64, 3)]
    dropped = read_clip(found[5], "all")
    assert (dropped.source, dropped.references, dropped.prompt) == (None, [], "")
    without_words = read_clip(found[5], "text")
    assert torch.equal(without_words.source, clip.source)
    assert without_words.prompt == ""


def test_source_and_target_are_cut_alike(make_config, clips, tmp_path):
    write_video(tmp_path / "short.mp4", read_video(clips / "negative-0.mp4")[:6])
    record = {"instruction": "a", "source_video_path": str(clips / "cat-0.mp4"), "target_video_path": "short.mp4"}
    (tmp_path / "r.jsonl").write_text(json.dumps(record))
    record = record_of(read_records(make_config(data={"datasets": [{"records": str(tmp_path)}]}).data)[0][0])
    clip = read_clip(record, "nothing")
    assert record.num_frames == len(clip.source) == len(clip.target) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "path": "cat-0.mp4", "fps": 24}', "records.jsonl:2 has the unknown key `fps`"),
        ('{"text": "a"}', "records.jsonl:2 has no prompt or no target"),
        ('{"path": "cat-0.mp4"}', "records.jsonl:2 has no prompt or no target"),
        ('{"text": "a", "instruction": "b", "path": "cat-0.mp4"}', "has both `text` and `instruction`"),
        ('{"text": 3, "path": "cat-0.mp4"}', "`text` must be a string"),
        ('{"text": "a", "path": "cat-9.mp4"}', "`path` names"),
        ('{"text": "a", "path": "cat-0.mp4", "reference_image_paths": "coffee.png"}', "must be a list of strings"),
        ('{"text": "a", "path": "cat-0.mp4", "reference_image_paths": ["tea.png"]}', "tea.png, which is not there"),
        ('{"text": "", "path": "cat-0.mp4"}', "`text` is blank: say what to show"),
        ('{"instruction": " \\u3000\\n", "path": "cat-0.mp4"}', "`instruction` is blank"),
        (
            '{"instruction": "a", "source_image_path": "coffee.png", "target_video_path": "cat-0.mp4"}',
            "`source_image_path` does not go with `target_video_path`",
        ),
        ('{"text": "<|vision_start|>", "path": "cat-0.mp4"}', "must not hold the MLLM's markers"),
        ('{"text": "\\ud83d", "path": "cat-0.mp4"}', "holds half a character"),
        ('{"text": "a", "path": "."}', "which is no file"),
        ("[" * 100000, "records.jsonl:2 is not JSON"),
        ("[1]", "records.jsonl:2 is not a JSON object"),
        ('{"text": ', "records.jsonl:2 is not JSON"),
    ],
)
def test_bad_records(make_config, clips, tmp_path, line, message):
    path = tmp_path / "records.jsonl"
    path.write_text('{"text": "a cat", "path": "cat-0.mp4"}\n' + line + "\n")
    config = make_config(data={"datasets": [{"records": str(path), "root": str(clips)}]})
    with pytest.raises(ValueError, match=r"records\.jsonl:2") as error:
        train(config)
    assert message in str(error.value)
    assert not Path(config.output_dir).exists()


def test_forms_of_records(make_config, clips, tmp_path):
    """As editors and tables write them: marks, line ends, nulls, capitals, folders of files, and other line breaks."""
    shutil.copy(clips / "cat-0.mp4", tmp_path / "CAT.MP4")
    read_image(clips / "coffee.png").save(tmp_path / "tea.bmp")
    lines = ['{"text": "a\u2028b", "path": "CAT.MP4", "instruction": null, "reference_image_paths": null}', ""]
    lines += ['{"text": "c", "path": "tea.bmp"}']
    (tmp_path / "B.JSONL").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8", newline="")
    (tmp_path / "a.json").write_text('{"text": "d", "path": "CAT.MP4"}')
    rows = read_records(make_config(data={"datasets": [{"records": str(tmp_path)}]}).data)[0]
    assert [record_of(row).full_prompt("nothing") for row in rows] == [
        "Generate a video: a\u2028b", "Generate an image: c", "Generate a video: d"
    ]  # fmt: skip
    assert [row["where"].split("/")[-1] for row in rows] == ["B.JSONL:1", "B.JSONL:3", "a.json[0]"]


def test_empty_datasets(make_config, tmp_path):
    for records in (tmp_path, tmp_path / "nothing.json"):
        with pytest.raises(ValueError, match=str(records)):
            train(make_config(data={"datasets": [{"records": str(records)}]}))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl has no records"):
        train(make_config(data={"datasets": [{"records": str(tmp_path / "empty.jsonl")}]}))


# Order


def make_sampler(**options) -> TokenBatchSampler:
    shapes = [(9, 64, 64, 0)] * 50 + [(1, 64, 64, 0)] * 40 + [(81, 480, 832, 1)] * 10
    values = {"shapes": shapes, "dataset_of": [0] * 70 + [1] * 30, "weights": None, "token_size": (4, 32)}
    return TokenBatchSampler(**(values | {"tokens_per_batch": 40, "seed": 3} | options))


def test_every_record_comes_once_an_epoch():
    sampler = make_sampler()
    first, second = sampler.epoch(0), sampler.epoch(1)
    assert sorted(draw.row for batch in first for draw in batch) == list(range(100))
    assert first != second
    assert make_sampler().epoch(0) == first
    assert make_sampler(seed=4).epoch(0) != first
    assert len({draw.seed for batch in first + second for draw in batch}) == 200


def test_batches_have_one_shape_and_a_token_budget():
    assert num_tokens((9, 64, 64, 0), (4, 32)) == 12
    assert num_tokens((81, 480, 832, 1), (4, 32)) == 22 * 15 * 26
    sampler = make_sampler()
    sizes = Counter()
    for batch in sampler.epoch(0):
        (shape,) = {sampler.shapes[draw.row] for draw in batch}
        sizes[shape, len(batch)] += 1
    assert sizes[(9, 64, 64, 0), 3] == 16  # 36 tokens each, and a rest of 2 samples
    assert sizes[(1, 64, 64, 0), 10] == 4
    assert sizes[(81, 480, 832, 1), 1] == 10


def test_processes_take_turns():
    """Wherever a run is taken up, and in however many processes, the batches are the same."""
    alone = iter(make_sampler())
    expected = [next(alone) for _ in range(100)]
    for first_batch, num_processes in ((0, 2), (7, 1), (34, 3)):
        turns = [
            iter(make_sampler(first_batch=first_batch, num_processes=num_processes, process_index=index))
            for index in range(num_processes)
        ]
        order = [(first_batch + index) % num_processes for index in range(60)]
        assert [next(turns[index]) for index in order] == expected[first_batch : first_batch + 60]


def test_weights():
    """Datasets come as often as their weights say, and within each no record comes twice before all came once."""
    sampler = make_sampler(weights=[1.0, 3.0])
    rows = [draw.row for number in range(4) for batch in sampler.epoch(number) for draw in batch]
    counts = Counter(rows)
    assert sum(counts[row] for row in range(70)) == 4 * 25
    assert sum(counts[row] for row in range(70, 100)) == 4 * 75
    assert {counts[row] for row in range(70)} == {1, 2}
    assert {counts[row] for row in range(70, 100)} == {10}

    sampler = TokenBatchSampler([(9, 64, 64, 0)] * 10, [0] * 5 + [2] * 5, [1000.0, 5.0, 1.0], (4, 32), 12, seed=0)
    rows = [draw.row for number in range(1001) for batch in sampler.epoch(number) for draw in batch]
    assert sum(row < 5 for row in rows) == pytest.approx(1000 * sum(row >= 5 for row in rows), rel=0.1)


def test_dropped_conditions(make_config):
    records = read_records(make_config().data)[0]
    dataset = TrainingDataset(records, lambda record, dropped: dropped, drop_all=0.1, drop_text=0.2)
    counts = Counter(dataset[Draw(0, seed)].content for seed in range(3000))
    assert counts["all"] == pytest.approx(300, abs=50)
    assert counts["text"] == pytest.approx(600, abs=70)


def test_timesteps():
    """Logit-normal where nothing is shifted, and towards noise where there are many tokens."""
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.tensor([sample_timestep(1.0, generator) for _ in range(4000)])
    logits = timesteps.logit()
    assert logits.mean().item() == pytest.approx(0, abs=0.06)
    assert logits.std().item() == pytest.approx(1, abs=0.04)
    shifted = sample_timestep(dynamic_shift(4096), torch.Generator().manual_seed(1))
    plain = sample_timestep(dynamic_shift(64), torch.Generator().manual_seed(1))
    assert dynamic_shift(4096) == 4.0
    assert shifted == pytest.approx(4 * plain / (1 + 3 * plain))


# Features


def test_features_are_those_of_the_pipelines(make_config, model_folder, edit):
    """What training reads is what the pipelines compute of the same files."""
    records = [record_of(row) for row in read_records(make_config().data)[0]]
    encoders = Encoders(str(model_folder), 4, torch.device("cpu"), torch.float32)
    for record in records:
        clip = read_clip(record, "nothing")
        features = encoders.encode(clip)
        inputs = {"reference_images": [image.numpy() for image in clip.references] or None}
        pipe = LoomVideoPipeline.from_pipe(edit)
        if clip.source is not None:
            pipe = edit
            source = clip.source.numpy()
            inputs |= {"video": source} if record.is_video else {"image": source[0]}
        inputs |= {"height": record.height, "width": record.width, "num_frames": record.num_frames}
        with torch.no_grad():
            expected = pipe.encode_prompt(record.prompt, **inputs)[0]
        assert torch.equal(features.prompt["prompt_embeds"], expected[0])
        assert features.latents.shape == (8, (record.num_frames - 1) // 4 + 1, 4, 4)
        assert len(features.reference_latents) == len(record.references)


def test_features_on_disk_train_the_same(make_config, tmp_path):
    result = run_again(make_config(output_dir=str(tmp_path / "fly"), steps=6))
    stored = make_config(output_dir=str(tmp_path / "stored"), steps=6, data={"features": str(tmp_path / "features")})
    assert equal_files(result, run_again(stored))
    # 4 clips of videos, 2 sources, 2 images in 2 places; 6 prompts, 4 of them with vision without words, and nothing
    assert len(list((tmp_path / "features" / "latents").rglob("*.safetensors"))) == 4 + 2 + 2
    assert len(list((tmp_path / "features" / "prompts").rglob("*.safetensors"))) == 6 + 4 + 1


def test_only_the_features_that_are_needed(make_config, tmp_path):
    """Prompts without words take as much room as those with them, and are left out where no text is dropped."""
    train(make_config(data={"features": str(tmp_path / "features"), "drop_text": 0.0, "drop_all": 0.0}))
    assert len(list((tmp_path / "features" / "prompts").rglob("*.safetensors"))) == 6


def test_features_replace_the_encoders(make_config, tmp_path, monkeypatch, capsys):
    """With all features there, neither the VAE nor the MLLM is loaded; a changed file is computed anew."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(FIXTURES / "coffee.jpg", data / "a.jpg")
    (data / "r.jsonl").write_text('{"text": "a", "path": "a.jpg"}\n')
    settings = {"datasets": [{"records": str(data)}], "features": str(tmp_path / "features")}
    config = make_config(data=settings)
    assert train(config, precompute_only=True) is None
    count = len(list((tmp_path / "features").rglob("*.safetensors")))
    assert count == 3

    def refuse(*arguments):
        raise AssertionError("the encoders were loaded")

    monkeypatch.setattr(features_module, "LoomVideoEditPipeline", refuse)
    assert run_again(config).exists()
    monkeypatch.undo()
    write_image(data / "a.jpg", read_image(data / "a.jpg").rotate(180))
    run_again(config, resume=True)
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == count + 1


def test_sources_that_are_shorter_than_their_targets(make_config, clips, tmp_path, monkeypatch):
    """A target is kept whole, for samples in which it has no source, and cut where it has."""
    write_video(tmp_path / "short.mp4", read_video(clips / "cat-0.mp4")[:5])
    record = {"instruction": "a", "source_video_path": "short.mp4", "target_video_path": str(clips / "cat-0.mp4")}
    (tmp_path / "r.jsonl").write_text(json.dumps(record))
    config = make_config(data={"datasets": [{"records": str(tmp_path)}], "features": str(tmp_path / "features")})
    # As if the header had promised more.
    row = read_records(config.data)[0][0] | {"num_frames": 9}
    store = FeatureStore(
        config.data.features, hash_inputs(config.model, record_of(row).files), 4, torch.float32, ["nothing", "all"]
    )
    encoders = Encoders(config.model, 4, torch.device("cpu"), torch.float32)
    store.write(record_of(row), read_clip(record_of(row), "nothing"), encoders)
    for dropped, length in (("nothing", 2), ("all", 3)):
        expected = encoders.encode(read_clip(record_of(row), dropped))
        features = store.read(record_of(row), dropped)
        assert features.latents.shape[1] == length
        assert (features.latents - expected.latents).abs().max() < 1e-5
        assert torch.equal(features.prompt["prompt_embeds"], expected.prompt["prompt_embeds"])


def test_interrupted_features(make_config, clips, tmp_path):
    """Killed at any moment, computing features leaves whole files, and goes on where it was."""
    config = make_config(data={"features": str(tmp_path / "features")})
    path = write_config(config, tmp_path / "config.yaml")
    process = subprocess.Popen(command(path, "--precompute-only"), stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "features").rglob("*.safetensors"))) < 4:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").rglob("*.safetensors")}
    assert all(load_file(file) for file in before)
    train(config, precompute_only=True)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    records, _ = read_records(config.data)
    files = [file for row in records for file in record_of(row).files]
    digests = hash_inputs(config.model, files)
    store = FeatureStore(config.data.features, digests, 4, torch.float32, config.data.variants())
    assert all(store.is_complete(record_of(row)) for row in records)


# Runs


def test_lora_overfits(make_config, clips, model_folder, tmp_path, pipe):
    """A LoRA of rank 8 on four clips: its loss falls by 60 % in 200 steps, and its file changes what is generated."""
    config = make_config(
        data={
            "datasets": [{"records": str(clips / "cats.json")}],
            "features": str(tmp_path / "features"),
            "drop_all": 0.0,
            "drop_text": 0.0,
        },
        lora={"rank": 8, "target_modules": ALL_LAYERS},
        optimizer={"learning_rate": 1e-2},
        steps=200,
    )
    path = train(config)
    records, _ = read_records(config.data)
    files = [file for row in records for file in record_of(row).files]
    digests = hash_inputs(config.model, files)
    store = FeatureStore(config.data.features, digests, 4, torch.float32, config.data.variants())
    dataset = TrainingDataset(records, store.read, 0.0, 0.0)
    samples = [
        make_sample(dataset[Draw(seed % 4, 1000 + seed)], None, (1, 2, 2), None, torch.device("cpu"))
        for seed in range(32)
    ]

    @torch.no_grad()
    def loss() -> float:
        return squared_error(pipe.transformer, samples).item() / sum(sample.latents.numel() for sample in samples)

    call = {"prompt": "cat 1", "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 4}

    def generate() -> np.ndarray:
        return pipe(**call, generator=torch.Generator().manual_seed(0), output_type="latent").frames.numpy()

    loss_before, latents_before = loss(), generate()
    pipe.load_lora_weights(path)
    assert loss() < 0.4 * loss_before
    latents = generate()
    assert np.abs(latents - latents_before).max() > 0.1
    pipe.fuse_lora()
    assert np.abs(generate() - latents).max() < 1e-4


RESUMED = {
    "lora": {"lora": {"rank": 4, "dropout": 0.1, "target_modules": ALL_LAYERS}, "ema_decay": 0.9},
    "full": {"lora": None, "ema_decay": 0.9},
    "text encoder, muon": {
        "lora": None,
        "train_text_encoder": True,
        "ema_decay": 0.9,
        "optimizer": {"name": "muon", "lr_scheduler": "constant"},
    },
    "checkpointing, accumulation, workers": {
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 2,
        "data": {"num_workers": 2},
    },
}


@pytest.mark.parametrize("kind", RESUMED)
def test_resumed_equals_unbroken(make_config, kind, tmp_path):
    """20 steps, and 10 and 10: the same weights, bit for bit, and the same optimizer."""
    options = RESUMED[kind] | {"checkpoint_every": 10}
    results, text_encoders = [], []
    for name, stages in (("unbroken", [20]), ("resumed", [10, 20])):
        for steps in stages:
            torch.manual_seed(random.randrange(1000))
            result = run_again(
                make_config(**options, steps=steps, output_dir=str(tmp_path / name)), resume=steps > stages[0]
            )
        if result.is_dir():
            if (text_encoder := result.parent / "text_encoder" / "model.safetensors").exists():
                text_encoders.append(text_encoder)
            result = result / "diffusion_pytorch_model.safetensors"
        results.append((result, tmp_path / name / "checkpoints" / "step-000020"))
    (unbroken, unbroken_checkpoint), (resumed, resumed_checkpoint) = results
    assert equal_files(unbroken, resumed)
    assert len(text_encoders) == (2 if options.get("train_text_encoder") else 0)
    assert not text_encoders or equal_files(*text_encoders)
    for file in unbroken_checkpoint.glob("*.safetensors"):
        assert equal_files(file, resumed_checkpoint / file.name)
    for file in unbroken_checkpoint.glob("optimizer*.bin"):
        states = [torch.load(path, weights_only=True)["state"] for path in (file, resumed_checkpoint / file.name)]
        for index, state in states[0].items():
            assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())


def kill_and_resume(config: TrainingConfig, times: int, tmp_path: Path, seed: int) -> int:
    """Kills a run as often while it writes a checkpoint, resumes it each time, and returns how often it was killed."""
    path = write_config(config, tmp_path / "config.yaml")
    checkpoints = Path(config.output_dir) / "checkpoints"
    rng = random.Random(seed)
    killed = 0
    for _ in range(times):
        process = subprocess.Popen(
            command(path, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        began = len(find_checkpoints(checkpoints))
        last = find_checkpoints(checkpoints)[-1:]
        skipped = rng.randrange(3)
        while process.poll() is None:
            if any(checkpoints.glob(".unfinished-*")) and find_checkpoints(checkpoints)[-1:] != last:
                skipped -= 1
                last = find_checkpoints(checkpoints)[-1:]
                if skipped < 0:
                    time.sleep(rng.uniform(0, 0.03))
                    process.send_signal(signal.SIGKILL)
                    break
        process.wait()
        killed += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), process.stderr.read()
        assert len(find_checkpoints(checkpoints)) >= min(began, 1)
    return killed


@pytest.mark.slow
def test_killed_while_writing_checkpoints(make_config, tmp_path):
    """There is always a whole checkpoint, and going on from it gives what an unbroken run gives, bit for bit."""
    times = 20
    options = {"lora": {"rank": 4, "target_modules": ALL_LAYERS}, "checkpoint_every": 1, "steps": 10 * times}
    expected = run_again(make_config(**options, output_dir=str(tmp_path / "unbroken")))
    config = make_config(**options, output_dir=str(tmp_path / "killed"))
    assert kill_and_resume(config, times, tmp_path, seed=times) == times
    result = run_again(config, resume=True)
    assert equal_files(result, expected)
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_killed_at_random_moments(make_config, clips, tmp_path):
    """Whatever it was doing, the run goes on, gives what an unbroken one gives, and leaves nothing behind."""
    sample = {"prompt": "a cat", "video": str(clips / "cat-1.mp4"), "height": 64, "width": 64}
    options = {
        "lora": {"rank": 4},
        "checkpoint_every": 2,
        "steps": 120,
        "validation": {"samples": [sample], "every": 10, "num_inference_steps": 2},
    }
    folders = {name: tmp_path / name for name in ("unbroken", "killed")}
    configs = {
        name: make_config(**options, output_dir=str(folder), data={"features": str(tmp_path / f"{name}-features")})
        for name, folder in folders.items()
    }
    expected = run_again(configs["unbroken"])
    path, rng, num_killed = write_config(configs["killed"], tmp_path / "config.yaml"), random.Random(0), 0
    for number in range(15):
        process = subprocess.Popen(
            command(path, "--resume"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if number < 3:
            # While it computes features
            while len(list((tmp_path / "killed-features").rglob("*.safetensors"))) <= number:
                time.sleep(0.001)
        else:
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.5 if number >= 3 else 0.1))
        process.kill()
        num_killed += process.wait() == -signal.SIGKILL
    assert num_killed >= 10
    assert equal_files(run_again(configs["killed"], resume=True), expected)
    for folder in (folders["killed"], tmp_path / "killed-features"):
        assert not list(folder.rglob(".*"))
    for sheet in (folders["unbroken"] / "samples").iterdir():
        again = folders["killed"] / "samples" / sheet.name
        assert again.read_bytes() == sheet.read_bytes() or sheet.suffix == ".mp4"


@pytest.mark.slow
def test_two_processes_are_terminated(make_config, tmp_path):
    """They end at the same step, though they learn of it at different moments."""
    config = make_config(steps=100_000, checkpoint_every=100_000)
    path = write_config(config, tmp_path / "config.yaml")
    port = f"--master_port={random.randrange(20000, 60000)}"
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", port]
    process = subprocess.Popen(
        [*run, *command(path)[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    while not (line := process.stdout.readline()).startswith("Training"):
        assert line
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    (checkpoint,) = find_checkpoints(Path(config.output_dir) / "checkpoints")
    step = int(checkpoint.name.removeprefix("step-"))
    assert f"terminated after step {step}, of which there is a checkpoint" in errors
    assert {file.name for file in checkpoint.glob("random_states_*")} == {"random_states_0.pkl", "random_states_1.pkl"}


def test_two_processes_equal_twice_the_accumulation(make_config, tmp_path):
    """The gradients of the first step, out of the optimizer's averages, and the weights after three."""
    options = {"steps": 3, "checkpoint_every": 1, "keep_checkpoints": 3, "gradient_checkpointing": True}
    options["lora"] = {"target_modules": ALL_LAYERS}
    alone = make_config(**options, gradient_accumulation_steps=2, output_dir=str(tmp_path / "alone"))
    train(alone)
    sample = {"prompt": "a cat", "height": 64, "width": 64, "num_frames": 1}
    together = make_config(
        **options,
        output_dir=str(tmp_path / "together"),
        data={"features": str(tmp_path / "features")},
        validation={"samples": [sample, sample], "num_inference_steps": 1},
    )
    path = write_config(together, tmp_path / "config.yaml")

    def launch(*arguments: str) -> None:
        port = f"--master_port={random.randrange(20000, 60000)}"
        run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", port]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*run, *command(path, *arguments)[1:]], check=True, capture_output=True, env=environment, timeout=200
        )

    launch()
    # One process has to make its sample again, which the other waits for.
    sheet = tmp_path / "together" / "samples" / "step-000003-1.png"
    sheet.unlink()
    launch("--resume")
    assert sheet.exists()
    gradients = []
    for config in (alone, together):
        checkpoint = Path(config.output_dir) / "checkpoints" / "step-000001"
        state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
        gradients.append([average["exp_avg"] / 0.1 for average in state.values()])
    assert sum(gradient.abs().sum() for gradient in gradients[0]) > 0
    for first, second in zip(*gradients):
        assert (first - second).abs().max() < 1e-5
    weights = [load_file(Path(config.output_dir) / "pytorch_lora_weights.safetensors") for config in (alone, together)]
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-5


def test_bfloat16(make_config, tmp_path):
    """The frozen weights are in bfloat16, the trained ones in float32, and the loss is about the same."""
    losses = []
    for precision in ("no", "bf16"):
        config = make_config(
            mixed_precision=precision,
            tracker="tensorboard",
            output_dir=str(tmp_path / precision),
            validation={
                "samples": [{"prompt": "a cat", "height": 64, "width": 64, "num_frames": 1}],
                "num_inference_steps": 2,
            },
        )
        result = run_again(config)
        assert {tensor.dtype for tensor in load_file(result).values()} == {torch.float32}
        losses.append(read_log(config, "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.slow
def test_compiled_blocks(make_config, tmp_path):
    """Those of transformer and MLLM compute what the others compute, and are saved under the same names."""
    results = {}
    for compile_blocks in (False, True):
        settings = {"lora": None, "train_text_encoder": True, "compile_blocks": compile_blocks}
        torch._dynamo.utils.clear_compilation_metrics()
        folder = run_again(make_config(**settings, output_dir=str(tmp_path / str(compile_blocks))))
        compiled = {Path(metrics.co_filename).stem for metrics in torch._dynamo.utils.get_compilation_metrics()}
        assert compiled == ({"transformer_loomvideo", "modeling_qwen3_vl"} if compile_blocks else set())
        transformer = load_file(folder / "diffusion_pytorch_model.safetensors")
        results[compile_blocks] = transformer | load_file(folder.parent / "text_encoder" / "model.safetensors")
    assert results[True].keys() == results[False].keys()
    for name, tensor in results[False].items():
        torch.testing.assert_close(results[True][name], tensor, atol=1e-4, rtol=1e-3)


def read_log(config: TrainingConfig, name: str) -> list[float]:
    log = EventAccumulator(str(Path(config.output_dir) / "logs" / "loomvideo"))
    log.Reload()
    return [event.value for event in log.Scalars(name)]


def test_validation_and_result(make_config, clips, tmp_path):
    samples = [
        {"prompt": "a cat", "height": 64, "width": 64, "num_frames": 9},
        {"prompt": "invert it", "video": str(clips / "cat-1.mp4"), "reference_images": [str(clips / "coffee.png")]},
        {"prompt": "crop it", "image": str(clips / "coffee.png"), "height": 64, "width": 64},
    ]
    validation = {"samples": samples, "every": 2, "num_inference_steps": 1, "guidance_scale": 2.0}
    settings = {"validation": validation, "tracker": "tensorboard", "steps": 4, "ema_decay": 0.5}
    config = make_config(**settings, data={"features": str(tmp_path / "features")})
    result = train(config)
    folder = Path(config.output_dir)
    names = {path.name for path in (folder / "samples").iterdir()}
    assert names == {f"step-00000{step}-{n}.png" for step in (2, 4) for n in (1, 2, 3)} | {
        f"step-00000{step}-{n}.mp4" for step in (2, 4) for n in (1, 2)
    }
    assert read_video(folder / "samples" / "step-000004-2.mp4").shape == (9, 96, 96, 3)
    assert read_image(folder / "samples" / "step-000004-2.png").height == 2 * 128
    assert len(read_log(config, "loss")) == 4

    assert result == folder / "pytorch_lora_weights.safetensors"
    card = (folder / "README.md").read_text()
    assert "base_model" not in card.split("---")[1]
    assert str(config.model) not in card
    assert "![a cat](samples/step-000004-1.png)" in card
    assert "rank: 4" in card


def test_what_the_model_says_is_the_default(make_config, model_folder, clips, tmp_path):
    """Of sizes and frames of the data, and of samples."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    options = {"height": 32, "width": 64, "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1.0}
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"default_options": options}))
    samples = [{"prompt": "a cat"}, {"prompt": "a dog", "video": str(clips / "cat-1.mp4")}]
    samples += [{"prompt": "a cup", "image": str(clips / "coffee.png")}]
    samples += [{"prompt": "a cat", "num_frames": 1, "height": 64, "width": 64}]
    values = make_config(validation={"samples": samples}, steps=2).model_dump()
    values |= {"model": str(folder), "data": {"datasets": values["data"]["datasets"], "num_workers": 0}}
    train(TrainingConfig.model_validate(values))
    made = tmp_path / "run" / "samples"
    assert read_video(made / "step-000002-1.mp4").shape == read_video(made / "step-000002-2.mp4").shape
    assert read_video(made / "step-000002-1.mp4").shape == (5, 32, 64, 3)
    # Two rows of one picture, 128 high; and a square one
    assert read_image(made / "step-000002-3.png").size == (256, 256)
    assert read_image(made / "step-000002-4.png").size == (128, 128)
    (checkpoint,) = find_checkpoints(tmp_path / "run" / "checkpoints")
    data = json.loads((checkpoint / "trainer_state.json").read_text())["config"]["data"]
    assert (data["sizes"], data["max_frames"]) == ([[64, 32]], 5)
    # What is said goes before.
    config = make_config(data={"sizes": [[64, 64]], "max_frames": 9}).with_defaults(options)
    assert (config.data.sizes, config.data.max_frames) == ([(64, 64)], 9)


def test_validation_that_was_interrupted(make_config):
    """A run that ended between its last checkpoint and its last samples makes them when it is resumed."""
    sample = {"prompt": "a cat", "height": 64, "width": 64, "num_frames": 1}
    config = make_config(steps=2, validation={"samples": [sample], "num_inference_steps": 1})
    train(config)
    sheet = Path(config.output_dir) / "samples" / "step-000002-1.png"
    sheet.unlink()
    run_again(config, resume=True)
    assert sheet.exists()


def test_full_fine_tune(make_config, model_folder):
    result = train(make_config(lora=None, steps=2))
    trained = LoomVideoTransformer3DModel.from_pretrained(result)
    before = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer").state_dict()
    changed = [name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])]
    assert set(changed) == set(before)
    pipe = LoomVideoEditPipeline.from_pretrained(model_folder, transformer=trained)
    assert pipe.transformer is trained


def test_text_encoder_and_transformer_as_one_model(make_config, model_folder):
    """Trained with its MLLM, a batch of prompts of any lengths has the loss that it has with embeds made before."""
    config = make_config(lora=None)
    items = {}
    for num_layers in (None, 4):
        encoders = Encoders(str(model_folder), num_layers, torch.device("cpu"), torch.float32)
        dataset = TrainingDataset(read_records(config.data)[0], read_clip, 0.0, 0.0)
        items[num_layers] = [
            make_sample(dataset[Draw(row, row)], encoders, (1, 2, 2), None, torch.device("cpu")) for row in (0, 2, 4)
        ]
    transformer = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")
    text_encoder = Qwen3VLModel.from_pretrained(model_folder, subfolder="text_encoder")
    as_one = TransformerWithTextEncoder(transformer, text_encoder)
    for group, embedded in zip(group_by_shape(items[None]), group_by_shape(items[4])):
        error = squared_error(as_one, group)
        assert error.item() == pytest.approx(squared_error(transformer, embedded).item(), rel=1e-5)
        error.backward()
    assert text_encoder.language_model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
    assert text_encoder.visual.blocks[0].mlp.linear_fc1.weight.grad.abs().max() > 0


def test_training_the_text_encoder(make_config, clips, model_folder, tmp_path):
    """It learns too, from features on disk as from clips, is shown as it is then, and loads with the transformer."""
    options = {"lora": None, "train_text_encoder": True, "optimizer": {"learning_rate": 1e-2}}
    sample = {"prompt": "invert it", "video": str(clips / "cat-1.mp4"), "height": 64, "width": 64}
    options["validation"] = {"samples": [sample], "every": 2, "num_inference_steps": 1}
    result = train(make_config(**options))
    trained = load_file(result.parent / "text_encoder" / "model.safetensors")
    before = load_file(model_folder / "text_encoder" / "model.safetensors")
    assert trained.keys() == before.keys()
    assert (
        trained["language_model.embed_tokens.weight"] - before["language_model.embed_tokens.weight"]
    ).abs().max() > 0
    sheets = sorted((tmp_path / "run" / "samples").glob("*.png"))
    assert len(sheets) == 2
    assert sheets[0].read_bytes() != sheets[1].read_bytes()
    stored = make_config(**options, data={"features": str(tmp_path / "features")}, output_dir=str(tmp_path / "stored"))
    again = run_again(stored)
    assert equal_files(result / "diffusion_pytorch_model.safetensors", again / "diffusion_pytorch_model.safetensors")
    pipe = LoomVideoPipeline.from_pretrained(
        model_folder,
        transformer=LoomVideoTransformer3DModel.from_pretrained(result),
        text_encoder=Qwen3VLModel.from_pretrained(result.parent / "text_encoder"),
    )
    assert pipe("a cat", height=64, width=64, num_frames=1, num_inference_steps=1).frames.shape == (1, 1, 64, 64, 3)


def test_what_is_read_when_all_is_dropped(make_config):
    config = make_config(data={"drop_all_prompt": "nothing at all"})
    record = record_of(read_records(config.data)[0][2])
    prompts = [record.full_prompt(dropped) for dropped in ("nothing", "text", "all")]
    assert prompts == ["Edit this video: invert it", "", "nothing at all"]


def test_timestep_shift(make_config, model_folder):
    """A shift of the settings takes the place of that by the number of tokens."""
    encoders = Encoders(str(model_folder), 4, torch.device("cpu"), torch.float32)
    item = TrainingDataset(read_records(make_config().data)[0], read_clip, 0.0, 0.0)[Draw(1, 5)]
    own, plain, shifted = (
        make_sample(item, encoders, (1, 2, 2), shift, torch.device("cpu")).timestep for shift in (None, 1.0, 4.0)
    )
    assert own == plain
    assert shifted == pytest.approx(4 * plain / (1 + 3 * plain))


def test_lora_with_muon(make_config):
    """All of an adapter is matrices, so that AdamW has nothing to do beside it."""
    adapter = load_file(run_again(make_config(optimizer={"name": "muon"}, steps=2)))
    assert all(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)


def test_learning_rate(make_config):
    config = make_config(
        optimizer={"lr_warmup_steps": 2, "lr_scheduler": "linear", "learning_rate": 1e-3}, tracker="tensorboard"
    )
    train(config)
    assert read_log(config, "learning_rate") == pytest.approx([0, 5e-4, 1e-3, 5e-4])


def test_learning_rate_that_falls_in_the_end(make_config):
    """A run may be made longer, and decide when its rate is to fall, until it has begun to fall."""
    options = {"lr_warmup_steps": 1, "learning_rate": 1e-3}
    train(make_config(steps=2, optimizer=options))
    config = make_config(steps=5, checkpoint_every=1, optimizer=options | {"lr_decay_steps": 2}, tracker="tensorboard")
    run_again(config, resume=True)
    assert read_log(config, "learning_rate") == pytest.approx([1e-3, 1e-3, 5e-4])
    with pytest.raises(ValueError, match=r"`optimizer\.lr_decay_steps` is 3, but was 2"):
        run_again(make_config(steps=6, optimizer=options | {"lr_decay_steps": 3}), resume=True)


def test_push(make_config, hub, tmp_path):
    """The LoRA and its card arrive, checkpoints and logs do not, and the token is never shown."""
    settings = {"steps": 2, "hub_model_id": "me/cats"}
    with pytest.raises(ValueError, match="states no licence: say one by `license`"):
        train(make_config(**settings), push=True)
    config = write_config(make_config(**settings, license="mit"), tmp_path / "config.yaml")
    push = [*command(config), "--push-to-hub"]
    result = subprocess.run(push, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"Pushed: {hub.address}/me/cats" in result.stdout
    assert "hf_mine" not in result.stdout + result.stderr
    assert hub.files("me/cats") == {"README.md", "pytorch_lora_weights.safetensors"}
    lora = (tmp_path / "run" / "pytorch_lora_weights.safetensors").read_bytes()
    assert hub.read("me/cats", "pytorch_lora_weights.safetensors") == lora
    card = ModelCard.load("me/cats")
    assert 'pipe.load_lora_weights("me/cats")' in card.text
    assert re.search(r"\| LoRA \| [\d,]+ \| float32 \| [\d.]+ MB \|", card.text)
    assert card.data.license == "mit"
    card.validate()

    shutil.rmtree(tmp_path / "run")
    refused = subprocess.run(
        push, capture_output=True, text=True, check=False, env=os.environ | {"HF_TOKEN": "hf_wrong"}
    )
    assert refused.returncode == 2
    assert "401" in refused.stderr
    assert "hf_wrong" not in refused.stderr
    unreachable = subprocess.run(
        push, capture_output=True, text=True, check=False, env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert unreachable.returncode == 2
    assert "me/cats cannot be made on the Hub" in unreachable.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


# What goes wrong


def test_running_twice(make_config, tmp_path):
    config = make_config(steps=2)
    train(config)
    with pytest.raises(ValueError, match="has checkpoints already: go on from the last one with --resume"):
        run_again(config)
    with pytest.raises(ValueError, match=r"`optimizer\.learning_rate` is 0\.5, but was 0\.001 when .*step-000002"):
        run_again(make_config(steps=4, optimizer={"learning_rate": 0.5}), resume=True)
    with pytest.raises(ValueError, match=r"Processes times `gradient_accumulation_steps` are 2, but were 1"):
        run_again(make_config(steps=4, gradient_accumulation_steps=2), resume=True)
    with pytest.raises(ValueError, match=r"`steps` is 1, but .*step-000002 is beyond that"):
        run_again(make_config(steps=1), resume=True)
    options = {"optimizer": {"lr_scheduler": "cosine"}, "output_dir": str(tmp_path / "cosine")}
    run_again(make_config(steps=3, **options))
    with pytest.raises(ValueError, match=r"`steps` is 4, but was 3"):
        run_again(make_config(steps=4, **options), resume=True)
    with pytest.raises(ValueError, match="`hub_model_id` is missing"):
        run_again(config, push=True)
    with pytest.raises(ValueError, match=r"`data\.features` is missing"):
        run_again(config, precompute_only=True)


def test_records_that_changed(make_config, clips, tmp_path):
    for line in ('{"text": "a cat", "path": "cat-0.mp4"}', '{"text": "a dog", "path": "cat-0.mp4"}'):
        (tmp_path / "r.jsonl").write_text(line)
        config = make_config(steps=2, data={"datasets": [{"records": str(tmp_path), "root": str(clips)}]})
        if "dog" in line:
            with pytest.raises(ValueError, match=r"The records are not those that .*step-000002 was written with"):
                run_again(config, resume=True)
        else:
            train(config)


@pytest.mark.parametrize(
    "name", ["optimizer.bin", "random_states_0.pkl", "trainer_state.json", "pytorch_lora_weights.safetensors"]
)
def test_damaged_checkpoints(make_config, name):
    """They are named, and with the newest deleted, the run goes on from the one before."""
    config = make_config(steps=3, checkpoint_every=1)
    result = load_file(train(config))
    newest = find_checkpoints(Path(config.output_dir) / "checkpoints")[-1]
    file = newest / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        ValueError, match=r"step-000003 is damaged .*: delete it, and --resume takes the one before it"
    ):
        run_again(config, resume=True)
    if name == "trainer_state.json":
        file.write_text("{}")
        with pytest.raises(ValueError, match="step-000003 is damaged"):
            run_again(config, resume=True)
    shutil.rmtree(newest)
    again = load_file(run_again(config, resume=True))
    assert all(torch.equal(tensor, again[name]) for name, tensor in result.items())


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_terminated(make_config, tmp_path, num_workers):
    """By SIGTERM, a run writes a checkpoint of the step that it is at, and goes on from that, exactly."""
    data = {"num_workers": num_workers}
    options = {"lora": {"rank": 4, "dropout": 0.1}, "steps": 40, "checkpoint_every": 40, "ema_decay": 0.9}
    expected = run_again(make_config(**options, data=data, output_dir=str(tmp_path / "unbroken")))
    config = make_config(**options, data=data)
    checkpoints = Path(config.output_dir) / "checkpoints"
    process = subprocess.Popen(
        command(write_config(config, tmp_path / "config.yaml")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (line := process.stdout.readline()).startswith("Training"):
        assert line
    time.sleep(1)
    # As schedulers do: all processes of the job, those that read data too
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    (checkpoint,) = find_checkpoints(checkpoints)
    step = int(checkpoint.name.removeprefix("step-"))
    assert 0 < step < 40
    assert errors.splitlines()[-1] == (
        f"loomvideo: terminated after step {step}, of which there is a checkpoint: go on with --resume."
    )
    assert not (Path(config.output_dir) / ".lock").exists()
    assert equal_files(run_again(config, resume=True), expected)


def test_terminated_while_it_validates(make_config, tmp_path):
    """Samples that take long are given up, and made when the run goes on."""
    sample = {"prompt": "a cat", "height": 256, "width": 256, "num_frames": 1}
    validation = {"samples": [sample], "every": 2, "num_inference_steps": 1000}
    config = make_config(steps=4, validation=validation)
    outer, inner = pty.openpty()  # where bars show at once what is being done
    process = subprocess.Popen(
        command(write_config(config, tmp_path / "config.yaml")), stdout=subprocess.DEVNULL, stderr=inner
    )
    os.close(inner)
    seen = b""
    while b"Sample 1" not in seen:
        seen += os.read(outer, 65536)
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(OSError):  # the end, on Linux
        while os.read(outer, 65536):
            pass
    os.close(outer)
    assert process.wait() == 143
    (checkpoint,) = find_checkpoints(Path(config.output_dir) / "checkpoints")
    assert checkpoint.name == "step-000002"
    assert not list((Path(config.output_dir) / "samples").glob("*"))
    run_again(make_config(steps=4, validation=validation | {"num_inference_steps": 1}), resume=True)
    assert {path.name for path in (Path(config.output_dir) / "samples").iterdir()} == {
        "step-000002-1.png", "step-000004-1.png"
    }  # fmt: skip


def test_two_runs_in_one_folder(make_config, tmp_path):
    """The second is refused at the start, until the first has ended or was killed; what that left is removed."""
    config = make_config(steps=100_000, checkpoint_every=5)
    folder = Path(config.output_dir)
    process = subprocess.Popen(
        command(write_config(config, tmp_path / "config.yaml")), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for(lambda: len(find_checkpoints(folder / "checkpoints")) > 0, process)
    again = make_config(steps=len(find_checkpoints(folder / "checkpoints")))
    with pytest.raises(ValueError, match=f"Another run is writing to {folder}: wait until it has ended"):
        train(again, resume=True)
    process.kill()
    process.wait()
    for name in (".unfinished-lora", "checkpoints/.unfinished-000009", "samples/.unfinished-a.mp4~12345678"):
        (folder / name).mkdir(parents=True)
    last = int(find_checkpoints(folder / "checkpoints")[-1].name.removeprefix("step-"))
    run_again(make_config(steps=last + 1, checkpoint_every=5), resume=True)
    assert not list(folder.rglob(".*"))


def test_mistakes_are_found_before_the_work(make_config, tmp_path):
    for options, message in (
        ({"output_dir": "/proc/run"}, "/proc/run"),
        ({"data": {"features": "/proc/features"}}, "/proc/features"),
        ({"validation": {"samples": [{"prompt": "a", "video": "no.mp4"}]}}, r"`validation\.samples\.0` names no\.mp4"),
        (
            {"validation": {"samples": [{"prompt": "a", "image": __file__}]}},
            r"`validation\.samples\.0`: .*test_training",
        ),
        (
            {"validation": {"samples": [{"prompt": "a", "reference_images": [__file__]}]}},
            r"`validation\.samples\.0`: .*test_training",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run_again(make_config(**options), precompute_only="data" in options)
    assert not list(tmp_path.iterdir())


def test_unknown_layers(make_config):
    with pytest.raises(
        ValueError, match=r"`lora\.target_modules`: no layer is called to_qq, there are patch_embedding"
    ):
        train(make_config(lora={"target_modules": ["to_q", "to_qq"]}))


@pytest.fixture
def corrupt_clip(clips, tmp_path) -> Path:
    """Records of two clips, of which one has a good beginning only."""
    folder = tmp_path / "corrupt"
    folder.mkdir()
    for name in ("good", "bad"):
        shutil.copy(FIXTURES / "cat.mp4", folder / f"{name}.mp4")
    with open(folder / "bad.mp4", "r+b") as file:
        file.seek(20000)
        file.truncate()
    # The index is at the front of the file, so the clip still opens.
    (folder / "records.jsonl").write_text('{"text": "good", "path": "good.mp4"}\n{"text": "bad", "path": "bad.mp4"}\n')
    return folder


@pytest.mark.parametrize("features", [False, True])
def test_corrupt_clips_are_skipped_and_reported(make_config, corrupt_clip, tmp_path, features, capsys):
    data = {"datasets": [{"records": str(corrupt_clip)}], "drop_all": 0.0}
    if features:
        data["features"] = str(tmp_path / "features")
    config = make_config(data=data, checkpoint_every=2)
    assert train(config).exists()
    report = capsys.readouterr().out
    assert "Skipped 1 damaged clip:" in report
    assert f"{corrupt_clip / 'records.jsonl'}:2: {corrupt_clip / 'bad.mp4'}" in report.split("Skipped 1")[1]
    with pytest.raises(ValueError, match=r"records\.jsonl:2: .*bad\.mp4"):
        run_again(make_config(data=data, output_dir=str(tmp_path / "strict")), strict=True)


def test_dataset_of_corrupt_clips(make_config, corrupt_clip, clips, tmp_path):
    """One dataset may lose all its clips."""
    (corrupt_clip / "records.jsonl").write_text('{"text": "bad", "path": "bad.mp4"}\n')
    bad, good = {"records": str(corrupt_clip)}, {"records": str(clips / "cats.json")}
    for index, pair in enumerate(([bad, good], [good, bad])):
        data = {"datasets": [dataset | {"weight": 2.0} for dataset in pair], "features": str(tmp_path / "features")}
        assert run_again(make_config(data=data, output_dir=str(tmp_path / str(index)))).exists()


@pytest.fixture
def damaged_files(clips, tmp_path) -> Path:
    """Records of two good samples, and of one with each kind of damage."""
    folder = tmp_path / "damaged"
    shutil.copytree(clips, folder)
    (folder / "records.jsonl").unlink()
    (folder / "cats.json").unlink()
    (folder / "empty.mp4").touch()
    (folder / "empty.jpg").touch()
    (folder / "text.mp4").write_text("no video")
    (folder / "text.png").write_text("no picture")
    shutil.copy(folder / "coffee.png", folder / "picture.mp4")
    shutil.copy(folder / "cat-0.mp4", folder / "video.png")
    for name, size in (("cat-0.mp4", 300), ("portrait.jpg", 600), ("portrait.jpg", 20)):
        (folder / f"cut-{size}{Path(name).suffix}").write_bytes((folder / name).read_bytes()[:size])
    content = bytearray((folder / "cat-1.mp4").read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    (folder / "zeros.mp4").write_bytes(content)
    edit = {"instruction": "a", "target_video_path": "cat-1.mp4"}
    records = [
        {"text": "a", "path": "cat-0.mp4"},
        {"text": "a", "path": "coffee.png"},
        # What these are counts, whatever they are called.
        {"text": "a", "path": "picture.mp4"},
        {"text": "a", "path": "video.png"},
        *({"text": "a", "path": name} for name in ("empty.mp4", "empty.jpg", "text.mp4", "text.png")),
        *({"text": "a", "path": name} for name in ("cut-300.mp4", "cut-600.jpg", "cut-20.jpg", "zeros.mp4")),
        edit | {"source_video_path": "text.mp4"},
        edit | {"reference_image_paths": ["coffee.png", "text.png"]},
    ]
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


@pytest.mark.parametrize("features", [False, True])
def test_damage_of_all_kinds(make_config, damaged_files, tmp_path, features, capsys):
    data = {"datasets": [{"records": str(damaged_files / "records.jsonl")}], "drop_all": 0.0}
    if features:
        data["features"] = str(tmp_path / "features")
    # So many steps that every sample is read
    assert train(make_config(data=data, steps=12)).exists()
    report = capsys.readouterr().out.split("Skipped ")[1].splitlines()
    assert report[0] == "10 damaged clips:"
    named = [re.match(r"  (.*?\.jsonl):(\d+): (.+)", line) for line in report[1:11]]
    assert {(found[1], int(found[2])) for found in named} == {
        (str(damaged_files / "records.jsonl"), line) for line in range(5, 15)
    }
    strict = make_config(data=data, output_dir=str(tmp_path / "strict"))
    with pytest.raises(ValueError, match=r"records\.jsonl:5: .*empty\.mp4"):
        run_again(strict, strict=True)
    assert not (tmp_path / "strict").exists()


def test_strict_finds_damage_before_it_begins(make_config, corrupt_clip, tmp_path):
    """Also that which only shows when all of a clip is read."""
    config = make_config(data={"datasets": [{"records": str(corrupt_clip)}]})
    with pytest.raises(ValueError, match=r"records\.jsonl:2: .*bad\.mp4"):
        train(config, strict=True)
    assert not Path(config.output_dir).exists()


def test_clips_that_vanish(make_config, damaged_files, tmp_path):
    """While a training runs, before their features are computed, and errors of any kind."""
    (damaged_files / "records.jsonl").write_text(
        "\n".join(json.dumps({"text": "a", "path": f"cat-{number}.mp4"}) for number in range(3))
    )
    data = {"datasets": [{"records": str(damaged_files / "records.jsonl")}], "features": str(tmp_path / "features")}
    config = make_config(data=data)
    records, failures = read_records(config.data)
    assert failures == {}
    (damaged_files / "cat-1.mp4").unlink()
    dataset = TrainingDataset(records, read_clip, 0.0, 0.0)
    item = dataset[Draw(1, 0)]
    assert item.content is not None
    ((where, reason),) = item.failures
    assert where.endswith("records.jsonl:2")
    assert "cat-1.mp4" in reason
    digests = hash_inputs(config.model, [file for row in records for file in record_of(row).files])
    assert digests[str(damaged_files / "cat-0.mp4")] != digests[str(damaged_files / "cat-1.mp4")]

    def fail(record, dropped):
        if record.where.endswith(":2"):
            raise ZeroDivisionError("in a library")
        return record.where

    item = TrainingDataset(records, fail, 0.0, 0.0)[Draw(1, 0)]
    assert item.content.endswith(":3")
    assert item.failures == [(where, "ZeroDivisionError: in a library")]


def test_nothing_but_corrupt_clips(make_config, corrupt_clip, tmp_path):
    (corrupt_clip / "records.jsonl").write_text('{"text": "bad", "path": "bad.mp4"}\n')
    data = {"datasets": [{"records": str(corrupt_clip)}]}
    with pytest.raises(ValueError, match=r"None of the clips can be read, the first is that of .*bad\.mp4"):
        train(make_config(data=data))
    with pytest.raises(ValueError, match=r"None of the clips can be read, the first is that of .*bad\.mp4"):
        run_again(make_config(data=data | {"features": str(tmp_path / "features")}, output_dir=str(tmp_path / "b")))


def test_loss_that_is_no_number(make_config):
    config = make_config(optimizer={"learning_rate": 1e30}, steps=10, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"of step \d is no longer a number: .* last good checkpoint is .*step-00000"):
        train(config)
    checkpoints = find_checkpoints(Path(config.output_dir) / "checkpoints")
    last = load_file(checkpoints[-1] / "pytorch_lora_weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_full_disk(make_config):
    """A checkpoint that does not fit leaves the previous one as it was, and the run goes on from that."""
    config = make_config(lora=None, steps=2, checkpoint_every=2)
    train(config)
    checkpoints = Path(config.output_dir) / "checkpoints"
    before = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    longer = make_config(lora=None, steps=4, checkpoint_every=2)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
        with pytest.raises(OSError, match=r"checkpoint of step 4 could not be written .*go on from the previous one"):
            run_again(longer, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()} == before
    assert run_again(longer, resume=True).exists()


def test_command(make_config, tmp_path):
    """The command line: a run, what it prints, and one line for bad input."""
    config = write_config(make_config(steps=2), tmp_path / "config.yaml")
    result = subprocess.run(command(config), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    title, images, videos, plan, written = result.stdout.splitlines()
    assert title == "Clips by width x height x frames:"
    assert [images.split(), videos.split()] == [["64", "x", "64", "x", "1", "2"], ["64", "x", "64", "x", "9", "4"]]
    # A batch of the images, of the videos with a reference and with two, and of the others
    assert re.fullmatch(r"Training [\d,]+ parameters from step 0 to 2\. Samples: 6\. Batches an epoch: .*", plan)
    assert plan.endswith("Batches an epoch: 4, a step: 1. Epochs: 0.5.")
    assert written == f"Wrote {tmp_path / 'run' / 'pytorch_lora_weights.safetensors'}."
    assert "Checking clips" in result.stderr
    assert "Training: 100%" in result.stderr
    # Nothing but bars
    lines = [line.strip() for line in re.split(r"[\r\n]", result.stderr)]
    assert [line for line in lines if line and not re.match(r"[\w .()=]+: +\d+%", line.replace("\x1b[A", ""))] == []
    again = subprocess.run(command(config), capture_output=True, text=True, check=False)
    assert again.returncode == 2
    (error,) = messages(again.stderr)
    assert error.startswith("loomvideo: error: ")


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_tracker_that_is_not_there(make_config):
    with pytest.raises(ValueError, match="`tracker` wandb is not installed: install it"):
        train(make_config(tracker="wandb"))


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_eight_bit_optimizer_needs_its_library(make_config):
    with pytest.raises(ValueError, match="needs bitsandbytes: install it"):
        train(make_config(optimizer={"name": "adamw8bit"}))
