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
"""LoomVideo-nano before its training: the released architecture at small dimensions, with a vocabulary of its own."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLModel,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from ..media.files import replace_folder
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from ..pipelines import LoomVideoPipeline
from ..pipelines.loomvideo_mllm import DEFAULT_NEGATIVE_PROMPT, NEGATIVE_PROMPT_PREFIX, PROMPT_PREFIXES
from . import DEFAULT_OPTIONS, SEED
from .tasks import TASKS, sample_example
from .words import typed


NUM_LAYERS = 8
# Of each task, for the vocabulary
NUM_SENTENCES = 200
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen's, without system turns and tools
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What the MLLM sees is scaled to this side.
VISION_SIDE = 64


def make_untrained(folder: Path, vae_folder: Path, language_folder: Path) -> None:
    """
    Writes a pipeline with a transformer of random weights, unless the folder is there.

    Args:
        folder: the folder to make.
        vae_folder: of the trained autoencoder.
        language_folder: of what `train_language` returned.
    """
    if folder.exists():
        return
    torch.manual_seed(SEED)
    processor = Qwen3VLProcessor.from_pretrained(language_folder / "processor")
    text_encoder = Qwen3VLModel.from_pretrained(language_folder / "text_encoder", dtype=torch.float32)
    vae = AutoencoderKLWan.from_pretrained(vae_folder)
    transformer = LoomVideoTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=vae.config.z_dim,
        out_channels=vae.config.z_dim,
        mllm_dim=text_encoder.config.text_config.hidden_size,
        ffn_dim=1024,
        num_layers=NUM_LAYERS,
        rope_max_seq_len=256,
    )
    torch.nn.init.zeros_(transformer.proj_out.weight)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    pipe = LoomVideoPipeline(text_encoder, processor, vae, transformer, scheduler, DEFAULT_OPTIONS)
    replace_folder(folder, pipe.save_pretrained)


def make_processor() -> Qwen3VLProcessor:
    """A processor whose vocabulary was learned from the words of the tasks. Case does not matter to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    # Words, digits and punctuation apart; what is not ASCII together, which makes few tokens of the negative prompt
    words = Regex(r" ?[a-z]+|[0-9]|[^\x00-\x7f]+|\n| ?[^\sa-z0-9]|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = np.random.default_rng([SEED, 5])
    prompts = [typed(sample_example(task, rng).prompt, rng) for task in TASKS for _ in range(NUM_SENTENCES)]
    fixed = ["user\n", "assistant\n", "<0.3 seconds>", *PROMPT_PREFIXES.values()]
    fixed += [NEGATIVE_PROMPT_PREFIX + DEFAULT_NEGATIVE_PROMPT]
    tokenizer.train_from_iterator([*prompts, *fixed * 1000], trainer)
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
    pixels = {"shortest_edge": VISION_SIDE**2, "longest_edge": VISION_SIDE**2}
    video_pixels = {"shortest_edge": 2 * VISION_SIDE**2, "longest_edge": 2 * VISION_SIDE**2}
    mean_and_std = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, patch_size=16, **mean_and_std),
        tokenizer=fast_tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=video_pixels, patch_size=16, **mean_and_std),
        chat_template=CHAT_TEMPLATE,
    )


def make_text_encoder(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLModel:
    """A Qwen3-VL of random weights."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    ids |= {name: tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "initializer_range": 0.05,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 192,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
            "initializer_range": 0.05,
        },
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        image_token_id=ids["image"],
        video_token_id=ids["video"],
        tie_word_embeddings=False,
    )
    return Qwen3VLModel(config)
