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
"""From words, references and a source to the hidden states of the MLLM's layers."""

import inspect
import re
import unicodedata
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import Qwen3VLModel, Qwen3VLProcessor

from .loomvideo_errors import LoomVideoInputError


# (what is made or edited, with references): the words before the user's. The published table has no entry for an image
# edited with references; it is formed like the others.
PROMPT_PREFIXES = {
    ("generate video", False): "Generate a video: ",
    ("generate image", False): "Generate an image: ",
    ("generate video", True): "Generate a video with reference images: ",
    ("generate image", True): "Generate an image with reference images: ",
    ("edit video", False): "Edit this video: ",
    ("edit image", False): "Edit this image: ",
    ("edit video", True): "Edit this video with reference images: ",
    ("edit image", True): "Edit this image with reference images: ",
}

NEGATIVE_PROMPT_PREFIX = "generate an image: "

# The published default, prefix and all.
DEFAULT_NEGATIVE_PROMPT = (
    "Generate an image: 色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

# The rate that the MLLM was told in training, whatever the clip's own.
MLLM_FRAMES_PER_SECOND = 24.0

# How all special tokens of the MLLM are spelled
MARKER = re.compile(r"<\|[^|\s]+\|>")

# Hidden states [B, layers, L, E] and their mask, bool [B, L] or None where no token is padding.
PromptEmbeds = tuple[torch.Tensor | None, torch.Tensor | None]


def check_prompt(prompt: str, name: str = "The prompt", may_be_blank: bool = False) -> None:
    """
    Raises a LoomVideoInputError if a prompt says nothing, or holds what is no text, or a marker such as `<|im_end|>`.

    `name` is what the error calls it; a negative prompt may be blank.
    """
    # Separators, control characters, what has no width, and marks that combine with nothing say nothing.
    if not may_be_blank and all(unicodedata.category(character)[0] in "ZCM" for character in prompt):
        raise LoomVideoInputError(f"{name} is blank: say what to show or to change.")
    if "\0" in prompt or any("\ud800" <= character <= "\udfff" for character in prompt):
        raise LoomVideoInputError(f"{name} holds half a character, or what is none: write it in UTF-8.")
    if marker := MARKER.search(prompt):
        raise LoomVideoInputError(
            f"{name} must not hold the MLLM's markers, such as {marker[0]}: call references `@Image 1`, ..."
        )


def tokenize(
    processor: Qwen3VLProcessor,
    texts: list[str],
    references: list[list[PIL.Image.Image]],
    sources: list[PIL.Image.Image | np.ndarray | None],
) -> dict[str, torch.Tensor]:
    """
    Lays texts and pixels out as the MLLM reads them: a user's turn with the references, the source, and the words.

    Args:
        processor: of the MLLM.
        texts: one for each sample, prefix and all.
        references: the images of each sample.
        sources: for each sample an image, the frames of a video, uint8 `[F, H, W, 3]`, or None.

    Returns:
        The inputs of the MLLM, padded on the right.
    """
    for text in texts:
        check_prompt(text, may_be_blank=True)

    conversations, images, videos = [], [], []
    # The model was trained by a processor that replaced these outer markers; later ones keep them around the frames'
    # own.
    outer_markers = f"{processor.vision_start_token}{processor.video_token}{processor.vision_end_token}"
    for text, sample_references, source in zip(texts, references, sources):
        content = [{"type": "image"}] * len(sample_references)
        images += sample_references
        if isinstance(source, np.ndarray):
            content.append({"type": "video"})
            videos.append(source)
        elif source is not None:
            content.append({"type": "image"})
            images.append(source)
        content.append({"type": "text", "text": text})
        message = [{"role": "user", "content": content}]
        conversation = processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        conversations.append(conversation.replace(outer_markers, processor.video_token))

    video_kwargs = {}
    if videos:
        metadata = [{"total_num_frames": len(video), "fps": MLLM_FRAMES_PER_SECOND} for video in videos]
        # Uncapped is what the model was trained on, and no longer the default of every version.
        video_kwargs = {"videos": videos, "video_metadata": metadata, "cap_pixels_per_frame": False}
    return processor(
        text=conversations,
        images=images or None,
        padding=True,
        padding_side="right",
        return_tensors="pt",
        **video_kwargs,
    )


def keep_vision_only(processor: Qwen3VLProcessor, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Keeps the vision spans of each prompt, without timestamps, in an empty user turn (architecture: Visual branch).

    `inputs` is what `tokenize` returned, and so is the result.
    """
    frame = ["<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"]
    opening, closing = processor.tokenizer(frame, add_special_tokens=False).input_ids
    rows = []
    for input_ids in inputs["input_ids"].tolist():
        row, in_span = list(opening), False
        for token in input_ids:
            in_span = in_span or token == processor.vision_start_token_id
            if in_span:
                row.append(token)
            in_span = in_span and token != processor.vision_end_token_id
        rows.append(torch.tensor(row + closing))
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad(rows, batch_first=True, padding_value=processor.tokenizer.pad_token_id)
    is_image, is_video = input_ids == processor.image_token_id, input_ids == processor.video_token_id
    return dict(inputs) | {
        "input_ids": input_ids,
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "mm_token_type_ids": is_image.int() + 2 * is_video.int(),
    }


def run_mllm(
    text_encoder: Qwen3VLModel,
    inputs: dict[str, torch.Tensor],
    num_layers: int | None,
    vision: dict[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Runs an MLLM on what the processor returned; no other thread may use it meanwhile.

    Args:
        text_encoder: the `Qwen3VLModel`.
        inputs: tensors on its device; those that it has no use for are left out.
        num_layers: how many of its last decoder layers are wanted; None means all.
        vision: an empty dict is filled with what the vision tower made of the pixels. A later run on the same pixels
            that is given it spares the tower, if this version of Transformers can do that.

    Returns:
        What these layers put out, before the final norm, `[B, num_layers, L, E]`, and the mask.
    """
    layers = text_encoder.language_model.layers
    first = 0 if num_layers is None else len(layers) - num_layers
    if first < 0:
        raise LoomVideoInputError(
            f"The transformer reads {num_layers} layers of the MLLM, but this one has {len(layers)}: use the MLLM "
            "that belongs to the transformer."
        )
    # `torch.compile` wraps a module in one whose `forward` takes anything.
    model = getattr(text_encoder, "_orig_mod", text_encoder)
    accepted = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {name: value for name, value in inputs.items() if name in accepted}
    grids = {name: arguments[name] for name in ("image_grid_thw", "video_grid_thw") if name in arguments}
    if grids:
        # Otherwise the model would keep on itself how far these positions are from those of text.
        names = ("input_ids", "attention_mask", "mm_token_type_ids")
        arguments["position_ids"] = model.get_rope_index(**{name: inputs[name] for name in names}, **grids)[0]
    if vision and "mm_encoder_outputs" in accepted:
        arguments = {name: value for name, value in arguments.items() if not name.startswith("pixel_values")}
        arguments["mm_encoder_outputs"] = dict(vision)

    # `output_hidden_states` would return the last layer after the final norm. What a layer hands on is recorded as
    # the input of the next, because the MLLM adds vision features between its first layers.
    hidden_states = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: hidden_states.append(args[0]))
        for layer in layers[first + 1 :]
    ]
    hooks.append(layers[-1].register_forward_hook(lambda module, args, output: hidden_states.append(output)))
    try:
        outputs = text_encoder(**arguments, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()

    if vision is not None:
        seen = {"image": getattr(outputs, "image_outputs", None), "video": getattr(outputs, "video_outputs", None)}
        vision.update({kind: features for kind, features in seen.items() if features is not None})
    mask = inputs["attention_mask"].bool()
    return torch.stack(hidden_states, dim=1), None if mask.all() else mask
