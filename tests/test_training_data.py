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
"""Records of training data, the clips that they name, and the order in which batches of them come."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from loomvideo_diffusers.media import read_video, write_video
from loomvideo_diffusers.media.images import read_image
from loomvideo_diffusers.training import train
from loomvideo_diffusers.training.batches import Draw, TokenBatchSampler, TrainingDataset, num_tokens
from loomvideo_diffusers.training.data import read_clip, read_records, record_of


pytest_plugins = ["training_fixtures"]


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
        ("[" * 100000, "records.jsonl:2 cannot be read as records: it is nested too deeply"),
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


def test_what_is_read_when_all_is_dropped(make_config):
    config = make_config(data={"drop_all_prompt": "nothing at all"})
    record = record_of(read_records(config.data)[0][2])
    prompts = [record.full_prompt(dropped) for dropped in ("nothing", "text", "all")]
    assert prompts == ["Edit this video: invert it", "", "nothing at all"]
