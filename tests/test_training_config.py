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
"""Settings of a training run: what a file says, what the model says, and what is wrong with them."""

import json
import shutil
from importlib.util import find_spec

import pytest
import yaml
from training_tools import run_again

from loomvideo_diffusers.media import read_video
from loomvideo_diffusers.media.images import read_image
from loomvideo_diffusers.training import TrainingConfig, load_config, train
from loomvideo_diffusers.training.checkpoints import find_checkpoints


pytest_plugins = ["training_fixtures"]


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


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_tracker_that_is_not_there(make_config):
    with pytest.raises(ValueError, match="`tracker` wandb is not installed: install it"):
        train(make_config(tracker="wandb"))


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_eight_bit_optimizer_needs_its_library(make_config):
    with pytest.raises(ValueError, match="needs bitsandbytes: install it"):
        train(make_config(optimizer={"name": "adamw8bit"}))
