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
"""What makes a pipeline faster or smaller, by one word each."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from diffusers import MagCacheConfig, UniPCMultistepScheduler
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from peft import LoraConfig, get_peft_model_state_dict

from loomvideo_diffusers import LoomVideoPipeline, cli
from loomvideo_diffusers.acceleration import SCHEDULERS, Levers
from loomvideo_diffusers.calibration import read_ratios
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.loading import load_pipeline
from loomvideo_diffusers.media import read_comment


SMALL = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 6, "output_type": "latent"}


@pytest.fixture
def generate(model_folder):
    """Latents of a small video by a pipeline with some levers."""

    def generate(loras=(), **levers):
        pipe = load_pipeline(LoomVideoPipeline, str(model_folder), loras=loras, device="cpu", levers=Levers(**levers))
        pipe.set_progress_bar_config(disable=True)
        return pipe("a cat", generator=torch.Generator().manual_seed(0), **SMALL).frames

    return generate


def difference(one, other):
    """The norm of the difference, as a share of the other's."""
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize(
    ("levers", "least", "most"),
    [
        ({"attention": "_native_math"}, 0, 1e-4),
        ({"offload": "model"}, 0, 1e-5),
        ({"offload": "blocks"}, 0, 1e-5),
        ({"offload": "blocks:mllm"}, 0, 1e-5),
        ({"offload": "blocks", "attention": "_native_math"}, 0, 1e-4),
        ({"quantize": "int8"}, 1e-4, 0.1),
        ({"quantize": ["int8:transformer"]}, 1e-4, 0.1),
        ({"quantize": ["int8:mllm"]}, 1e-5, 0.1),
        ({"cache": "taylorseer"}, 1e-4, 0.3),
        ({"cache": "first-block"}, 0, 0.3),
        ({"scheduler": "euler"}, 1e-4, 0.5),
        ({"scheduler": "heun"}, 1e-4, 0.5),
        ({"scheduler": "dpm++"}, 1e-4, 0.5),
        ({"scheduler": "unipc"}, 0, 1e-6),
    ],
    ids=str,
)
def test_levers(levers, least, most, generate):
    """Each does what it says, and changes the result by no more than it may."""
    assert least <= difference(generate(**levers), generate()) <= most


@pytest.mark.slow
def test_compiled(generate):
    assert difference(generate(compile=True), generate()) < 1e-4


@pytest.mark.parametrize(
    ("levers", "is_so"),
    [
        ({"attention": "_native_math"}, lambda pipe: attention_of(pipe) == "_native_math"),
        ({"cache": "first-block"}, lambda pipe: pipe.transformer.is_cache_enabled),
        ({"cache": "taylorseer"}, lambda pipe: pipe.transformer.is_cache_enabled),
        ({"offload": "model"}, lambda pipe: hasattr(pipe.text_encoder, "_hf_hook")),
        ({"offload": "blocks"}, lambda pipe: all(map(is_offloaded, (pipe.transformer, pipe.text_encoder)))),
        ({"offload": "blocks:mllm"}, lambda pipe: is_offloaded(pipe.text_encoder) and hasattr(pipe.vae, "_hf_hook")),
        ({"compile": True}, lambda pipe: all(block._compiled_call_impl for block in pipe.transformer.blocks)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_levers_do(levers, is_so, model_folder):
    """Also where the result is the same with and without."""
    pipes = [
        load_pipeline(LoomVideoPipeline, str(model_folder), device="cpu", levers=Levers(**chosen))
        for chosen in ({}, levers)
    ]
    assert [bool(is_so(pipe)) for pipe in pipes] == [False, True]


def attention_of(pipe):
    return pipe.transformer.blocks[0].attn1.processor._attention_backend


def is_offloaded(model):
    return any(_is_group_offload_enabled(module) for module in model.modules())


KINDS = {
    "attention": {"attention": "_native_math"},
    "model": {"offload": "model"},
    "blocks": {"offload": "blocks"},
    "blocks:mllm": {"offload": "blocks:mllm"},
    "int8": {"quantize": "int8"},
    "first-block": {"cache": "first-block"},
    "taylorseer": {"cache": "taylorseer"},
    "compile": {"compile": True},
}


@pytest.fixture(scope="module")
def singles():
    """The differences of single levers, as they are asked for."""
    return {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(one, other, marks=[] if (one, other) in [("blocks", "int8")] else [pytest.mark.slow])
        for one, other in combinations(KINDS, 2)
        if not KINDS[one].keys() & KINDS[other].keys()
    ],
)
def test_pairs(one, other, singles, generate):
    """Two levers change the result by no more than each alone, added up."""
    if not singles:
        singles["plain"] = generate()
    for name in (one, other):
        if name not in singles:
            singles[name] = difference(generate(**KINDS[name]), singles["plain"])
    both = difference(generate(**KINDS[one] | KINDS[other]), singles["plain"])
    assert both <= (singles[one] + singles[other]) * 1.01 + 1e-5


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in ("blocks", "int8") else [pytest.mark.slow]) for kind in KINDS]
)
def test_with_a_lora(kind, generate, transformer, tmp_path):
    """A LoRA counts with each lever as without."""
    torch.manual_seed(0)
    transformer.add_adapter(LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False))
    LoomVideoPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(transformer))
    plain, adapted = generate(), generate([str(tmp_path)])
    of_kind = generate(**KINDS[kind])
    both = generate([str(tmp_path)], **KINDS[kind])
    assert difference(adapted, plain) > 1e-2
    assert difference(both, of_kind) > 1e-2
    assert difference(both, adapted) <= 1.5 * difference(of_kind, plain) + 1e-5


def test_calibration(pipe, model_folder, tmp_path, capsys):
    """It measures what MagCache's own calibration prints, and a call of any length uses it."""
    ratios_file = tmp_path / "ratios.json"
    arguments = ["calibrate", "a cat", "-o", str(ratios_file), "--model", str(model_folder), "--steps", "6"]
    assert cli.main([*arguments, "--height", "64", "--width", "64", "--frames", "5", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"Wrote {ratios_file}: 6 steps, for --cache magcache:{ratios_file}.\n"
    ratios = read_ratios(ratios_file)
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=6))
    pipe("a cat", generator=torch.Generator().manual_seed(5), **SMALL)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0")]
    assert len(printed) == 2
    assert ratios == pytest.approx(np.mean(printed, axis=0).tolist(), rel=0.05)
    pipe.transformer.disable_cache()

    levers = Levers(cache=f"magcache:{ratios_file}")
    pipe = load_pipeline(LoomVideoPipeline, str(model_folder), device="cpu", levers=levers)
    calls = []
    pipe.transformer.blocks[-1].attn1.register_forward_hook(lambda *arguments: calls.append(1))
    for num_steps in (6, 12):
        calls.clear()
        pipe("a cat", **SMALL | {"num_inference_steps": num_steps})
        hooks = pipe.transformer.blocks[0]._diffusers_hook.hooks.values()
        assert [hook.config.num_inference_steps for hook in hooks] == [num_steps]
        assert len(calls) < 2 * num_steps


@pytest.mark.parametrize("content", ["", "[]", '{"mag_ratios": []}', '{"mag_ratios": [1, NaN]}', '{"mag_ratios": 1}'])
def test_what_are_no_ratios(content, tmp_path):
    (tmp_path / "ratios.json").write_text(content)
    for name in ("ratios.json", "nothing.json"):
        with pytest.raises(LoomVideoError, match=f"{name} holds no ratios for MagCache: write it by `loomvideo cali"):
            Levers(cache=f"magcache:{tmp_path / name}")


def test_schedulers_follow_the_same_flow(model_folder):
    own = UniPCMultistepScheduler.from_pretrained(model_folder, subfolder="scheduler")
    for name in SCHEDULERS:
        pipe = load_pipeline(LoomVideoPipeline, str(model_folder), device="cpu", levers=Levers(scheduler=name))
        assert type(pipe.scheduler).__name__ == SCHEDULERS[name]
        assert pipe.scheduler.config.get("flow_shift", pipe.scheduler.config.get("shift")) == own.config.flow_shift


@pytest.mark.parametrize(
    ("levers", "message"),
    [
        ({"cache": "magic"}, "`cache` must be first-block or taylorseer or magcache:FILE, but is magic."),
        ({"offload": "disk"}, "`offload` must be model or blocks:mllm or blocks, but is disk."),
        ({"scheduler": "ddim"}, "`scheduler` must be unipc or euler or heun or dpm++, but is ddim."),
        (
            {"quantize": "int4"},
            "`quantize` must be float8 or int8 or nf4, and for one part go on with :transformer",
        ),
        ({"quantize": "int8:vae"}, "or :mllm, but is int8:vae."),
        ({"quantize": ["int8", "nf4:mllm"]}, "`quantize` names the mllm twice: say one kind for it."),
        ({"quantize": "float8"}, "float8 is slower than bfloat16 unless compiled: add --compile"),
        ({"quantize": "float8", "compile": True}, "cpu does not multiply in float8: choose int8"),
        ({"quantize": "nf4"}, "nf4 needs a card with CUDA, and the device is cpu: choose int8."),
        ({"attention": "magic"}, "The attention magic cannot be used here: "),
        ({"attention": "flash"}, "The attention flash cannot be used here: "),
    ],
)
def test_what_cannot_be(levers, message, generate):
    with pytest.raises(LoomVideoError) as error:
        generate(**levers)
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0


def test_no_compiler(generate, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LoomVideoError, match=r"^Compiling needs a C\+\+ compiler, and there is none: install g\+\+"):
        generate(compile=True)


def test_on_the_command_line(model_folder, tmp_path, capsys):
    """They are in the command that a result states."""
    arguments = ["generate", "a cat", "-o", str(tmp_path / "a.png"), "--model", str(model_folder), "--steps", "2"]
    arguments += ["--height", "64", "--width", "64", "--cpu-offload", "--scheduler", "euler", "--sigmas", "1", "0.5"]
    assert cli.main([*arguments, "--device", "cpu", "--attention", "native"]) == 0
    command = json.loads(read_comment(tmp_path / "a.png"))["command"]
    for words in ("--offload model", "--scheduler euler", "--sigmas 1.0 0.5", "--attention native"):
        assert words in command
    assert "compile" not in command
    assert "quantize" not in command
    capsys.readouterr()
    assert cli.main([*arguments, "--quantize", "float8"]) == 2
    assert "float8 is slower than bfloat16 unless compiled" in capsys.readouterr().err
