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
"""What is computed once: over the steps of a call, over the branches of guidance, and over calls."""

import inspect
import math
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import call_inputs, case_names, transformer_inputs
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig, TextKVCacheConfig

from loomvideo_diffusers import LoomVideoTransformer3DModel


@contextmanager
def counted(**modules):
    """Counts how often modules run."""
    counter, hooks = Counter(), []
    for name, module in modules.items():
        hooks.append(module.register_forward_hook(lambda *_, name=name: counter.update([name])))
    yield counter
    for hook in hooks:
        hook.remove()


def run(transformer, **inputs):
    with torch.no_grad():
        return transformer(**inputs | {"return_dict": False})[0]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", case_names("transformer"))
def test_kv_cache(name, fused, transformer):
    """At every later step it gives the same numbers, and what reads the prompt and the pixels runs once."""
    if fused:
        transformer.fuse_qkv_projections()
    first = transformer_inputs(name)
    second = first | {
        "hidden_states": torch.randn_like(first["hidden_states"]),
        "timestep": first["timestep"] / 2,
        "source_scale": first["source_scale"] / 2,
    }
    kv_cache = transformer.create_kv_cache()
    assert kv_cache.nbytes == kv_cache.tokens.nbytes == 0
    parts = {
        "mllm_embedder": transformer.mllm_embedder,
        "source_patch_embedding": transformer.source_patch_embedding,
        "norm_k": transformer.blocks[0].attn2.norm_k,
        "rope": transformer.rope,
    }
    for step, inputs in enumerate((first, second, first)):
        expected = run(transformer, **inputs)
        with counted(**parts) as counts:
            assert torch.equal(run(transformer, **inputs, kv_cache=kv_cache), expected)
        assert (counts == Counter()) == (step > 0)
    prompt = first["encoder_hidden_states"]
    keys_and_values = 2 * prompt.shape[1] * prompt.shape[0] * prompt.shape[2] * transformer.proj_out.in_features * 4
    assert kv_cache.nbytes == keys_and_values
    cache, dim = kv_cache.tokens, transformer.proj_out.in_features
    num_video_tokens = math.prod(first["hidden_states"].shape[i] for i in (0, 2, 3, 4)) // 4
    num_tokens = num_video_tokens + sum(reference.numel() for reference in cache.references or []) // dim
    rotary = cache.rotary[0].shape[1] * transformer.config.attention_head_dim
    assert cache.nbytes == 4 * (num_tokens * dim + rotary)


@pytest.mark.parametrize("name", ["pipeline_ref_edit", "pipeline_mi2v", "pipeline_t2v"])
def test_a_call_with_and_without_it(name, pipe, edit):
    pipe = edit if "edit" in name else pipe
    inputs = call_inputs(name) | {"output_type": "latent"}
    without = pipe(**inputs, use_kv_cache=False).frames
    assert pipe.kv_cache_nbytes == 0
    transformer = pipe.transformer
    parts = {"embedder": transformer.mllm_embedder, "source": transformer.source_patch_embedding}
    with counted(**parts, rope=transformer.rope) as counts:
        latents = pipe(**inputs).frames
    assert torch.allclose(latents, without, atol=1e-5)
    assert pipe.kv_cache_nbytes > 0
    is_t2v = name == "pipeline_t2v"
    num_branches = 2 if is_t2v else 3
    assert counts["embedder"] == num_branches * transformer.config.num_layers
    # Two branches see the same source and references, and one sees none.
    assert counts["source"] == counts["rope"] == (1 if is_t2v else 2)


def test_embeds_that_a_callback_changes(pipe):
    """What was kept of the old ones is not used for the new ones."""
    new = pipe.encode_prompt("a dog", num_frames=5)[0]

    def change(pipe, step, timestep, tensors):
        return {"prompt_embeds": new} if step == 0 else {}

    options = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 2, "callback_on_step_end": change}
    options |= {"latents": torch.randn(1, 8, 2, 4, 4), "output_type": "latent"}
    kept = pipe("a cat", **options).frames
    assert torch.allclose(kept, pipe("a cat", use_kv_cache=False, **options).frames, atol=1e-5)
    assert not torch.allclose(kept, pipe("a cat", **options | {"callback_on_step_end": None}).frames, atol=1e-3)


def test_the_mllm_runs_as_seldom_as_can_be(edit, clip):
    """It sees the pixels once for both branches that do, and no negative prompt that was encoded already."""
    # Before 5.18, Transformers takes no vision features that are there already.
    visions = 1 if "mm_encoder_outputs" in inspect.signature(edit.text_encoder.forward).parameters else 2
    options = {"video": clip, "num_inference_steps": 1, "output_type": "latent"}
    parts = {"vision": edit.text_encoder.visual.blocks[0], "words": edit.text_encoder.language_model}
    latents = torch.randn(1, 8, 3, 4, 4)
    for _ in range(2):
        with counted(**parts) as counts:
            expected = edit("red", negative_prompt="ugly", latents=latents, **options).frames
        assert counts == {"vision": visions, "words": 3}
    embeds, mask = edit.encode_negative_prompt("ugly")
    assert mask is None
    with counted(**parts) as counts:
        frames = edit("red", negative_prompt_embeds=embeds, latents=latents, **options).frames
    assert counts == {"vision": visions, "words": 2}
    assert torch.equal(frames, expected)


def test_prompts_are_encoded_anew(pipe):
    """After weights were changed in place too; and nothing is kept of what was encoded, such as its graph."""
    options = {"height": 64, "width": 64, "num_frames": 5, "num_inference_steps": 1, "output_type": "latent"}
    options |= {"latents": torch.randn(1, 8, 2, 4, 4)}
    before = pipe("a cat", **options).frames
    kept = dict(vars(pipe))
    assert pipe.encode_prompt("a cat", num_frames=5)[4].requires_grad
    assert vars(pipe) == kept
    names = ("prompt_embeds", "prompt_embeds_mask")
    given = dict(zip(names, pipe.encode_prompt("a cat", num_frames=5, do_classifier_free_guidance=False)))
    with torch.no_grad():
        pipe.text_encoder.language_model.layers[-1].mlp.down_proj.weight.mul_(3)
    given = {name: tensor.detach() for name, tensor in given.items() if tensor is not None}
    after = pipe(**given, **options).frames
    assert not torch.allclose(after, before, atol=1e-3)


def test_guidance_interval(pipe, edit, clip):
    """Outside of it one branch runs; the whole of it is the default, none of it is no guidance."""
    options = {"num_inference_steps": 4, "output_type": "latent"}
    latents = torch.randn(1, 8, 3, 4, 4)
    plain = edit("blue", video=clip, latents=latents, **options).frames
    assert torch.equal(edit("blue", video=clip, latents=latents, guidance_interval=(0, 1), **options).frames, plain)
    unguided = edit("blue", video=clip, latents=latents, guidance_scale=1, guidance_scale_visual=1, **options).frames
    none = edit("blue", video=clip, latents=latents, guidance_interval=(0.5, 0.5), **options).frames
    assert torch.allclose(none, unguided, atol=1e-5)
    with counted(transformer=edit.transformer) as counts:
        edit("blue", video=clip, guidance_interval=(0.25, 0.75), **options)
    assert counts["transformer"] == 2 * 3 + 2 * 1
    for wrong in ((0.5, 0.2), (0, 2), 0.5, (0, 0.5, 1)):
        with pytest.raises(ValueError, match="`guidance_interval` must be two shares of the steps"):
            pipe("a cat", guidance_interval=wrong, num_frames=5)


def test_decoding_in_chunks(edit, clip):
    """Gives what decoding all at once gives, frame by frame of the latents, also after it was broken off."""
    latents = edit("blue", video=clip, num_inference_steps=1, output_type="latent").frames
    expected = edit.decode_latents(latents, "pt")
    next(edit.decode_in_chunks(latents, 1))
    chunks = list(edit.decode_in_chunks(latents, 1))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    video = edit.video_processor.postprocess_video(torch.cat(chunks, dim=2), output_type="pt")
    assert torch.allclose(video, expected, atol=1e-5)
    assert torch.equal(edit.decode_latents(latents, "pt"), expected)


@pytest.mark.parametrize(("chunk_size", "lengths"), [(2, [1, 8, 8]), (3, [1, 12, 4]), (9, [1, 16])])
def test_larger_chunks(chunk_size, lengths, edit, clip):
    """Chunks of any size give the same, and so do clips that end within one."""
    clip = np.concatenate([clip, clip[:8]])
    latents = edit.encode_in_chunks(clip)
    assert torch.allclose(edit.encode_in_chunks(clip, chunk_size), latents, atol=1e-5)
    chunks = list(edit.decode_in_chunks(latents, chunk_size))
    assert [chunk.shape[2] for chunk in chunks] == lengths
    expected = torch.cat(list(edit.decode_in_chunks(latents, 1)), dim=2)
    assert torch.allclose(torch.cat(chunks, dim=2), expected, atol=1e-5)
    with pytest.raises(ValueError, match="`chunk_size` must be a positive integer"):
        edit.encode_in_chunks(clip, 0)


def test_as_many_as_fit(edit):
    """Small pictures are decoded four latent frames at once, unless another number is set."""
    latents = torch.randn(1, 8, 9, 4, 4, generator=torch.Generator().manual_seed(0))
    assert [chunk.shape[2] for chunk in edit.decode_in_chunks(latents)] == [1, 16, 16]
    edit.vae_chunk_size = 3
    assert [chunk.shape[2] for chunk in edit.decode_in_chunks(latents)] == [1, 12, 12, 8]


def test_encoding_in_chunks(edit, clip):
    """Gives what encoding all at once gives, also after it was broken off."""
    expected = edit.prepare_clip_latents(edit.prepare_sources(clip, None, None, 1, None, None, None)[0], 1)
    with pytest.raises(ZeroDivisionError):
        edit.encode_in_chunks(frame if index < 4 else 1 / 0 for index, frame in enumerate(clip))
    assert torch.allclose(edit.encode_in_chunks(clip), expected, atol=1e-5)


# What skips work at later steps

TIMESTEPS = [0]
SKIPPED = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (-1, 950)}
STEP_CACHES = {
    "first block": FirstBlockCacheConfig(threshold=0.5),
    "TaylorSeer": TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2),
    "TaylorSeer, lite": TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, use_lite_mode=True),
    "MagCache": MagCacheConfig(num_inference_steps=8, mag_ratios=torch.ones(8), threshold=0.5, retention_ratio=0.2),
    "PAB": PyramidAttentionBroadcastConfig(**SKIPPED, current_timestep_callback=lambda: TIMESTEPS[-1]),
    "FasterCache": FasterCacheConfig(**SKIPPED, current_timestep_callback=lambda: TIMESTEPS[-1]),
}


@pytest.mark.parametrize("name", STEP_CACHES)
def test_step_caches(name, edit, clip, model_folder):
    """Layers run less often, and each branch of guidance gets what it would get if there were no other."""
    options = {"video": clip, "num_inference_steps": 8, "output_type": "latent"}
    latents = torch.randn(1, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    transformer, calls = edit.transformer, []
    plain = edit("blue", latents=latents, **options).frames
    before = transformer.register_forward_pre_hook(
        lambda module, arguments, inputs: TIMESTEPS.append(inputs["timestep"][0].item()), with_kwargs=True
    )
    after = transformer.register_forward_hook(
        lambda module, arguments, inputs, output: calls.append((inputs, output[0])), with_kwargs=True
    )
    transformer.enable_cache(STEP_CACHES[name])
    with counted(attention=transformer.blocks[1].attn1.to_out[0]) as counts:
        results = [edit("blue", latents=latents, **options).frames for _ in range(2)]
    before.remove()
    after.remove()
    transformer.disable_cache()
    assert len(calls) == 2 * 8 * 3
    assert counts["attention"] < len(calls)
    assert torch.equal(*results)
    assert not torch.equal(results[0], plain)
    assert torch.equal(edit("blue", latents=latents, **options).frames, plain)

    alone = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")
    alone.enable_cache(STEP_CACHES[name])
    for branch in range(3):
        alone._reset_stateful_cache()
        kv_cache = alone.create_kv_cache()
        for inputs, output in calls[: 8 * 3][branch::3]:
            TIMESTEPS.append(inputs["timestep"][0].item())
            with alone.cache_context("alone"):
                assert torch.equal(run(alone, **inputs | {"kv_cache": kv_cache}), output)


ALL_CACHES = STEP_CACHES | {
    "SeaCache": SeaCacheConfig(raw_vision_callback=lambda model, arguments, inputs: [inputs["hidden_states"][0]]),
    "TextKVCache": TextKVCacheConfig(),
}


def test_branches_leave_nothing_without_a_cache(transformer):
    before = [set(vars(module)) for module in transformer.modules()]
    with transformer.cache_context("a branch"):
        run(transformer, **transformer_inputs("transformer_edit"))
    transformer._reset_stateful_cache()
    assert [set(vars(module)) for module in transformer.modules()] == before


@pytest.mark.parametrize("name", ALL_CACHES)
def test_disabled_caches_leave_nothing(name, transformer):
    inputs = transformer_inputs("transformer_edit")
    expected = run(transformer, **inputs)
    before = [set(vars(module)) for module in transformer.modules()]
    transformer.enable_cache(ALL_CACHES[name])
    assert any(module._diffusers_hook.hooks for module in transformer.modules() if hasattr(module, "_diffusers_hook"))
    for timestep in (999, 500, 499):
        TIMESTEPS.append(timestep)
        with transformer.cache_context("a branch"):
            run(transformer, **inputs)
    transformer.disable_cache()
    after = [set(vars(module)) for module in transformer.modules()]
    assert [new - old for new, old in zip(after[1:], before[1:])] == [set()] * len(before[1:])
    assert after[0] - before[0] == {"_cache_config"}
    assert transformer._cache_config is None
    assert torch.equal(run(transformer, **inputs), expected)
    # Hooks of others stay.
    transformer.enable_layerwise_casting(torch.bfloat16, torch.float32)
    hooks = sum(hasattr(module, "_diffusers_hook") for module in transformer.modules())
    transformer.enable_cache(ALL_CACHES[name])
    transformer.disable_cache()
    assert sum(hasattr(module, "_diffusers_hook") for module in transformer.modules()) == hooks > 0


def test_a_call_that_was_broken_off(edit, clip):
    """What it left in a step cache is not used by the next one."""
    options = {"video": clip, "num_inference_steps": 4, "output_type": "latent", "latents": torch.randn(1, 8, 3, 4, 4)}
    edit.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    expected = edit("blue", **options).frames

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit("red", callback_on_step_end=stop, **options)
    assert torch.equal(edit("blue", **options).frames, expected)
    edit.transformer.disable_cache()


def test_activation_in_place(transformer):
    """The widest hidden states are there once without gradients, twice with them, and give the same."""
    feed_forward = transformer.blocks[0].ffn
    seen = {}
    feed_forward.net[0].proj.register_forward_hook(lambda module, inputs, output: seen.update(before=output))
    feed_forward.net[2].register_forward_pre_hook(lambda module, inputs: seen.update(after=inputs[0]))
    hidden_states = torch.randn(1, 6, feed_forward.net[2].out_features)
    expected = feed_forward(hidden_states)
    assert seen["after"].data_ptr() != seen["before"].data_ptr()
    with torch.no_grad():
        torch.testing.assert_close(feed_forward(hidden_states), expected)
    assert seen["after"].data_ptr() == seen["before"].data_ptr()
