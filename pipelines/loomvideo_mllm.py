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
"""Prompts: from words, references and a source to the hidden states of the MLLM's layers, for each guidance branch."""

import inspect
import re
import unicodedata
from typing import Any

import numpy as np
import PIL.Image
import torch


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

NO_MLLM = (
    "This pipeline has no MLLM: pass `prompt_embeds`, for guidance `negative_prompt_embeds` too, and with a source or "
    "references `visual_prompt_embeds` as well."
)

# Hidden states [B, layers, L, E] and their mask, bool [B, L] or None where no token is padding.
PromptEmbeds = tuple[torch.Tensor | None, torch.Tensor | None]


def check_prompt(prompt: str, name: str = "The prompt", may_be_blank: bool = False) -> None:
    """
    Raises a ValueError if a prompt says nothing, or holds what is no text, or a marker such as `<|im_end|>`.

    `name` is what the error calls it; a negative prompt may be blank.
    """
    # Separators, control characters, what has no width, and marks that combine with nothing say nothing.
    if not may_be_blank and all(unicodedata.category(character)[0] in "ZCM" for character in prompt):
        raise ValueError(f"{name} is blank: say what to show or to change.")
    if "\0" in prompt or any("\ud800" <= character <= "\udfff" for character in prompt):
        raise ValueError(f"{name} holds half a character, or what is none: write it in UTF-8.")
    if marker := MARKER.search(prompt):
        raise ValueError(
            f"{name} must not hold the MLLM's markers, such as {marker[0]}: call references `@Image 1`, ..."
        )


class LoomVideoPromptMixin:
    """Encodes prompts with a pipeline's `text_encoder` (`Qwen3VLModel`) and `processor` (`Qwen3VLProcessor`)."""

    check_prompt = staticmethod(check_prompt)

    def encode_branches(
        self,
        task: str,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        references: list[list[PIL.Image.Image]],
        sources: list[PIL.Image.Image | np.ndarray | None],
        do_classifier_free_guidance: bool,
        num_videos_per_prompt: int,
        prompt_embeds: PromptEmbeds,
        visual_prompt_embeds: PromptEmbeds,
        negative_prompt_embeds: PromptEmbeds,
        device: torch.device | str | None = None,
    ) -> tuple[torch.Tensor | None, ...]:
        """
        Encodes what is not given for the branches of guidance: the prompt, its vision alone, and the negative prompt.

        `task` is a key of `PROMPT_PREFIXES`; `sources` holds an image, the MLLM's frames of a video, or None for each
        sample. Returns embeds and mask of each branch in turn, on `device` if that is given; those that guidance does
        not need stay None.
        """
        batch_size = len(references)
        has_vision = bool(references[0]) or sources[0] is not None
        needs_visual = do_classifier_free_guidance and has_vision and visual_prompt_embeds[0] is None
        if prompt_embeds[0] is None or needs_visual:
            prefix = PROMPT_PREFIXES[task, bool(references[0])]
            # The vision is the same whatever the words, so given embeds need none for the visual branch.
            prompts = prompt if isinstance(prompt, list) else [prompt or ""] * batch_size
            for words in prompts if prompt is not None else []:
                check_prompt(words)
            inputs = self.tokenize([prefix + words for words in prompts], references, sources)
            vision = {}
            if prompt_embeds[0] is None:
                prompt_embeds = self.get_mllm_hidden_states(inputs, vision)
            if needs_visual:
                visual_prompt_embeds = self.get_mllm_hidden_states(self._keep_vision_only(inputs), vision)
        if do_classifier_free_guidance and negative_prompt_embeds[0] is None:
            negative_prompt_embeds = self.encode_negative_prompt(negative_prompt)
            if not isinstance(negative_prompt, list):
                embeds, mask = negative_prompt_embeds
                negative_prompt_embeds = (embeds.expand(batch_size, -1, -1, -1), mask)
        return tuple(
            None if tensor is None else tensor.repeat_interleave(num_videos_per_prompt, dim=0).to(device)
            for tensor in (*prompt_embeds, *visual_prompt_embeds, *negative_prompt_embeds)
        )

    def encode_negative_prompt(self, negative_prompt: str | list[str] | None = None) -> PromptEmbeds:
        """
        Encodes negative prompts alone, once for many calls, which take them as `negative_prompt_embeds`.

        Args:
            negative_prompt: what to avoid; None for the published one.

        Returns:
            Embeds `[B, num_layers, L, mllm_dim]`, and their mask, bool `[B, L]` or None where no token is padding; B
            is the length of the list, or 1.
        """
        if negative_prompt is None:
            negative_prompt = DEFAULT_NEGATIVE_PROMPT
        prompts = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt]
        prompts = [NEGATIVE_PROMPT_PREFIX + words for words in prompts]
        return self.get_mllm_hidden_states(self.tokenize(prompts, [[]] * len(prompts), [None] * len(prompts)))

    def tokenize(
        self,
        texts: list[str],
        references: list[list[PIL.Image.Image]],
        sources: list[PIL.Image.Image | np.ndarray | None],
    ) -> dict[str, torch.Tensor]:
        if self.processor is None:
            raise ValueError(NO_MLLM)
        for text in texts:
            check_prompt(text, may_be_blank=True)

        conversations, images, videos = [], [], []
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
            conversation = self.processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            # The model was trained by a processor that replaced these outer markers; later ones keep them around the
            # frames' own.
            outer = f"{self.processor.vision_start_token}{self.processor.video_token}{self.processor.vision_end_token}"
            conversations.append(conversation.replace(outer, self.processor.video_token))

        video_kwargs = {}
        if videos:
            metadata = [{"total_num_frames": len(video), "fps": MLLM_FRAMES_PER_SECOND} for video in videos]
            # Uncapped is what the model was trained on, and no longer the default of every version.
            video_kwargs = {"videos": videos, "video_metadata": metadata, "cap_pixels_per_frame": False}
        # Tokenizers keep on themselves how they are to pad.
        with self.use("processor"):
            return self.processor(
                text=conversations,
                images=images or None,
                padding=True,
                padding_side="right",
                return_tensors="pt",
                **video_kwargs,
            )

    def _keep_vision_only(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keeps the vision spans of each prompt, without timestamps, in an empty user turn (spec: visual branch)."""
        processor = self.processor
        frame = ["<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"]
        with self.use("processor"):
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

    def get_mllm_hidden_states(
        self, inputs: dict[str, torch.Tensor], vision: dict[str, Any] | None = None
    ) -> PromptEmbeds:
        """Runs the MLLM and returns what its last `num_layers` decoder layers put out, see `run_mllm`."""
        if self.text_encoder is None:
            raise ValueError(NO_MLLM)
        num_layers = None
        if getattr(self, "transformer", None) is not None:
            num_layers = self.transformer.config.num_layers
        inputs = {
            name: value.to(self._execution_device) for name, value in inputs.items() if isinstance(value, torch.Tensor)
        }
        with self.use("text_encoder"):
            return run_mllm(self.text_encoder, inputs, num_layers, vision)


def run_mllm(
    text_encoder: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    num_layers: int | None,
    vision: dict[str, Any] | None = None,
) -> PromptEmbeds:
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
        raise ValueError(
            f"The transformer reads {num_layers} layers of the MLLM, but this one has {len(layers)}: use the MLLM "
            "that belongs to the transformer."
        )
    # `torch.compile` wraps a module in one whose `forward` takes anything.
    model = getattr(text_encoder, "_orig_mod", text_encoder)
    accepted = inspect.signature(model.forward).parameters
    arguments = {name: value for name, value in inputs.items() if name in accepted}
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
