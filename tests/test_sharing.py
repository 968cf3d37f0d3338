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
"""Pipelines in several threads, each with a scheduler of its own, on shared models; and prompts encoded apart."""

import ast
import copy
import inspect
import io
import pickle
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import FirstBlockCacheConfig
from diffusers.hooks import apply_group_offloading
from test_lora import make_config
from test_pipelines import SMALL, assert_close, generator, offload_blocks, offload_layers, offload_models

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline
from loomvideo_diffusers.pipelines.loomvideo_sharing import SharedLock, has_hooks, hold


NUM_THREADS = 4
TIMEOUT = 120

# What PyTorch, Transformers and Diffusers write on models whenever these run
NOTES_OF_LIBRARIES = {"_conv_num", "_conv_idx", "_feat_map", "_enc_conv_num", "_enc_conv_idx", "_enc_feat_map"}


def make_calls(clip: np.ndarray, number: int) -> list[dict]:
    """Arguments of so many calls of all kinds; those with a `video` or an `image` are edits."""
    references = [np.roll(clip[0], shift, axis=1) for shift in (5, 20)]
    kinds = [
        {"prompt": "a cat", "num_frames": 5},
        {"prompt": "make it blue", "video": clip},
        {"prompt": ["a red dog that runs", "a cat"], "num_frames": 1},
        {"prompt": "put it in", "video": clip[:5], "reference_images": references},
        {"prompt": "the thing", "num_frames": 5, "reference_images": references[:1], "negative_prompt": "ugly"},
        {"prompt": "make it night", "image": clip[0], "guidance_scale": 4.0},
        {"prompt": "a bird", "num_frames": 1, "guidance_scale": 1, "guidance_scale_visual": 1},
    ]
    return [SMALL | kinds[index % len(kinds)] for index in range(number)]


def run(pipes: dict[bool, LoomVideoPipeline], index: int, call: dict) -> torch.Tensor:
    return pipes["video" in call or "image" in call](**call, generator=generator(index)).frames


def own_pipes(pipe: LoomVideoPipeline) -> dict[bool, LoomVideoPipeline]:
    """Both pipelines, by whether they edit, with schedulers of their own: the recipe of Diffusers for servers."""
    pipes = {
        False: LoomVideoPipeline.from_pipe(pipe, scheduler=copy.deepcopy(pipe.scheduler)),
        True: LoomVideoEditPipeline.from_pipe(pipe, scheduler=copy.deepcopy(pipe.scheduler)),
    }
    for own in pipes.values():
        own.set_progress_bar_config(disable=True)
    return pipes


def run_in_threads(pipe: LoomVideoPipeline, calls: list[dict]) -> list[torch.Tensor]:
    """Each thread makes pipelines of its own and takes call after call, all beginning at once."""
    local, barrier = threading.local(), threading.Barrier(NUM_THREADS)

    def begin() -> None:
        local.pipes = own_pipes(pipe)
        barrier.wait(TIMEOUT)

    with ThreadPoolExecutor(NUM_THREADS, initializer=begin) as pool:
        futures = [pool.submit(lambda *call: run(local.pipes, *call), *call) for call in enumerate(calls)]
        return [future.result(TIMEOUT) for future in futures]


def state_of(pipe: LoomVideoPipeline) -> dict[str, dict]:
    """All that the models and their layers have as attributes, hooks and methods of their own among them."""
    state = {}
    for component in ("text_encoder", "transformer", "vae"):
        for name, module in getattr(pipe, component).named_modules():
            attributes = {key: value for key, value in vars(module).items() if key not in NOTES_OF_LIBRARIES}
            copies = {key: dict(value) for key, value in attributes.items() if isinstance(value, dict)}
            state[f"{component}.{name}"] = attributes | copies
    return state


def assert_equal(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for result, single in zip(actual, expected, strict=True):
        assert_close(result, single, atol=1e-5)


@pytest.mark.parametrize("num_calls", [16, pytest.param(50, marks=pytest.mark.slow)])
def test_threads(num_calls, pipe, clip):
    calls = make_calls(clip, num_calls)
    before = state_of(pipe)
    actual = run_in_threads(pipe, calls)
    assert str(state_of(pipe)) == str(before)
    expected = [run(own_pipes(pipe), index, call) for index, call in enumerate(calls)]
    assert_equal(actual, expected)

    copied = copy.deepcopy(pipe)
    file = io.BytesIO()
    pickle.dump(pipe, file)
    file.seek(0)
    for other in (copied, pickle.load(file)):
        assert_close(run(own_pipes(other), 1, calls[1]), expected[1], atol=1e-5)


def test_threads_with_lora_scales(pipe, clip):
    pipe.transformer.add_adapter(make_config(), "default")
    calls = make_calls(clip, 14)
    for index, call in enumerate(calls):
        if index % 3:
            call["attention_kwargs"] = {"scale": (0.0, 0.5)[index % 3 - 1]}
    expected = [run(own_pipes(pipe), index, call) for index, call in enumerate(calls)]
    before = state_of(pipe)
    assert_equal(run_in_threads(pipe, calls), expected)
    assert str(state_of(pipe)) == str(before)


def cast_layers(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def cache_steps(pipe):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))


def offload_the_mllm_alone(pipe):
    apply_group_offloading(pipe.text_encoder, onload_device=torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize(
    "hook", [offload_models, offload_layers, offload_blocks, offload_the_mllm_alone, cast_layers, cache_steps]
)
def test_threads_with_hooks(hook, pipe, clip):
    """Offloading, layerwise casting and step caches go on working."""
    hook(pipe)
    calls = make_calls(clip, 8)
    expected = [run(own_pipes(pipe), index, call) for index, call in enumerate(calls)]
    assert_equal(run_in_threads(pipe, calls), expected)


def test_one_pipeline_in_several_threads(pipe, clip):
    """Calls of one pipeline, and of two that share a scheduler, come one after the other."""
    calls = make_calls(clip, 6)
    expected = [run(own_pipes(pipe), index, call) for index, call in enumerate(calls)]
    pipes = own_pipes(pipe)
    pipes[True].scheduler = pipes[False].scheduler
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        futures = [pool.submit(run, pipes, index, call) for index, call in enumerate(calls)]
        assert_equal([future.result(TIMEOUT) for future in futures], expected)


def test_pixels_in_chunks_in_threads(edit, clip):
    """What is encoded and decoded bit by bit is no other thread's."""
    clips = [np.roll(clip, shift, axis=2) for shift in range(4)]
    latents = [edit.encode_in_chunks(clip) for clip in clips]
    frames = [torch.cat(list(edit.decode_in_chunks(clip, 1)), dim=2) for clip in latents]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        assert_equal(list(pool.map(edit.encode_in_chunks, clips)), latents)
        decoders = [edit.decode_in_chunks(clip, 1) for clip in latents]
        decoded = [[next(decoder) for decoder in decoders] for _ in range(3)]
        assert_equal([torch.cat(chunks, dim=2) for chunks in zip(*decoded)], frames)
        together = pool.map(lambda clip: torch.cat(list(edit.decode_in_chunks(clip, 1)), dim=2), latents)
        assert_equal(list(together), frames)


def test_calls_in_callbacks(pipe):
    """Another pipeline can be called there, also as others wait; what would spoil the call says so."""
    other = own_pipes(pipe)[False]
    options = SMALL | {"num_frames": 1, "output_type": "latent"}
    expected = pipe("a cat", generator=generator(), **options).frames
    results, waiting = [], ThreadPoolExecutor(1)

    def call(callee, **more):
        def on_step_end(_, step, timestep, tensors):
            if step == 0:
                # Meanwhile another thread wants the transformer alone.
                waiter = own_pipes(pipe)[False]
                future = waiting.submit(waiter, "a dog", attention_kwargs={"scale": 0.5}, **options)
                time.sleep(0.2)
                results.append((callee("a cat", generator=generator(), **options, **more).frames, future))
            return {}

        return on_step_end

    outer = pipe("a cat", generator=generator(), callback_on_step_end=call(other), **options).frames
    assert_equal([outer, results[0][0]], [expected, expected])
    assert results[0][1].result(TIMEOUT).frames.isfinite().all()

    alike = LoomVideoPipeline.from_pipe(pipe)
    alike.set_progress_bar_config(disable=True)
    for callee, more, message in (
        (pipe, {}, "called the pipeline that called it"),
        (alike, {}, "with the scheduler that called it"),
        (other, {"attention_kwargs": {"scale": 0.5}}, "needs a model for itself"),
    ):
        with pytest.raises(RuntimeError, match=message):
            pipe("a cat", callback_on_step_end=call(callee, **more), **options)
    waiting.shutdown()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(RuntimeError, match="whose step cache keeps the state of one call"):
        pipe("a cat", callback_on_step_end=lambda *_: other("a cat", **options), **options)
    pipe.transformer.disable_cache()
    assert_equal([pipe("a cat", generator=generator(), **options).frames], [expected])


def test_shared_lock():
    """Together or alone, in the order of asking, and again by those who hold it."""
    lock, order = SharedLock(), []
    held, release = threading.Event(), threading.Event()

    def hold(name: str, alone: bool, wait: threading.Event | None = None) -> None:
        with lock.hold(alone), lock.hold(False):
            order.append(name)
            held.set()
            if wait is not None:
                wait.wait(TIMEOUT)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(hold, "first", False, release)]
        held.wait(TIMEOUT)
        for name, alone in (("together", False), ("alone", True), ("after it", False), ("alone again", True)):
            futures.append(pool.submit(hold, name, alone))
            time.sleep(0.1)
        assert order == ["first", "together"]
        release.set()
        for future in futures:
            future.result(TIMEOUT)
    assert order == ["first", "together", "alone", "after it", "alone again"]
    assert not lock.is_mine
    with lock.hold(False), pytest.raises(RuntimeError, match="make it when that call is done"), lock.hold():
        pass
    with lock.hold():
        assert lock.is_mine


def test_a_hook_anywhere_is_found():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert not has_hooks(model)
    add_hook_to_module(model[1][0], ModelHook())
    assert has_hooks(model)


@pytest.mark.parametrize("is_hooked", [False, True])
def test_hooks_of_one_model_take_all(is_hooked):
    """Where one model has hooks, whoever uses another waits too, as hooks move weights between models."""
    first, second, used = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), threading.Event()

    def use_the_second() -> None:
        with hold([second], second):
            used.set()

    if is_hooked:
        apply_group_offloading(first, onload_device=torch.device("cpu"), offload_type="leaf_level")
    thread = threading.Thread(target=use_the_second)
    with hold([first, second, None], first):
        thread.start()
        assert used.wait(0.3 if is_hooked else TIMEOUT) != is_hooked
    thread.join(TIMEOUT)
    assert used.is_set()


# Prompts encoded apart


def returned_names(method) -> list[str]:
    """The names in the one `return` of a method."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    (statement,) = [node for node in ast.walk(tree) if isinstance(node, ast.Return)]
    return [name.id for name in statement.value.elts]


@pytest.mark.parametrize("kind", range(7))
@pytest.mark.parametrize("masked", [False, True])
def test_encode_prompt_in_isolation(kind, masked, pipe, clip):
    """What Diffusers asks of all pipelines: it takes the place of all that it was given."""
    call = make_calls(clip, 7)[kind]
    if masked:
        prompts = [call["prompt"], "a longer prompt, of more tokens"] if kind != 2 else call["prompt"]
        call |= {"prompt": prompts, "negative_prompt": ["", "blurry and grey, static"]}
    pipeline_class = LoomVideoEditPipeline if "video" in call or "image" in call else LoomVideoPipeline
    full = pipeline_class(**pipe.components)
    expected = full(**call, generator=generator()).frames

    is_text = {name: name in ("text_encoder", "processor") for name in pipe.components}
    of_text = pipeline_class(**{name: pipe.components[name] if is_text[name] else None for name in is_text})
    rest = pipeline_class(**{name: None if is_text[name] else pipe.components[name] for name in is_text})
    parameters = inspect.signature(of_text.encode_prompt).parameters
    assert {"device", "do_classifier_free_guidance"} < set(parameters)
    inputs = {name: call.pop(name) for name in list(call) if name in parameters}
    guided = call.get("guidance_scale", 5.0) > 1
    with torch.no_grad():
        outputs = of_text.encode_prompt(**inputs, device="cpu", do_classifier_free_guidance=guided)
    names = returned_names(pipeline_class.encode_prompt)
    assert len(names) == len(outputs)
    assert set(names) < set(inspect.signature(pipeline_class.__call__).parameters)
    actual = rest(**call | dict(zip(names, outputs)), generator=generator()).frames
    assert_close(actual, expected)


def test_device_of_embeds(pipe):
    embeds = pipe.encode_prompt("a cat", num_frames=5, device="meta")
    assert [tensor.device.type for tensor in embeds[:6:4]] == ["meta", "meta"]


def test_negative_prompts_alone(edit, clip):
    negative_prompts = ["ugly", "blurry and grey, static"]
    with torch.no_grad():
        expected = edit.encode_prompt(["blue", "red"], negative_prompts, video=clip)[4:6]
        assert_equal(edit.encode_negative_prompt(negative_prompts), expected)
        assert_close(edit.encode_negative_prompt()[0], edit.encode_prompt("blue", video=clip)[4])


@pytest.mark.parametrize("pipeline_class", [LoomVideoPipeline, LoomVideoEditPipeline])
def test_optional_components(pipeline_class, pipe, clip, model_folder, tmp_path):
    """Halves of a pipeline load, are saved and load again, and say what they lack."""
    assert set(pipeline_class._optional_components) == set(pipe.components)
    call = SMALL | ({"image": clip[0]} if pipeline_class is LoomVideoEditPipeline else {"num_frames": 1})
    expected = pipeline_class(**pipe.components)("a cat", generator=generator(), **call).frames
    of_text = pipeline_class.from_pretrained(model_folder, vae=None, transformer=None, scheduler=None)
    rest = pipeline_class.from_pretrained(model_folder, text_encoder=None, processor=None)
    for name, half in (("text", of_text), ("rest", rest)):
        half.save_pretrained(tmp_path / name)
    of_text, rest = (pipeline_class.from_pretrained(tmp_path / name) for name in ("text", "rest"))
    size = {name: call[name] for name in ("height", "width", "num_frames", "image") if name in call}
    with torch.no_grad():
        embeds = of_text.encode_prompt("a cat", **size)
    given = dict(zip(returned_names(pipeline_class.encode_prompt), embeds))
    assert_close(rest(**call | given, generator=generator()).frames, expected)

    with pytest.raises(ValueError, match="This pipeline has no MLLM: pass `prompt_embeds`"):
        rest("a cat", **call)
    for missing in ("transformer", "scheduler", "vae"):
        lacking = pipeline_class(**pipe.components | {missing: None})
        with pytest.raises(ValueError, match=f"does not have, `{missing}`: load the pipeline with it"):
            lacking("a cat", **call)
    if pipeline_class is LoomVideoPipeline:
        lacking = pipeline_class(**pipe.components | {"vae": None})
        latents = lacking("a cat", **call | {"output_type": "latent"}).frames
        assert latents.shape == (1, 8, 1, 4, 4)
        with pytest.raises(ValueError, match="does not have, `vae`"):
            lacking("a cat", reference_images=clip[0], **call | {"output_type": "latent"})
    for missing in ("text_encoder", "processor"):
        with pytest.raises(ValueError, match="This pipeline has no MLLM"):
            pipeline_class(**pipe.components | {missing: None})("a cat", **call)
