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
"""Training data that is damaged: found, reported, and left out."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import FIXTURES
from training_tools import run_again

from loomvideo_diffusers.training import train
from loomvideo_diffusers.training.batches import Draw, TrainingDataset
from loomvideo_diffusers.training.data import read_clip, read_records, record_of
from loomvideo_diffusers.training.features import hash_inputs


pytest_plugins = ["training_fixtures"]


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
    # What an earlier part of the run could not read is reported too.
    run_again(config, resume=True)
    assert "Skipped 1 damaged clip:" in capsys.readouterr().out
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
    with pytest.raises(ValueError, match=r"None of the clips can be read; the first is that of .*bad\.mp4"):
        train(make_config(data=data))
    with pytest.raises(ValueError, match=r"None of the clips can be read; the first is that of .*bad\.mp4"):
        run_again(make_config(data=data | {"features": str(tmp_path / "features")}, output_dir=str(tmp_path / "b")))
