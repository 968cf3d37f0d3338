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
"""Conversion of the three published sources, in all forms that there are of them."""

import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, transformer_inputs
from diffusers import AutoencoderKLWan
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch.serialization import set_default_mmap_options, skip_data
from transformers import Qwen3VLConfig, Qwen3VLModel

from loomvideo_diffusers import LoomVideoPipeline, LoomVideoTransformer3DModel, cli
from loomvideo_diffusers.conversion import convert, weights
from loomvideo_diffusers.conversion.checkpoints import Entry, name_transformer
from loomvideo_diffusers.media.files import lock_beside


SOURCES = {"loomvideo": GOLDEN / "LoomVideo", "mllm": GOLDEN / "Qwen3-VL", "wan": GOLDEN / "Wan2.2-TI2V"}
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def test_every_published_tensor_arrives(model_folder):
    published = torch.load(GOLDEN / "LoomVideo" / "gen_model.pth", weights_only=True)
    published = {name: tensor for name, tensor in published.items() if "text_embedder" not in name}
    converted = load_file(model_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert converted.keys() == published.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in published.items())

    published = load_file(GOLDEN / "Qwen3-VL" / "model.safetensors")
    converted = load_file(model_folder / "text_encoder" / "model.safetensors")
    published = {name.removeprefix("model."): tensor for name, tensor in published.items() if name != "lm_head.weight"}
    assert converted.keys() == published.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in published.items())

    for part in ("vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"):
        load = load_file if part.endswith("safetensors") else lambda path: json.loads(path.read_text())
        published, converted = load(GOLDEN / "Wan2.2-TI2V" / part), load(model_folder / part)
        ignored = {"_diffusers_version", "_name_or_path"}
        assert {str(converted[name]) for name in published if name not in ignored} == {
            str(published[name]) for name in published if name not in ignored
        }


def test_precision(tmp_path):
    folder = convert(**SOURCES, output_dir=tmp_path / "new" / "model")
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert tensors["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert tensors["blocks.0.scale_shift_table"].dtype == torch.float32
    assert (
        load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")["encoder.conv_in.weight"].dtype
        == torch.float32
    )
    pipe = LoomVideoPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("a cat", height=64, width=64, num_frames=5, num_inference_steps=2, output_type="pt").frames
    assert frames.isfinite().all()


@pytest.fixture(scope="module")
def published():
    return torch.load(GOLDEN / "LoomVideo" / "gen_model.pth", weights_only=True)


def to_original_names(name):
    """What Wan's own code calls a tensor, as ComfyUI keeps it."""
    pairs = (
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        ("to_out.0", "o"),
        (".to_", "."),
        ("norm2", "norm3"),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        ("proj_out", "head.head"),
    )
    if name == "scale_shift_table":
        return "head.modulation"
    for here, there in pairs:
        name = name.replace(here, there)
    return name.replace("scale_shift_table", "modulation")


def write_form(form, published, folder):
    """Writes the published tensors in one of the forms that are accepted; what must not be read is wrong."""
    wrong = {name: tensor + 1 for name, tensor in published.items()}
    folder.mkdir()
    if form == "file":
        torch.save(published, folder / "any.pth")
        return folder / "any.pth"
    if form == "old pickle":
        torch.save(published, folder / "gen_model.pth", _use_new_zipfile_serialization=False)
    elif form in ("ema", "ema without T5", "raw"):
        kept = [tensor for name, tensor in published.items() if form != "ema without T5" or "text_emb" not in name]
        (folder / "ema").mkdir()
        (folder / "latest").mkdir()
        ema = [tensor + 1 for tensor in kept] if form == "raw" else kept
        torch.save({"decay": 0.9999, "shadow_params": ema}, folder / "ema" / "ema.pth")
        torch.save(published if form == "raw" else wrong, folder / "latest" / "gen_model.pth")
    elif form == "whole model":
        other = {f"mllm.{name}.weight": torch.zeros(3, 4) for name in ("a", "b", "lm_head")}
        save_file(
            {f"gen_model.{name}": tensor for name, tensor in published.items()} | other, folder / "m.safetensors"
        )
    elif form == "shards":
        names = sorted(published)
        weight_map = {}
        for place, half in enumerate((names[::2], names[1::2])):
            save_file({name: published[name] for name in half}, folder / f"m-{place}.safetensors")
            weight_map |= dict.fromkeys(half, f"m-{place}.safetensors")
        (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        rename = to_original_names if form == "ComfyUI, Wan's names" else str
        save_file({f"diffusion_model.{rename(name)}": published[name] for name in published}, folder / "m.safetensors")
    return folder


FORMS = [
    "file",
    "old pickle",
    "ema",
    "ema without T5",
    "raw",
    "whole model",
    "shards",
    "ComfyUI",
    "ComfyUI, Wan's names",
]


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, published, model_folder, tmp_path):
    """All give the same weights, and with them the recorded numbers."""
    source = write_form(form, published, tmp_path / "source")
    options = {"dtype": torch.float32, "use_ema": form != "raw"}
    folder = convert(**(SOURCES | {"loomvideo": source}), output_dir=tmp_path / "model", **options)
    expected, converted = load_file(model_folder / TRANSFORMER), load_file(folder / TRANSFORMER)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in expected.items())
    transformer = LoomVideoTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    with torch.no_grad():
        output = transformer(**transformer_inputs("transformer_ref_edit"), return_dict=False)[0]
    golden = load_file(GOLDEN / "cases" / "transformer_ref_edit.safetensors")["output"]
    assert (output - golden).abs().max() < 1e-4


def test_what_is_left_out_is_listed_in_part(published, tmp_path, capsys):
    source = write_form("whole model", published, tmp_path / "source")
    assert run_cli("--loomvideo", source, "-o", tmp_path / "model", "--dry-run") == 0
    assert (
        "Left out, as the model does not use it: mllm.a.weight, mllm.b.weight, mllm.lm_head.weight, "
        "condition_embedder.text_embedder.linear_1.bias, condition_embedder.text_embedder.linear_1.weight, "
        "condition_embedder.text_embedder.linear_2.bias, ....\n"
    ) in capsys.readouterr().out


def test_training_folder(published, tmp_path):
    """--raw-weights takes the last weights and not their moving average; the licence is that of the folder's card."""
    source = write_form("raw", published, tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    for option, added in (("--raw-weights", 0), ("--force", 1)):
        assert run_cli("--loomvideo", source, "-o", tmp_path / "model", "--dtype", "float32", option) == 0
        bias = load_file(tmp_path / "model" / TRANSFORMER)["proj_out.bias"]
        assert torch.equal(bias, published["proj_out.bias"] + added)
        assert ModelCard.load(tmp_path / "model" / "README.md").data.license == "mit"


def test_the_names_of_the_released_file():
    """All 832 tensors of it find their place, but those of the unused projection."""
    released = json.loads((GOLDEN / "gen_model_5b_tensors.json").read_text())["tensors"]
    with torch.device("meta"):
        transformer = LoomVideoTransformer3DModel()
    expected = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    named = {name: Entry(Path("x"), name, tuple(shape), torch.bfloat16) for name, shape in released.items()}
    numbered = dict(enumerate(named.values()))
    for entries in (named, numbered):
        found, left_out = name_transformer(entries, expected)
        assert len(entries) == 832
        assert len(left_out) == 4
        assert {name: entry.key for name, entry in found.items()} == {name: name for name in expected}


def test_shards_and_variants(model_folder, tmp_path):
    """Files stay below the size, have the names that diffusers looks for, and load."""
    folder = convert(**SOURCES, output_dir=tmp_path / "m", dtype=torch.float16, max_shard_size="200KB", variant="fp16")
    names = {path.name for path in (folder / "transformer").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in names
    shards = list((folder / "transformer").glob("*.fp16-*.safetensors"))
    assert len(shards) > 1
    assert all(path.stat().st_size < 220_000 for path in shards)
    pipe = LoomVideoPipeline.from_pretrained(folder, variant="fp16", dtype=torch.float16)
    expected = load_file(model_folder / TRANSFORMER)["blocks.0.ffn.net.2.weight"]
    assert torch.equal(pipe.transformer.blocks[0].ffn.net[2].weight, expected.half())


def run_cli(*arguments):
    sources = [part for name, path in SOURCES.items() for part in (f"--{name}", path)]
    return cli.main([str(argument) for argument in ["convert", *sources, *arguments]])


def test_command_line(tmp_path, capsys):
    """A dry run writes nothing; a second run, or --verify, compares; what differs is found."""
    output = tmp_path / "model"
    assert run_cli("-o", output, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "condition_embedder.text_embedder.linear_1.weight" in printed
    assert "transformer/diffusion_pytorch_model.safetensors" in printed
    assert list(tmp_path.iterdir()) == []
    assert run_cli("-o", output) == 0
    assert f"Wrote {output}" in capsys.readouterr().out
    written = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert run_cli("-o", output) == 0
    assert "Verified, as it was there already" in capsys.readouterr().out
    assert run_cli("-o", output, "--verify") == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == written
    assert run_cli("-o", output, "--dtype", "float32") == 2
    assert 'made with other dtype ("bfloat16" and not "float32")' in capsys.readouterr().err
    assert cli.main(["info", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "BF16" not in printed
    assert "bfloat16 and float32" in printed
    assert "made from      loomvideo                    LoomVideo gen_model.pth" in printed
    assert f"made with      torch                        {version('torch')}" in printed

    tensors = load_file(output / TRANSFORMER)
    tensors["blocks.1.attn2.to_q.bias"][0] += 1
    save_file(tensors, output / TRANSFORMER)
    assert run_cli("-o", output, "--verify") == 2
    assert "blocks.1.attn2.to_q.bias in" in capsys.readouterr().err
    assert run_cli("-o", output, "--force") == 0
    assert run_cli("-o", output, "--verify") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# What goes wrong


def test_errors_leave_nothing_behind(tmp_path):
    def check(message, **changes):
        with pytest.raises(ValueError, match=message):
            convert(**(SOURCES | {"output_dir": tmp_path / "model"} | changes))
        assert not (tmp_path / "model").exists()

    check("has no ema/ema.pth, latest/gen_model.pth, gen_model.pth and no single", loomvideo=GOLDEN / "cases")
    check(r"not a LoomVideo checkpoint.* is missing; .*; and \d+ more", loomvideo=GOLDEN / "Qwen3-VL")
    check("has no config.json", mllm=GOLDEN / "LoomVideo")
    check("has no vae/config.json", wan=GOLDEN / "Qwen3-VL")
    without_scheduler = tmp_path / "wan"
    shutil.copytree(GOLDEN / "Wan2.2-TI2V", without_scheduler, ignore=shutil.ignore_patterns("scheduler"))
    with pytest.raises(OSError, match="scheduler"):
        convert(**(SOURCES | {"wan": without_scheduler}), output_dir=tmp_path / "model")
    shutil.rmtree(without_scheduler)
    check("neither a file or folder here nor the name of a repository", mllm=tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(ValueError, match="has other content: choose another folder"):
        convert(**SOURCES, output_dir=tmp_path / "other")
    assert (tmp_path / "other" / "file").read_text() == "mine"
    broken = tmp_path / "broken"
    shutil.copytree(GOLDEN / "LoomVideo", broken)
    torch.save({"patch_embedding.weight": torch.zeros(48, 8, 1, 2, 2)}, broken / "gen_model.pth")
    check(r"not a LoomVideo checkpoint.*scale_shift_table \[1, 2, 48\] is missing; .* and \d+ more", loomvideo=broken)
    torch.save([torch.zeros(1)], broken / "gen_model.pth")
    check("has 1 tensors, but the transformer has", loomvideo=broken)
    torch.save({"patch_embedding.weight": 3}, broken / "gen_model.pth")
    check("holds a int where tensors belong", loomvideo=broken)
    check("cannot be written", output_dir=broken / "gen_model.pth" / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "other"}


def test_no_pickled_code_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "evil ran"), "w"))

    (tmp_path / "source").mkdir()
    torch.save({"patch_embedding.weight": Evil()}, tmp_path / "source" / "gen_model.pth")
    with pytest.raises((ValueError, OSError)):
        convert(**(SOURCES | {"loomvideo": tmp_path / "source"}), output_dir=tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(value, published, tmp_path):
    """The first is named; nothing stays."""
    damaged = {name: tensor.clone() for name, tensor in published.items()}
    damaged["blocks.1.ffn.net.2.weight"][3, 4] = value
    torch.save(damaged, tmp_path / "gen_model.pth")
    with pytest.raises(
        ValueError, match=r"blocks\.1\.ffn\.net\.2\.weight in .*gen_model.pth has values that are not finite"
    ):
        convert(**(SOURCES | {"loomvideo": tmp_path}), output_dir=tmp_path / "new" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["gen_model.pth"]
    # What is finite in its own precision need not be so in another.
    damaged["blocks.1.ffn.net.2.weight"][3, 4] = 1e6
    torch.save(damaged, tmp_path / "gen_model.pth")
    with pytest.raises(ValueError, match="not finite in float16: the file is damaged, or another --dtype is needed"):
        convert(**(SOURCES | {"loomvideo": tmp_path}), output_dir=tmp_path / "model", dtype=torch.float16)


def test_damaged_files(published, tmp_path):
    """Truncated files, indexes that point elsewhere, other shapes and sizes: one sentence each."""

    def check(message, **changes):
        with pytest.raises(ValueError, match=message):
            convert(**(SOURCES | changes), output_dir=tmp_path / "model")
        assert not (tmp_path / "model").exists()

    cut = tmp_path / "cut"
    cut.mkdir()
    save_file(published, cut / "m.safetensors")
    content = (cut / "m.safetensors").read_bytes()
    (cut / "m.safetensors").write_bytes(content[:-1000])
    check("m.safetensors is damaged", loomvideo=cut)
    (cut / "m.safetensors").write_bytes(content)
    (cut / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    check("names '../secret.safetensors', which is not beside it", loomvideo=cut)
    (cut / "m.safetensors.index.json").write_text("[]")
    check("is no index of shards", loomvideo=cut)
    (cut / "gen_model.pth").write_bytes((GOLDEN / "LoomVideo" / "gen_model.pth").read_bytes()[:-2000])
    check("gen_model.pth cannot be read as plain tensors", loomvideo=cut)
    wrong = published | {"proj_out.bias": torch.zeros(7)}
    torch.save(wrong, cut / "gen_model.pth")
    check(r"proj_out.bias is \[7\] and should be \[32\]", loomvideo=cut)
    torch.save(published | {"blocks.9.attn1.to_q.bias": torch.zeros(48)}, cut / "gen_model.pth")
    check(r"blocks.9.attn1.to_q.bias \[48\] is unknown", loomvideo=cut)

    other = tmp_path / "qwen"
    shutil.copytree(GOLDEN / "Qwen3-VL", other)
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["hidden_size"] *= 2
    (other / "config.json").write_text(json.dumps(config))
    check("is a Qwen3-VL of another size: expected one of width", mllm=other)
    other = tmp_path / "wan"
    shutil.copytree(GOLDEN / "Wan2.2-TI2V", other)
    config = json.loads((other / "vae" / "config.json").read_text())
    config["z_dim"] *= 2
    (other / "vae" / "config.json").write_text(json.dumps(config))
    check("is a VAE of another size: expected one of", wan=other)


def test_full_disk(tmp_path, monkeypatch, capsys):
    """Seen before anything is written if it can be, else while writing; nothing stays."""
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as context:
        context.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        assert run_cli("-o", tmp_path / "model") == 2
    assert "but there are 0.0 GB: make room" in capsys.readouterr().err
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def write_to_full_disk(path, mode="r", **options):
        return open("/dev/full", mode, **options) if str(path).endswith(".unfinished") else open(path, mode, **options)

    monkeypatch.setattr(weights, "open", write_to_full_disk, raising=False)
    assert run_cli("-o", tmp_path / "model") == 2
    advice = "could not be written (No space left on device): make room, or choose another disk."
    assert f"{tmp_path / 'model'} {advice}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_runs_that_write_one_folder(tmp_path, capsys):
    with lock_beside(tmp_path / "model"):
        assert run_cli("-o", tmp_path / "model") == 2
        assert f"Another run is writing to {tmp_path / 'model'}: wait until it has ended" in capsys.readouterr().err
    (tmp_path / ".removed-model").mkdir()  # of a run that was killed as it replaced the folder
    assert run_cli("-o", tmp_path / "model") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


KILLED = """
import sys, threading, time, os, signal
from loomvideo_diffusers import cli
from loomvideo_diffusers.conversion import convert, weights
delay = float(sys.argv[1])
write = weights._write
def slow(*arguments):
    time.sleep(0.1)
    write(*arguments)
weights._write = slow
def kill():
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
cli.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_killed(tmp_path):
    """Killed at 30 moments, it leaves nothing under the final name but what is whole, and the next run completes."""
    sources = [str(part) for name, path in SOURCES.items() for part in (f"--{name}", path)]
    arguments = ["convert", *sources, "-o", str(tmp_path / "model"), "--max-shard-size", "100KB"]
    rng = random.Random(0)
    num_killed = 0
    for _ in range(30):
        result = subprocess.run([sys.executable, "-c", KILLED, str(rng.uniform(0.1, 2.5)), *arguments], check=False)
        num_killed += result.returncode == -signal.SIGKILL
        if (tmp_path / "model").exists():
            assert run_cli("-o", tmp_path / "model", "--verify", "--max-shard-size", "100KB") == 0
            shutil.rmtree(tmp_path / "model")
        assert {path.name for path in tmp_path.iterdir()} <= {".unfinished-model", ".lock-model"}
    assert num_killed >= 15
    assert run_cli("-o", tmp_path / "model", "--max-shard-size", "100KB") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def write_released_file(path):
    """Random numbers in the names and shapes of the released file, which memory need not hold."""
    shapes = json.loads((GOLDEN / "gen_model_5b_tensors.json").read_text())["tensors"]
    with skip_data():
        torch.save({name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, path)
    with set_default_mmap_options(mmap.MAP_SHARED):
        for tensor in torch.load(path, mmap=True, map_location="cpu", weights_only=True).values():
            tensor.normal_()


def write_fitting_sources(folder):
    """A Qwen3-VL and a Wan that fit the released transformer, and are small in all else."""
    config = Qwen3VLConfig.from_pretrained(GOLDEN / "Qwen3-VL")
    config.text_config.hidden_size = config.vision_config.out_hidden_size = 4096
    config.text_config.num_hidden_layers = 36
    shutil.copytree(GOLDEN / "Qwen3-VL", folder / "mllm")
    Qwen3VLModel(config).save_pretrained(folder / "mllm")
    shutil.copytree(GOLDEN / "Wan2.2-TI2V" / "scheduler", folder / "wan" / "scheduler")
    config = dict(AutoencoderKLWan.load_config(GOLDEN / "Wan2.2-TI2V", subfolder="vae"))
    config |= {"z_dim": 48, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48}
    AutoencoderKLWan.from_config(config).save_pretrained(folder / "wan" / "vae")
    with torch.device("meta"):
        LoomVideoTransformer3DModel().save_config(folder / "wan" / "transformer")


def forget(path):
    """Writes a file to the disk and out of memory, so that who reads it next has to read the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# A command, and its peak of memory in bytes as the last line
MEASURED = """
import re, sys
from pathlib import Path
from loomvideo_diffusers import cli

status = cli.main(sys.argv[1:])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")
def test_full_size():
    """A file of the released size, 10 GB: less than 3 GB of memory, and at most twice the time of a copy."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_released_file(folder / "gen_model.pth")
        write_fitting_sources(folder)
        forget(folder / "gen_model.pth")
        start = time.perf_counter()
        shutil.copyfile(folder / "gen_model.pth", folder / "copy.pth")
        forget(folder / "copy.pth")
        copy_seconds = time.perf_counter() - start
        (folder / "copy.pth").unlink()

        forget(folder / "gen_model.pth")
        sources = {"loomvideo": folder / "gen_model.pth", "mllm": folder / "mllm", "wan": folder / "wan"}
        options = [str(part) for name, path in sources.items() for part in (f"--{name}", path)]
        command = [sys.executable, "-c", MEASURED, "convert", *options, "-o", str(folder / "model")]
        start = time.perf_counter()
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - start
        peak = int(result.stdout.splitlines()[-1]) / 1e9
        print(f"{peak:.2f} GB of memory, {seconds:.0f} s; copying the file takes {copy_seconds:.0f} s.")
        assert peak < 3
        assert seconds < 2 * copy_seconds
        subprocess.run([*command, "--verify"], check=True)
