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
"""The tiny decoder, and what it is for: pictures of what a run is becoming, and quick results."""

import json
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from safetensors.torch import save_file
from tiny_tensors import make_tensors

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, cli
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.footage import plan_edit, plan_generation
from loomvideo_diffusers.footage.watching import Watch, watch_in
from loomvideo_diffusers.loading import load_pipeline, load_vae_decoder
from loomvideo_diffusers.media import read_comment, read_image, read_video


NANO = {"height": 96, "width": 96, "num_inference_steps": 8, "guidance_scale": 2.5, "guidance_scale_visual": 2.5}
WAN = {"z_dim": 48, "scale_factor_spatial": 16, "scale_factor_temporal": 4}


def decode_frame_by_frame(tensors, latents):
    """The definition, step by step: `[C, T, h, w]` to `[3, F, H, W]` in [0, 1]."""

    def convolve(name, value):
        return F.conv2d(value[None], tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), padding="same")[0]

    frames = [convolve("decoder.1", 3 * torch.tanh(frame / 3)).relu() for frame in latents.unbind(1)]
    for first in (3, 9, 15):
        for block in range(first, first + 3):
            blended = []
            for index, frame in enumerate(frames):
                value = torch.cat([frame, frames[index - 1] if index else torch.zeros_like(frame)])
                for layer in (0, 2):
                    value = convolve(f"decoder.{block}.conv.{layer}", value).relu()
                blended.append((convolve(f"decoder.{block}.conv.4", value) + frame).relu())
            frames = blended
        frames = [frame.repeat_interleave(2, 1).repeat_interleave(2, 2) for frame in frames]
        frames = [convolve(f"decoder.{first + 4}.conv", frame) for frame in frames]
        growth = frames[0].shape[0] // blended[0].shape[0]
        frames = [convolve(f"decoder.{first + 5}", part) for frame in frames for part in frame.chunk(growth)]
    pictures = [F.pixel_shuffle(convolve("decoder.22", frame.relu()), 2) for frame in frames]
    return torch.stack(pictures[3:], dim=1).clamp(0, 1)


@pytest.mark.parametrize("name", ["taew2_2.safetensors", "taew2_2.pth"])
def test_public_definition(name, tmp_path):
    """Files with the names and shapes of the public ones decode as they are defined, whatever the chunks."""
    tensors = make_tensors()
    if name.endswith(".pth"):
        torch.save(tensors, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    tiny = load_vae_decoder(str(tmp_path / name), WAN)
    latents = 2 * torch.randn(2, 48, 4, 3, 2, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([decode_frame_by_frame(tensors, sample) for sample in latents]) * 2 - 1
    assert expected.shape == (2, 3, 13, 48, 32)
    assert expected.std() > 0.1
    torch.testing.assert_close(tiny.decode(latents), expected, atol=1e-5, rtol=0)
    for chunk_size in (2, 100):
        video = torch.cat(list(tiny.decode_in_chunks(latents, chunk_size)), dim=2)
        torch.testing.assert_close(video, expected, atol=1e-5, rtol=0)


def test_more_frames_than_wanted(tmp_path):
    """Where a file makes two frames of one and one is wanted, the later counts."""
    tensors = make_tensors(growth=(2, 2, 2))
    save_file(tensors, tmp_path / "tiny.safetensors")
    tiny = load_vae_decoder(str(tmp_path), WAN)
    tensors["decoder.7.conv.weight"] = tensors["decoder.7.conv.weight"][256:]
    latents = torch.randn(1, 48, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    expected = decode_frame_by_frame(tensors, latents[0]) * 2 - 1
    torch.testing.assert_close(tiny.decode(latents)[0], expected, atol=1e-5, rtol=0)


class Trap:
    def __reduce__(self):
        return (print, ("run",))


def test_what_is_no_decoder(tmp_path, capsys):
    """One sentence each, and nothing in a file is run."""
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    save_file({"decoder.1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    tensors = make_tensors(widths=(8, 8, 8, 8))
    save_file(tensors | {"decoder.3.conv.0.weight": torch.zeros(8, 8, 3, 3)}, tmp_path / "shape.safetensors")
    save_file(make_tensors(latent_channels=16, widths=(8, 8, 8, 8)), tmp_path / "taew2_1.safetensors")
    for name, message in {
        "empty.safetensors": "empty.safetensors cannot be read as safetensors: is it complete?",
        "trap.pth": "trap.pth cannot be read as tensors by their names: use a safetensors file.",
        "other.safetensors": "it has no decoder.8.weight, as the decoders of TAEHV have.",
        "shape.safetensors": "size mismatch for decoder.3.conv.0.weight",
        "taew2_1.safetensors": "it decodes latents of 16 channels, but the model's have 48.",
        "nothing": "it is no file or folder here, and not the name of a repository (OWNER/NAME).",
        ".": "it holds several files, empty.safetensors, other.safetensors",
    }.items():
        with pytest.raises(LoomVideoError) as error:
            load_vae_decoder(str(tmp_path / name), WAN)
        assert str(error.value).startswith(f"{tmp_path / name} cannot be used as a decoder: ")
        assert message in str(error.value)
        assert str(error.value).count("\n") == 0
        assert str(error.value).endswith(".")
    assert "run" not in capsys.readouterr().out
    save_file(tensors, tmp_path / "small.safetensors")
    with pytest.raises(LoomVideoError, match="three stages cannot scale up by 24"):
        load_vae_decoder(str(tmp_path / "small.safetensors"), WAN | {"scale_factor_spatial": 48})


def test_from_a_repository(hub, tmp_path):
    """Of several files in it, one can be named."""
    for name, channels in (("taew2_1", 16), ("taew2_2", 48)):
        save_file(make_tensors(channels, widths=(8, 8, 8, 8)), tmp_path / f"{name}.safetensors")
    api = HfApi(token="hf_mine")
    api.create_repo("me/tiny")
    api.upload_folder(repo_id="me/tiny", folder_path=tmp_path)
    assert load_vae_decoder("me/tiny/taew2_2.safetensors", WAN).latent_channels == 48
    with pytest.raises(LoomVideoError, match="it holds several files"):
        load_vae_decoder("me/tiny", WAN)


@pytest.fixture
def tiny_file(pipe, tmp_path):
    """A random tiny decoder of the miniature's latents."""
    path = tmp_path / "tiny.safetensors"
    save_file(make_tensors(pipe.vae.config.z_dim, widths=(8, 8, 8, 8)), path)
    return path


def test_in_a_pipeline(pipe, tiny_file):
    """It decodes in the VAE's place, in the pipelines that are made of it too, and nothing else changes."""
    call = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2}

    def generate(output_type):
        return pipe("a cat", **call, generator=torch.Generator().manual_seed(0), output_type=output_type).frames

    latents, plain = generate("latent"), generate("pt")
    pipe.vae_decoder = load_vae_decoder(str(tiny_file), pipe.vae.config)
    video = generate("pt")
    assert torch.equal(generate("latent"), latents)
    assert video.shape == plain.shape
    torch.testing.assert_close(video.transpose(1, 2), pipe.vae_decoder.decode(latents) / 2 + 0.5)
    assert LoomVideoEditPipeline.from_pipe(pipe).vae_decoder is pipe.vae_decoder
    pipe.vae_decoder = None
    torch.testing.assert_close(generate("pt"), plain)


def test_on_the_command_line(model_folder, tiny_file, tmp_path, capsys):
    """Results say that they are from it, and not that they were watched."""
    paths = {name: tmp_path / f"{name}.mp4" for name in ("plain", "tiny", "watched")}
    common = ["generate", "a cat", "--model", str(model_folder), "--steps", "6", "--frames", "5", "--seed", "1"]
    common += ["--height", "64", "--width", "64"]
    assert cli.main([*common, "-o", str(paths["plain"])]) == 0
    watching = ["--watch", str(paths["watched"]), "--vae-decoder", str(tiny_file)]
    assert cli.main([*common, "-o", str(paths["tiny"]), *watching]) == 0
    plain, tiny, watched = (np.asarray(read_video(path)) for path in paths.values())
    assert plain.shape == tiny.shape == watched.shape
    assert not np.array_equal(plain, tiny)
    command = json.loads(read_comment(paths["tiny"]))["command"]
    assert f"--vae-decoder {tiny_file}" in command
    assert "watch" not in command
    capsys.readouterr()
    for wrong, message in (
        (["--watch", str(tmp_path / "a.txt")], "a.txt"),
        (["--watch", str(tmp_path / "b.mp4")], "b.mp4 is named twice"),
        (
            ["--vae-decoder", str(tmp_path / "c.safetensors")],
            "c.safetensors cannot be used as a decoder: it is no file",
        ),
    ):
        assert cli.main([*common, "-o", str(tmp_path / "b.mp4"), *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_watch_shows_what_becomes_of_it(tmp_path):
    """Frames of an edit are there after a third of its steps, and get closer."""
    sampling = {"height": 96, "width": 96, "num_inference_steps": 12, "guidance_scale_visual": 2.5}
    source, result = tmp_path / "heart.mp4", tmp_path / "blue.mp4"
    pipe, shown = load_pipeline(LoomVideoPipeline), {}
    plan_generation("a large red heart on white", source, num_frames=5, guidance_scale=1, **sampling).run(pipe)
    plan = plan_edit(source, "make the heart blue", result, window_frames=17, guidance_scale=2.5, **sampling)
    plan.run(LoomVideoEditPipeline.from_pipe(pipe), callback_on_step_end=Watch(shown.__setitem__))
    expected = np.asarray(read_video(result)).astype(float)
    errors = {step: np.abs(frames - expected).mean() for step, frames in shown.items()}
    assert list(errors) == [4, 8]
    assert errors[8] < errors[4] < 12


def test_watched_picture(model_folder, tmp_path):
    """Of a picture, the first frame is shown; batches show their first."""
    plan = plan_generation("a cat", tmp_path / "a.png", num_frames=1, height=64, width=64, num_inference_steps=5)
    plan.run(load_pipeline(LoomVideoPipeline, str(model_folder)), callback_on_step_end=watch_in(tmp_path / "w.png"))
    assert read_image(tmp_path / "w.png").size == (64, 64)


def test_of_nano(tmp_path):
    """What it makes of a clip is close to what the VAE does."""
    pipe = load_pipeline(LoomVideoPipeline, vae_decoder="nano")
    heart = tmp_path / "heart.mp4"
    plan_generation("a large red heart moves right on white", heart, num_frames=17, **NANO, seed=3).run(pipe)
    tiny = np.asarray(read_video(heart), np.float64)
    pipe.vae_decoder = None
    plan_generation("a large red heart moves right on white", heart, num_frames=17, **NANO, seed=3).run(pipe)
    mse = np.square(tiny - np.asarray(read_video(heart))).mean()
    assert 10 * np.log10(255**2 / mse) > 24
