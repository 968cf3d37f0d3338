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
"""The `loomvideo` command, as a shell runs it."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import FIXTURES, GOLDEN, load_case, messages
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, cli
from loomvideo_diffusers.loading import load_pipeline
from loomvideo_diffusers.media import read_image, read_video, sample_frame_indices


COMMAND = Path(sys.executable).parent / "loomvideo"
CLIP, REFERENCE = str(FIXTURES / "cat.mp4"), str(FIXTURES / "coffee.jpg")


def run(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


def test_convert_and_edit(tmp_path):
    """Published weights and a real clip come in, a playable video of the same size and length comes out."""
    result = run(
        "convert",
        "--loomvideo", GOLDEN / "LoomVideo",
        "--mllm", GOLDEN / "Qwen3-VL",
        "--wan", GOLDEN / "Wan2.2-TI2V",
        "-o", tmp_path / "model",
        "--dtype", "float32",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    left_out, wrote = result.stdout.splitlines()
    assert left_out.startswith("Left out, as the model does not use it: condition_embedder.text_embedder.")
    assert wrote.startswith(f"Wrote {tmp_path / 'model'}: 2.8 MB of weights")
    assert "Converting" in result.stderr
    assert "UNEXPECTED" not in result.stderr

    output, sheet = tmp_path / "new" / "out.mp4", tmp_path / "sheet.png"
    options = ["--model", tmp_path / "model", "--height", 64, "--width", 96, "--steps", 2, "--seed", 0]
    result = run("edit", CLIP, "make it night", "-o", output, "--contact-sheet", sheet, *options)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first.startswith(f"Wrote {output}: 33 frames at 24 a second, 256 x 160, seed 0 (read ")
    for stage in ("read", "load", "edit"):
        assert f"{stage} " in first
    assert second == f"Wrote {sheet}: the source above the result."
    for bar in ("Looking through frames", "Reading frames", "2/2", "Writing frames"):
        assert bar in result.stderr
    assert read_video(output).shape == read_video(CLIP).shape == (33, 160, 256, 3)
    assert read_image(sheet).size == (6 * 205, 256)

    again = tmp_path / "again.mp4"
    assert run("edit", CLIP, "make it night", "-o", again, *options).returncode == 0
    assert np.array_equal(read_video(again), read_video(output))


def test_all_tasks(model_folder, tmp_path, capsys):
    size = ["--height", "64", "--width", "96"]
    for name, arguments, shape in (
        ("t2v.mp4", ["generate", "a red square", "--frames", "9", *size], (9, 64, 96, 3)),
        ("t2v.gif", ["generate", "a red square", "--frames", "5", *size], (5, 64, 96, 3)),
        ("t2i.png", ["generate", "a red square", *size], (64, 96, 3)),
        (
            "r2v.mp4",
            ["generate", "@Image 1 on @Image 2", "--frames", "5", *size, "--reference", REFERENCE, REFERENCE],
            (5, 64, 96, 3),
        ),
        ("r2i.jpg", ["generate", "@Image 1", *size, "--reference", REFERENCE], (64, 96, 3)),
        ("v2v.mp4", ["edit", CLIP, "make it blue", "--frames", "7", *size], (5, 160, 256, 3)),
        ("v2v.mkv", ["edit", CLIP, "make it blue", "--frames", "5", *size], (5, 160, 256, 3)),
        ("v2v.gif", ["edit", CLIP, "make it blue", "--frames", "7", *size], (5, 160, 256, 3)),
        (
            "rv2v.mp4",
            ["edit", CLIP, "use the image", "--frames", "5", *size, "--reference", REFERENCE],
            (5, 160, 256, 3),
        ),
        ("i2i.png", ["edit", REFERENCE, "make it blue"], (192, 288, 3)),
    ):
        output = tmp_path / name
        options = ["-o", str(output), "--model", str(model_folder), "--steps", "1"]
        assert cli.main([*arguments, *options]) == 0, capsys.readouterr().err
        read = read_image if output.suffix in (".png", ".jpg") else read_video
        assert np.shape(read(output)) == shape
        assert capsys.readouterr().out.startswith(f"Wrote {output}: ")


def test_what_made_a_result(model_folder, tmp_path, capsys, monkeypatch):
    """The command that a result names makes it again, also where the seed was left to chance."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "my model")
    shutil.copy(CLIP, "clip.mp4")
    options = ["--model", "my model", "--height", "64", "--width", "96", "--steps", "1"]
    for output, arguments in (
        ("a.mp4", ["edit", "clip.mp4", "it's blue", "--frames", "9", "--keep-unchanged", "--compare", "both.mkv"]),
        ("a.mkv", ["edit", "clip.mp4", "it's blue", "--frames", "9", "--reference", REFERENCE]),
        ("a.gif", ["edit", "clip.mp4", "it's blue", "--frames", "9"]),
        ("b.png", ["edit", REFERENCE, "it's blue"]),
        ("c.mp4", ["generate", "it's blue", "--frames", "9", "--guidance-scale", "3"]),
        ("c.gif", ["generate", "it's blue", "--frames", "5"]),
        ("d.jpg", ["generate", "it's blue"]),
        ("d.webp", ["generate", "it's blue"]),
    ):
        assert cli.main([*arguments, "-o", output, *options]) == 0, capsys.readouterr().err
        read = read_image if Path(output).suffix in (".png", ".jpg", ".webp") else read_video
        first = np.asarray(read(output), int)
        capsys.readouterr()
        assert cli.main(["info", output]) == 0
        command, *lines = capsys.readouterr().out.splitlines()
        said = dict(line.split(maxsplit=1) for line in lines)
        assert said["prompt"] == "it's blue"
        assert said["model"] == "my model"
        assert said["num_inference_steps"] == "1"
        assert float(said["guidance_scale"]) == {"c.mp4": 3}.get(output, 2.5 if arguments[0] == "edit" else 5)
        Path(output).unlink()
        program, *again = shlex.split(command)
        assert program == "loomvideo"
        assert said["seed"] in again
        assert cli.main(again) == 0
        # x264 does not compress frames this small in the same way each time.
        assert np.abs(np.asarray(read(output), int) - first).mean() < 5


def test_preview_and_comparison(model_folder, tmp_path, capsys):
    """A look at a few frames takes a fraction of the tokens, and writes nothing else."""
    options = ["--model", str(model_folder), "--height", "64", "--width", "96", "--steps", "1"]
    sheet, both = tmp_path / "sheet.png", tmp_path / "both.mp4"
    assert cli.main(["edit", CLIP, "blue", "--preview", str(sheet), *options]) == 0
    assert read_image(sheet).size == (6 * 205, 256)
    assert list(tmp_path.iterdir()) == [sheet]
    capsys.readouterr()
    assert cli.main(["info", str(sheet)]) == 0
    assert "--seed" in capsys.readouterr().out  # so that the edit of all frames can be made with it
    arguments = ["edit", CLIP, "blue", "-o", str(tmp_path / "out.mp4"), "--compare", str(both)]
    assert cli.main([*arguments, "--window", "17", "--overlap", "8", *options]) == 0
    assert read_video(both).shape == (33, 160, 512, 3)
    assert "Wrote " in capsys.readouterr().out


def test_an_edit_goes_on(model_folder, tmp_path, capsys, monkeypatch):
    """The same command goes on with what was broken off, its seed too."""
    from diffusers import UniPCMultistepScheduler

    output = tmp_path / "out.mp4"
    options = ["--model", str(model_folder), "--height", "64", "--width", "96", "--steps", "3", "--frames", "9"]
    arguments = ["edit", CLIP, "blue", "-o", str(output), *options]
    step, timesteps = UniPCMultistepScheduler.step, []

    def broken_step(self, velocity, timestep, *arguments, **options):
        timesteps.append(timestep)
        if len(timesteps) == 3:
            raise KeyboardInterrupt
        return step(self, velocity, timestep, *arguments, **options)

    monkeypatch.setattr(UniPCMultistepScheduler, "step", broken_step)
    assert cli.main(arguments) == 130
    assert not output.exists()
    assert cli.main(arguments) == 0
    assert timesteps[2:] == timesteps[2:3] * 2  # the step that was broken off, and no other
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_killed_edit_goes_on(model_folder, tmp_path, monkeypatch):
    """What a killed command has done, the same command does not do again; the result is that of an unbroken one."""
    from diffusers import UniPCMultistepScheduler

    whole, output, unfinished = (tmp_path / name for name in ("a.mp4", "b.mp4", ".unfinished-b.safetensors"))
    options = ["--model", model_folder, "--height", 64, "--width", 96, "--steps", 20, "--window", 17, "--seed", 1]
    arguments = [[str(word) for word in ("edit", CLIP, "blue", "-o", path, *options)] for path in (whole, output)]
    assert cli.main(arguments[0]) == 0
    process = subprocess.Popen([COMMAND, *arguments[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not unfinished.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    with safe_open(unfinished, "pt") as file:
        num_steps = int(file.metadata()["num_steps"])
    assert 0 < num_steps < 20
    step, timesteps = UniPCMultistepScheduler.step, []

    def counted_step(self, velocity, timestep, *arguments, **options):
        timesteps.append(timestep)
        return step(self, velocity, timestep, *arguments, **options)

    monkeypatch.setattr(UniPCMultistepScheduler, "step", counted_step)
    assert cli.main(arguments[1]) == 0
    assert len(timesteps) == 20 - num_steps
    assert np.array_equal(read_video(output), read_video(whole))
    assert not unfinished.exists()


def test_two_edits_of_one_output(model_folder, tmp_path, capsys):
    """The second is refused at the start, and the first goes on; in the end there is no trace of a lock."""
    output = tmp_path / "out.mp4"
    options = ["--model", str(model_folder), "--height", "64", "--width", "96", "--steps", "20", "--seed", "1"]
    command = ["edit", str(CLIP), "blue", "-o", str(output), *options]
    process = subprocess.Popen([COMMAND, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".unfinished-*")) and process.poll() is None:
        time.sleep(0.01)
    assert cli.main(command) == 2
    assert f"Another run is writing to {output}" in capsys.readouterr().err
    assert process.wait() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


BOUNDED = """
import contextlib, io, os, re, sys
from loomvideo_diffusers import cli

def edit(side, gigabytes):
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        options = ["--frames", "17", "--steps", "1", "--height", side, "--width", side, "--max-memory", str(gigabytes)]
        status = cli.main(["edit", sys.argv[1], "blue", "-o", "out.mp4", *options])
    error = "".join(line for line in stderr.getvalue().splitlines() if line.startswith("loomvideo: "))
    print(status, os.listdir(), error)
    return error

least = float(re.search("must be ([0-9.]+) or more", edit("96", 0.1))[1])
edit("512", least + 0.1)
edit("96", least + 4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of a CPU, memory is bounded in Linux alone")
def test_memory_is_bounded(tmp_path):
    """What would take more fails in one line and leaves nothing; what is enough is enough."""
    command = [sys.executable, "-c", BOUNDED, Path(CLIP).absolute()]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    said = [line for line in result.stdout.splitlines() if not line.startswith("Wrote")]
    assert len(said) == 3, result.stderr
    assert said[0].startswith("2 [] loomvideo: error: --max-memory must be ")
    assert said[1].startswith("2 [] loomvideo: error: the memory is not enough: choose a smaller --window")
    assert said[2].startswith("0 ['out.mp4']")


def frames_of(path):
    """Pixels of an image, or of a lossless sequence of them."""
    paths = sorted(path.parent.glob(path.name.replace("%d", "*"))) if "%d" in path.name else [path]
    return np.stack([np.asarray(read_image(one), int) for one in paths])


def test_options_reach_the_model(model_folder, pipe, tmp_path):
    """The image is that of a call with the same settings."""
    base = {"height": 64, "width": 64, "num_inference_steps": 2, "num_frames": 1}

    def call(seed=3, **settings):
        generator = torch.Generator().manual_seed(seed)
        return (pipe("a cat", generator=generator, **base | settings).frames[0] * 255).round().astype(int)

    plain = call()
    for index, (options, settings) in enumerate(
        (
            ([], {}),
            (["--offload", "model", "--device", "cpu"], {}),
            (["--seed", 4], {"seed": 4}),
            (["--steps", 3], {"num_inference_steps": 3}),
            (["--sigmas", 1, 0.4], {"sigmas": [1.0, 0.4]}),
            (["--guidance-scale", 9], {"guidance_scale": 9.0}),
            (["--negative-prompt", "a dog"], {"negative_prompt": "a dog"}),
            (["--reference", REFERENCE], {"reference_images": [read_image(REFERENCE)]}),
        )
    ):
        output = tmp_path / f"{index}.png"
        arguments = ["generate", "a cat", "-o", output, "--model", model_folder, "--height", 64, "--width", 64]
        assert cli.main([str(argument) for argument in [*arguments, "--steps", 2, "--seed", 3, *options]]) == 0
        expected = call(**settings)
        # By 1, as products of matrices round as their weights lie in memory
        assert np.abs(frames_of(output) - expected).max() <= 1
        assert not settings or np.abs(expected - plain).max() > 1


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float32])
def test_dtype_reaches_the_model(dtype, model_folder):
    pipe = load_pipeline(LoomVideoPipeline, str(model_folder), device="cpu", dtype=dtype)
    expected = {"bfloat16": torch.bfloat16}.get(dtype, dtype)
    assert {part.dtype for part in (pipe.transformer, pipe.vae, pipe.text_encoder)} == {expected}


def test_lora_scale_of_a_video(model_folder, transformer, tmp_path):
    """A LoRA at half its scale edits as one with half its weights does, at 0 as none, and at 1 as by default."""
    torch.manual_seed(0)
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    weights = get_peft_model_state_dict(transformer)
    half = {name: tensor * (0.5 if "lora_B" in name else 1) for name, tensor in weights.items()}
    for name, layers in (("whole", weights), ("half", half)):
        LoomVideoEditPipeline.save_lora_weights(tmp_path / name, layers)

    def edit(name, *options):
        (tmp_path / name / "out").mkdir(parents=True, exist_ok=True)
        output = tmp_path / name / "out" / "%d.png"
        arguments = ["edit", CLIP, "blue", "-o", output, "--model", model_folder, "--height", 64, "--width", 96]
        arguments += ["--steps", 2, "--frames", 5, "--seed", 0, *options]
        assert cli.main([str(argument) for argument in arguments]) == 0
        return frames_of(output)

    plain, whole = edit("plain"), edit("whole", "--lora", tmp_path / "whole")
    scaled = edit("scaled", "--lora", tmp_path / "whole", "--lora-scale", 0.5)
    halved = edit("halved", "--lora", tmp_path / "half", "--lora-scale", 1)
    assert np.abs(scaled - halved).max() <= 1
    assert np.abs(edit("none", "--lora", tmp_path / "whole", "--lora-scale", 0) - plain).max() <= 1
    for first, second in ((plain, whole), (plain, halved), (whole, halved)):
        assert np.abs(first - second).max() > 2


def test_recorded_clip(model_folder, tmp_path):
    """A lossless file with the recorded frames, at 30 frames a second, gives the recorded pixels to the model."""
    import av

    case, metadata = load_case("pipeline_edit_video")
    frames = case["source_frames"].numpy()
    with av.open(str(tmp_path / "source.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    read = read_video(tmp_path / "source.mkv")
    assert np.array_equal(read, frames[sample_frame_indices(len(frames), metadata["source_fps"])])


def test_info(model_folder):
    result = run("info", model_folder)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert "LoomVideoTransformer3DModel         150,400 parameters, float32, 0.6 MB" in lines[3]
    assert lines[5].split() == ["made", "from", "loomvideo", "LoomVideo", "gen_model.pth"]
    assert lines[-1].split() == ["made", "with", "torch", version("torch")]
    result = run("info")
    assert result.returncode == 0
    assert "diffusers" in result.stdout


@pytest.mark.parametrize("command", [[], ["generate"], ["edit"], ["convert"], ["info"]])
def test_help_is_quick(command):
    start = time.perf_counter()
    result = run(*command, "--help")
    assert result.returncode == 0
    assert "usage: loomvideo" in result.stdout
    assert time.perf_counter() - start < 2  # importing torch alone takes longer


def bad_inputs(model_folder, tmp_path):
    """Arguments, and what the line must name: the file or the option that is wrong."""
    output, model = tmp_path / "out.mp4", ["--model", model_folder]
    edit, generate = ["edit", CLIP, "make it blue", "-o"], ["generate", "a cat", "-o"]
    image = ["edit", REFERENCE, "blue", "-o", tmp_path / "out.png", *model]
    return [
        (["edit", CLIP, "-o", output, *model], "are required: prompt"),
        (["edit", CLIP, "blue", *model], "are required: output"),
        (["generate", "a cat", *model], "--output"),
        (["generate", " ", "-o", output, *model], "prompt is blank"),
        (["edit", tmp_path / "none.mp4", "blue", "-o", output, *model], "none.mp4 cannot be read as a video"),
        (["edit", tmp_path / "cut.mp4", "blue", "-o", output, *model], "cut.mp4"),
        (["edit", tmp_path / "file", "blue", "-o", output, *model], "file cannot be read as a video"),
        (["edit", tmp_path / "none.png", "blue", "-o", tmp_path / "out.png", *model], "none.png cannot be read"),
        ([*edit, tmp_path / "out.png", *model], "out.png must end in .mp4 or .mov or .mkv or .gif"),
        (["edit", REFERENCE, "blue", "-o", output, *model], "out.mp4 must end in .png or"),
        ([*edit, tmp_path / "file" / "out.mp4", *model], "file is not a folder"),
        ([*edit, output, "--contact-sheet", tmp_path / "sheet.mp4", *model], "sheet.mp4 must end in .png"),
        ([*edit, output, *model, "--reference", tmp_path / "file"], "file cannot be read as an image"),
        ([*generate, output, *model, "--reference", tmp_path / "file"], "file cannot be read as an image"),
        ([*generate, tmp_path / "a.png", *model, "--reference", tmp_path / "a.png"], "a.png is named twice"),
        ([*generate, output, *model, "--frames", "8"], "`num_frames` must be 4k + 1"),
        ([*edit, output, *model, "--frames", "34"], "cat.mp4 has 33 frames, but 34"),
        ([*edit, output, *model, "--frames", "0"], "number of frames must be positive, but is 0"),
        ([*edit, output, *model, "--window", "8"], "`window_frames` must be 4k + 1"),
        ([*edit, output, *model, "--overlap", "5"], "`window_overlap` must be a multiple of 4"),
        ([*edit, output, *model, "--overlap", "124"], "`window_overlap` must be a multiple of 4"),
        ([*edit, output, *model, "--height", "64"], "`height` and `width`"),
        ([*edit, output, *model, "--width", "64"], "`height` and `width`"),
        ([*edit, output, *model, "--max-crop", "1"], "`max_crop` must be at least 0 and below 1, but is 1"),
        ([*edit, output, *model, "--rate", "24"], "`rate`"),
        ([*edit, output, *model, "--compare", tmp_path / "both.png"], "both.png must end in .mp4 or .mov"),
        ([*edit, output, *model, "--compare", output], "out.mp4 is named twice"),
        (["edit", tmp_path / "cut.mp4", "blue", "-o", tmp_path / "cut.mp4", *model], "cut.mp4 is named twice"),
        (["edit", CLIP, "blue", *model, "--preview", tmp_path / "sheet.mp4"], "sheet.mp4 must end in .png"),
        ([*image, "--keep-unchanged"], "coffee.jpg is an image: leave out `keep_unchanged`"),
        ([*image, "--frames", "5"], "coffee.jpg is an image: leave out `num_frames`"),
        ([*image, "--audio", "none"], "coffee.jpg is an image: leave out `audio`"),
        ([*image, "--preview", tmp_path / "sheet.png"], "coffee.jpg is an image: leave out `preview`"),
        (["info", CLIP], "cat.mp4 does not say how it was made"),
        (["info", REFERENCE], "coffee.jpg does not say how it was made"),
        (["info", tmp_path / "file"], "file cannot be read as a video"),
        ([*edit, output, *model, "--height", "100", "--width", "96"], "`height` must be a positive multiple of 32"),
        ([*edit, output, *model, "--height", "96", "--width", "16"], "`width` must be a positive multiple of 32"),
        ([*edit, output, "--model", tmp_path], "has no model_index.json"),
        ([*edit, output, "--model", "no/such/model"], "no/such/model is neither a folder here nor the name"),
        ([*generate, output, *model, "--steps", "0"], "`num_inference_steps` must be a positive integer, but is 0"),
        ([*generate, output, *model, "--frames", "1"], "out.mp4 must end in .png"),
        ([*generate, output, *model, "--reference"], "--reference: expected at least one argument"),
        ([*generate, output, *model, "--device", "gpu"], "gpu is no device of this machine"),
        ([*generate, output, *model, "--device", "meta"], "meta is no device of this machine"),
        ([*generate, output, *model, "--seed", "99999999999999999999999"], "--seed: the seed must be from 0"),
        ([*generate, output, *model, "--seed", "1.5"], "--seed: the seed must be from 0"),
        ([*generate, output, *model, "--guidance-scale", "nan"], "--guidance-scale: it must be a number"),
        ([*edit, output, *model, "--guidance-scale-visual", "much"], "--guidance-scale-visual: it must be a number"),
        ([*edit, output, *model, "--lora", CLIP], "cat.mp4 cannot be loaded: "),
        ([*edit, output, *model, "--lora", tmp_path / "none"], "none cannot be loaded: "),
        ([*edit, output, *model, "--lora-scale", "inf"], "--lora-scale: it must be a number, but is inf"),
        ([*edit, output, *model, "--dtype", "int8"], "argument --dtype: invalid choice"),
        ([*edit, output, *model, "--max-memory", "0"], "--max-memory: it must be more than 0 GB"),
        ([*edit, output, *model, "--max-memory", "0.2"], "--max-memory must be "),
        ([*edit, output, *model, "--negative-prompt", "<|image_pad|>"], "negative prompt must not hold"),
        (["info", tmp_path / "damaged"], "damaged/text_encoder cannot be read: "),
        (
            ["convert", "--loomvideo", tmp_path, "--mllm", tmp_path, "--wan", tmp_path, "-o", tmp_path / "m"],
            "has no config.json",
        ),
        (["info", tmp_path], "has no model_index.json"),
    ]


@pytest.fixture
def bad_files(model_folder, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "cut.mp4").write_bytes(Path(CLIP).read_bytes()[:20000])
    shutil.copytree(model_folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "text_encoder" / "model.safetensors").write_bytes(b"cut off")
    return tmp_path


def test_bad_input(model_folder, bad_files, monkeypatch):
    """One line that names what is wrong and exit code 2, before the model is loaded; nothing is left behind."""
    monkeypatch.setattr("loomvideo_diffusers.loading._load_model", None)
    for arguments, named in bad_inputs(model_folder, bad_files):
        before = sorted(os.listdir(bad_files))
        assert named in run_in_process(arguments), arguments
        assert sorted(os.listdir(bad_files)) == before


def test_a_damaged_model(model_folder, bad_files):
    arguments = ["generate", "a cat", "-o", bad_files / "out.mp4", "--model", bad_files / "damaged"]
    assert "damaged cannot be loaded: " in run_in_process(arguments)
    shutil.copy(model_folder / "text_encoder" / "model.safetensors", bad_files / "damaged" / "text_encoder")
    config = bad_files / "damaged" / "transformer" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"num_layers": 4 + 1}))
    assert "damaged lacks the weights of some layers" in run_in_process(arguments)
    config.write_text(json.dumps(json.loads(before) | {"ffn_dim": 8}))
    assert "damaged cannot be loaded: " in run_in_process(arguments)
    config.write_text("{")
    assert "damaged" in run_in_process(arguments)


def run_in_process(arguments) -> str:
    """Runs a command that must fail, without starting a new Python, and returns the last line of stderr."""
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            status = exit_.code
    assert status == 2
    line = stderr.getvalue().strip().splitlines()[-1]
    assert line.startswith("loomvideo")
    return line


MISTAKE = """
import sys
from loomvideo_diffusers import cli
from loomvideo_diffusers.footage import plan

def survey(*arguments, **options):
    return len(3)

plan.survey = survey
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_mistake_in_the_code_keeps_its_traceback(model_folder, tmp_path, monkeypatch):
    """Exit code 1; such an error is no bad input."""
    arguments = ["edit", CLIP, "blue", "-o", tmp_path / "out.mp4", "--model", model_folder]
    command = [sys.executable, "-c", MISTAKE, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.strip().splitlines()[-1] == "TypeError: object of type 'int' has no len()"

    # While it denoises, too
    def broken(*_):
        raise ValueError("one thing is not another")

    monkeypatch.setattr("loomvideo_diffusers.footage.resume.ResumeFile.write", broken)
    options = ["--height", "64", "--width", "96", "--steps", "2", "--frames", "5"]
    with pytest.raises(ValueError, match="one thing is not another"):
        cli.main([*map(str, arguments), *options])


def test_exit_code(tmp_path):
    result = run("edit", tmp_path / "none.mp4", "blue", "-o", tmp_path / "out.mp4")
    assert result.returncode == 2
    assert result.stdout == ""
    (error,) = messages(result.stderr)
    assert error.startswith(f"loomvideo: error: {tmp_path / 'none.mp4'} cannot be read as a video")


def test_image_with_alpha(model_folder, tmp_path):
    PIL.Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(tmp_path / "in.png")
    arguments = [
        "edit",
        str(tmp_path / "in.png"),
        "blue",
        "-o",
        str(tmp_path / "out.png"),
        "--model",
        str(model_folder),
    ]
    assert cli.main([*arguments, "--steps", "1"]) == 0
