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
"""The settings of a training run, read from a YAML file and checked before anything is loaded."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from ..errors import LoomVideoError
from ..pipelines.loomvideo_frames import MAX_SOURCE_FRAMES, TRAINED_SIZES_480P, TRAINED_SIZES_720P
from ..pipelines.loomvideo_mllm import check_prompt


def _check_num_frames(num_frames: int) -> int:
    if num_frames % 4 != 1:
        raise LoomVideoError("must be 4k + 1")
    return num_frames


def _check_text(text: str) -> str:
    check_prompt(text, "it")
    return text


Probability = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(gt=0, multiple_of=32)]
NumFrames = Annotated[int, Field(ge=1, le=MAX_SOURCE_FRAMES), AfterValidator(_check_num_frames)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

# Conditions that a sample is trained without, so that guidance has a branch to guide away from
Dropped = Literal["nothing", "text", "all"]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            # YAML reads `no` as false.
            if info.field_name == "mixed_precision" and not value:
                return "no"
            raise LoomVideoError("must not be true or false")
        return value


class LoraSettings(Settings):
    """
    Attributes:
        rank: the rank of the adapter's matrices.
        alpha: the adapter is scaled by `alpha / rank`; by default `rank`.
        dropout: the probability of dropping an input of the adapter.
        target_modules: the layers to adapt, by the ends of their names; by default those of attention. Others are
            `ffn.net.0.proj`, `ffn.net.2`, `mllm_embedder.linear_1`, `mllm_embedder.linear_2`, `patch_embedding` and
            `source_patch_embedding`.
    """

    rank: int = Field(default=32, gt=0)
    alpha: float | None = Field(default=None, gt=0)
    dropout: Probability = 0.0
    target_modules: list[str] = Field(default=["to_q", "to_k", "to_v", "to_out.0"], min_length=1)


class DatasetSettings(Settings):
    """
    Attributes:
        records: a JSON or JSONL file, or a folder of them.
        root: the folder that paths in the records are relative to; by default that of the records.
        weight: how often samples are drawn from this dataset, relative to the weights of the others; by default all
            records are drawn equally often.
    """

    records: str
    root: str | None = None
    weight: float | None = Field(default=None, gt=0)


class DataSettings(Settings):
    """
    Attributes:
        datasets: where the samples come from.
        sizes: `480p` or `720p`, the sizes that LoomVideo was trained on, or a list of `[width, height]`. Each clip is
            scaled and cropped to the size with the nearest aspect ratio. By default the model's own size, or else
            `480p`.
        max_frames: the greatest number of frames, 4k + 1, at 24 a second; of longer clips the beginning is used. By
            default the model's own length, or else 121.
        tokens_per_batch: a batch holds samples of one shape, up to this many tokens; a larger sample is a batch alone.
        drop_all: the probability of training a sample without any condition, which guidance needs.
        drop_text: the probability of training a sample without its prompt.
        drop_all_prompt: what the MLLM reads for a sample without any condition; by default nothing. At inference,
            guidance has it read the negative prompt, which only an MLLM that knows the language understands.
        features: a folder to keep latents and MLLM features in, so that neither the VAE nor the MLLM is in memory
            during the training. Without it, they are computed when needed.
        num_workers: how many processes read clips or features ahead.
    """

    datasets: list[DatasetSettings] = Field(min_length=1)
    sizes: Literal["480p", "720p"] | Annotated[list[tuple[Side, Side]], Field(min_length=1)] | None = None
    max_frames: NumFrames | None = None
    tokens_per_batch: int = Field(default=16384, gt=0)
    drop_all: Probability = 0.1
    drop_text: Probability = 0.1
    drop_all_prompt: str = ""
    features: str | None = None
    num_workers: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _goes_together(self) -> "DataSettings":
        if len({dataset.weight is None for dataset in self.datasets}) > 1:
            raise LoomVideoError("give all datasets a `weight`, or none")
        if self.drop_all + self.drop_text > 1:
            raise LoomVideoError("`drop_all` and `drop_text` must not be more than 1 together")
        return self

    def variants(self) -> list[Dropped]:
        """Which conditions are dropped from samples: `nothing`, and those with a probability above 0."""
        probabilities: dict[Dropped, float] = {"nothing": 1, "text": self.drop_text, "all": self.drop_all}
        return [dropped for dropped, probability in probabilities.items() if probability > 0]

    def size_list(self) -> list[tuple[int, int]]:
        """The sizes as (width, height), the trained ones upright too; `sizes` must be set, as by `with_defaults`."""
        if self.sizes is None:
            raise TypeError("`sizes` is not set: call `with_defaults` first.")
        if not isinstance(self.sizes, str):
            return self.sizes
        sizes = TRAINED_SIZES_480P if self.sizes == "480p" else TRAINED_SIZES_720P
        return sizes + [(height, width) for width, height in sizes]


class OptimizerSettings(Settings):
    """
    Attributes:
        name: `adamw`; `adamw8bit` from bitsandbytes; or `muon` from PyTorch 2.9 for matrices, with `adamw` for the
            rest, which trains a model from scratch in fewer steps.
        learning_rate, betas, weight_decay, eps: as in `torch.optim.AdamW`.
        max_grad_norm: the norm that all gradients together are clipped to.
        lr_scheduler: a schedule from Diffusers.
        lr_warmup_steps: steps in which the learning rate rises from 0.
        lr_decay_steps: how many of the last steps a constant learning rate falls to 0 in; a resumed run may change it
            if the fall has not begun.
    """

    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    learning_rate: float = Field(default=2e-5, gt=0)
    betas: tuple[Probability, Probability] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    eps: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant_with_warmup"
    lr_warmup_steps: int = Field(default=100, ge=0)
    lr_decay_steps: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _decays_once(self) -> "OptimizerSettings":
        if self.lr_decay_steps and not self.lr_scheduler.startswith("constant"):
            raise LoomVideoError(
                f"`lr_decay_steps` are for constant schedules, and `lr_scheduler` is {self.lr_scheduler}"
            )
        return self


class ValidationSample(Settings):
    """
    One call of a pipeline: edits the file `video` or `image`; without either, generates from `prompt`.

    Size and length are by default the model's own, or else those of the pipelines.
    """

    prompt: Annotated[str, AfterValidator(_check_text)]
    video: str | None = None
    image: str | None = None
    reference_images: list[str] = []
    height: Side | None = None
    width: Side | None = None
    num_frames: NumFrames | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> "ValidationSample":
        if self.video is not None and self.image is not None:
            raise LoomVideoError("there must not be both `video` and `image`")
        if (self.height is None) != (self.width is None):
            raise LoomVideoError("there must be both `height` and `width`, or neither")
        return self


class ValidationSettings(Settings):
    """
    Attributes:
        samples: what to generate and edit.
        every: steps between validations.
        num_inference_steps, guidance_scale, guidance_scale_visual: as in a call; by default the model's own, or else
            those of the pipelines.
        seed: of the noise, the same at each validation.
    """

    samples: list[ValidationSample] = Field(min_length=1)
    every: int = Field(default=250, gt=0)
    num_inference_steps: int | None = Field(default=None, gt=0)
    guidance_scale: float | None = None
    guidance_scale_visual: float | None = None
    seed: Seed = 0


class TrainingConfig(Settings):
    """
    Attributes:
        model: the folder or repository of the model to train.
        output_dir: the folder for checkpoints, samples, logs and the result.
        data: the clips to train on.
        lora: trains a LoRA; without it, all weights of the transformer are trained.
        train_text_encoder: trains the MLLM too, together with all weights of the transformer; meant for small models.
        timestep_shift: how far timesteps are shifted towards noise, 1 or more; by default it grows with the number of
            tokens of a sample.
        optimizer: how the weights are changed.
        validation: samples to make during the training.
        steps: how many steps of the optimizer to take.
        gradient_accumulation_steps: how many batches of each process make a step.
        gradient_checkpointing: recomputes activations instead of keeping them, which saves memory and takes time.
        compile_blocks: compiles the transformer's blocks and the layers of a trained MLLM, which takes minutes and
            makes each step faster.
        mixed_precision: `bf16`, or `no` for float32.
        ema_decay: the decay of a moving average of the trained weights, which is then validated and saved in their
            place.
        seed: of everything that is random.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the latest checkpoints to keep.
        tracker: `tensorboard` or `wandb`.
        hub_model_id: the repository that `--push-to-hub` uploads the result to.
        license: of the result, as the Hub names it; by default that on the card of the model.
    """

    model: str
    output_dir: str
    data: DataSettings
    lora: LoraSettings | None = None
    train_text_encoder: bool = False
    timestep_shift: float | None = Field(default=None, ge=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    validation: ValidationSettings | None = None
    steps: int = Field(default=1000, gt=0)
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    gradient_checkpointing: bool = True
    compile_blocks: bool = False
    mixed_precision: Literal["bf16", "no"] = "bf16"
    ema_decay: Probability | None = None
    seed: Seed = 0
    checkpoint_every: int = Field(default=250, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    tracker: Literal["tensorboard", "wandb"] | None = None
    hub_model_id: str | None = None
    license: str | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> "TrainingConfig":
        if self.train_text_encoder and self.lora is not None:
            raise LoomVideoError("`train_text_encoder` trains all weights: leave `lora` out")
        return self

    def with_defaults(self, options: dict[str, Any]) -> "TrainingConfig":
        """
        The same settings, with the sizes and the length of the data set.

        Args:
            options: how the model says it is best called, as `read_default_options` returns it.
        """
        sizes = [(options["width"], options["height"])] if {"width", "height"} & options.keys() else "480p"
        data = self.data.model_copy(
            update={
                "sizes": sizes if self.data.sizes is None else self.data.sizes,
                "max_frames": self.data.max_frames or options.get("num_frames", MAX_SOURCE_FRAMES),
            }
        )
        return self.model_copy(update={"data": data})


def load_config(path: str | os.PathLike) -> TrainingConfig:
    """
    Reads the settings from a YAML file.

    Raises:
        LoomVideoError: if the file cannot be read, or a key is unknown, missing or of a wrong value; it names the key.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LoomVideoError(f"{path} cannot be read: pass the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise LoomVideoError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise LoomVideoError(f"{path} has no keys: it needs `model`, `output_dir` and `data`.")
    for key in ("lora", "optimizer"):
        if key in values and values[key] is None:
            without = "to train all weights" if key == "lora" else "for the defaults"
            raise LoomVideoError(f"{path}: `{key}` is empty: give it keys, or leave it out {without}.")
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        raise LoomVideoError(f"{path}: {'; '.join(map(_describe, error.errors()))}") from error


def _describe(error: ErrorDetails) -> str:
    # For a key of several types, pydantic adds the type to the location.
    key = ".".join(str(part) for part in error["loc"] if "[" not in str(part))
    if error["type"] == "extra_forbidden":
        section: type[Settings] = TrainingConfig
        for part in error["loc"][:-1]:
            section = _section(section, part)
        near = difflib.get_close_matches(str(error["loc"][-1]), section.model_fields, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(section.model_fields)}"
        return f"the key `{key}` is unknown: {hint}"
    if error["type"] == "missing":
        return f"the key `{key}` is missing"
    if error["type"] == "model_type":
        return f"`{key}` must have keys of its own"
    message = error["msg"].removeprefix("Value error, ")
    return f"`{key}`: {message[0].lower()}{message[1:]}"


def _section(section: type[Settings], part: str | int) -> type[Settings]:
    """The class of the settings under a key; for a place in a list, that of the list."""
    sections: dict[str | int, type[Settings]] = {
        "data": DataSettings,
        "datasets": DatasetSettings,
        "lora": LoraSettings,
        "optimizer": OptimizerSettings,
        "samples": ValidationSample,
        "validation": ValidationSettings,
    }
    return sections.get(part, section)
