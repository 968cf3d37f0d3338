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
"""Clips, photos and LoRAs whose bytes were cut, flipped and swapped, and whose headers lie, through the commands."""

import json
import random
import subprocess
import sys

import av
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import FIXTURES
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from loomvideo_diffusers import LoomVideoPipeline, LoomVideoTransformer3DModel


MOST_MEMORY = 3_000_000_000

# Runs commands after each other and tells what each led to, as JSON lines: a crash ends these early.
RUN_ALL = f"""
import contextlib, io, json, resource, signal, sys, time
resource.setrlimit(resource.RLIMIT_DATA, ({MOST_MEMORY}, {MOST_MEMORY}))
from loomvideo_diffusers import cli

for line in open(sys.argv[1]):
    signal.alarm(120)
    stderr, start = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main(json.loads(line))
    lines = [line for line in stderr.getvalue().splitlines() if line.startswith("loomvideo: error: ")]
    print(json.dumps([status, lines, stderr.getvalue().splitlines()[-1:], time.monotonic() - start]), flush=True)
"""

OPTIONS = ["--height", "32", "--width", "64", "--steps", "1", "--guidance-scale", "1", "--guidance-scale-visual", "1"]
OPTIONS += ["--seed", "0", "--frames", "1"]


def damaged(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    size = len(data)
    kind = rng.choice(["cut", "flipped", "overwritten", "torn", "swapped", "lying", "lying"])
    if kind == "cut":
        del data[rng.randrange(size) :]
    elif kind == "flipped":
        for _ in range(rng.choice([1, 20])):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
    elif kind == "overwritten":
        start = rng.randrange(size)
        data[start : start + 200] = rng.randbytes(len(data[start : start + 200]))
    elif kind == "torn":
        start = rng.randrange(size)
        del data[start : start + size // 20]
    elif kind == "swapped":
        first, second = sorted(rng.sample(range(size - 64), 2))
        data[first : first + 64], data[second : second + 64] = data[second : second + 64], data[first : first + 64]
    else:
        # Sizes, counts and times stand at the beginning of most files, and at the end of some.
        place = rng.randrange(min(size, 1024) - 4) if rng.random() < 0.7 else size - 4 - rng.randrange(min(size, 1500))
        value = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)])
        data[max(place, 0) : max(place, 0) + 4] = value.to_bytes(4, rng.choice(["little", "big"]))
    return bytes(data)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, model_folder):
    """Whole files: clips, photos and LoRAs."""
    folder = tmp_path_factory.mktemp("sources")
    field = FIXTURES / "field"
    clips = [FIXTURES / "cat.mp4", *(field / name for name in ("browser.webm", "apac.mov", "joined.ts", "cut.mp4"))]
    with PIL.Image.open(FIXTURES / "coffee.jpg") as photo:
        small = photo.resize((75, 50))
    photos = [field / "neg_rational.jpg"]
    for suffix in (".png", ".jpg", ".webp", ".bmp", ".tif", ".avif"):
        small.save(folder / f"photo{suffix}")
        photos.append(folder / f"photo{suffix}")
    transformer = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")
    torch.manual_seed(0)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    LoomVideoPipeline.save_lora_weights(folder, get_peft_model_state_dict(transformer), weight_name="lora.safetensors")
    return {"clip": clips, "photo": photos, "reference": photos, "lora": [folder / "lora.safetensors"]}


def decoded(path):
    """How many frames a video has that can be decoded, their size, and how long they take, by PyAV alone."""
    num_frames, size, times = 0, None, []
    with av.open(str(path), metadata_errors="replace") as container:
        pictures = [stream for stream in container.streams.video if not stream.disposition & 1024]
        for packet in container.demux(pictures[0]):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in frames:
                num_frames += 1
                size = size or {frame.width, frame.height}
                times += [] if frame.time is None else [frame.time]
    return num_frames, size, max(times, default=0) - min(times, default=0)


@pytest.mark.parametrize("num_cases", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_right_or_one_sentence(num_cases, sources, model_folder, tmp_path):
    rng = random.Random(num_cases)
    cases, commands = [], []
    for index in range(num_cases):
        kind = rng.choice(["clip", "clip", "clip", "photo", "reference", "lora"])
        source = rng.choice(sources[kind])
        path = tmp_path / f"{index}-{source.name}"
        path.write_bytes(damaged(source.read_bytes(), rng))
        output = tmp_path / f"{index}-out{rng.choice(['.mp4', '.mov', '.mkv']) if kind == 'clip' else '.png'}"
        options = OPTIONS[:-2] if kind in ("clip", "photo") else OPTIONS
        words = {
            "clip": ["edit", str(path), "blue"],
            "photo": ["edit", str(path), "blue"],
            "reference": ["generate", "blue", "--reference", str(path)],
            "lora": ["generate", "blue", "--lora", str(path)],
        }[kind]
        cases.append((kind, path, output))
        commands.append([*words, "-o", str(output), "--model", str(model_folder), *options])
    (tmp_path / "commands.jsonl").write_text("".join(f"{json.dumps(command)}\n" for command in commands))
    command = [sys.executable, "-c", RUN_ALL, str(tmp_path / "commands.jsonl")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(outcomes) == len(cases), (cases[len(outcomes)], result.stderr[-2000:])

    num_right = 0
    for (kind, path, output), (status, errors, last, _) in zip(cases, outcomes):
        if status == 2:
            assert len(errors) == 1, (path, errors)
            assert last == errors, (path, last)
            assert path.name in errors[0], errors
            assert not output.exists(), path
            continue
        num_right += 1
        assert (status, errors) == (0, []), path
        if kind == "clip":
            num_frames, size, seconds = decoded(path)
            assert decoded(output)[:2] == (num_frames, size), path
            is_joined = path.suffix == ".ts"  # where times begin anew
            assert is_joined or decoded(output)[2] == pytest.approx(seconds, abs=0.1), path
        elif kind == "lora":
            tensors = load_file(path).values()
            assert all(tensor.isfinite().all() for tensor in tensors), path
        else:
            with PIL.Image.open(path) as photo:
                photo.load()
            assert np.asarray(PIL.Image.open(output)).shape == (32, 64, 3), path
    leftovers = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert not leftovers
    print(f"{num_right} of {num_cases} were read all the same")
