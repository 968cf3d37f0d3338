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
"""Features of clips, on disk and computed when needed."""

import json
import shutil

import torch
from conftest import FIXTURES
from safetensors.torch import load_file
from training_tools import equal_files, find_features, run_again, start, wait_for

from loomvideo_diffusers import LoomVideoPipeline
from loomvideo_diffusers.media import read_video, write_image, write_video
from loomvideo_diffusers.media.images import read_image
from loomvideo_diffusers.training import features as features_module
from loomvideo_diffusers.training import train
from loomvideo_diffusers.training.data import read_clip, read_records, record_of
from loomvideo_diffusers.training.features import Encoders, FeatureStore, hash_inputs


pytest_plugins = ["training_fixtures"]


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
    result = run_again(make_config(output_dir=str(tmp_path / "fly"), steps=3))
    stored = make_config(output_dir=str(tmp_path / "stored"), steps=3, data={"features": str(tmp_path / "features")})
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
    assert "Computing features" in capsys.readouterr().err
    assert run_again(config).exists()
    assert "Computing features" not in capsys.readouterr().err
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
    process = start(config, tmp_path / "killed", "--precompute-only")
    wait_for(lambda: len(find_features(tmp_path / "features")) >= 4, process)
    process.kill()
    process.join()
    before = {file: file.stat().st_mtime_ns for file in find_features(tmp_path / "features")}
    assert all(load_file(file) for file in before)
    train(config, precompute_only=True)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    records, _ = read_records(config.data)
    files = [file for row in records for file in record_of(row).files]
    digests = hash_inputs(config.model, files)
    store = FeatureStore(config.data.features, digests, 4, torch.float32, config.data.variants())
    assert all(store.is_complete(record_of(row)) for row in records)
