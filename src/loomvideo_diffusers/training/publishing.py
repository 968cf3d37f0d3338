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
"""The model card of the result, and its upload to the Hub."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from ..hub.cards import measure_part, stated_license
from ..hub.upload import push_folder
from ..media.files import write_whole
from .checkpoints import LORA_FILE
from .config import TrainingConfig


def write_card(config: TrainingConfig, output_dir: Path, repo_id: str | None) -> None:
    """Writes `README.md`: the base model, the settings, how to use the result, and the last samples."""
    is_lora = config.lora is not None
    # A local folder is no name by which others find the model.
    is_local = Path(config.model).is_dir()
    base_model = None if is_local else config.model
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-video",
        base_model=base_model,
        base_model_relation=("adapter" if is_lora else "finetune") if base_model else None,
        tags=["text-to-video", "video-to-video", "diffusers", "loomvideo", *(["lora"] if is_lora else [])],
    )
    for name, value in find_license(config).items():
        setattr(card_data, name, value)
    left_out: Any = {
        "output_dir": True,
        "hub_model_id": True,
        "license": True,
        "validation": True,
        "model": True,
        "data": {"datasets", "features"},
    }
    settings = config.model_dump(mode="json", exclude_none=True, exclude=left_out)
    card = ModelCard.from_template(
        card_data,
        template_str=files("loomvideo_diffusers.model_cards").joinpath("finetune.md").read_text(encoding="utf-8"),
        name=repo_id.split("/")[-1] if repo_id else output_dir.absolute().name,
        location=repo_id or config.output_dir,
        base_model_name=Path(config.model).name if is_local else config.model,
        is_lora=is_lora,
        has_text_encoder=config.train_text_encoder,
        steps=config.steps,
        parts=[measure_part(output_dir, part) for part in (["."] if is_lora else ["transformer", "text_encoder"])],
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).strip(),
        samples=_last_samples(config, output_dir),
    )
    write_whole(output_dir / "README.md", card.save)


def find_license(config: TrainingConfig) -> dict[str, str]:
    """The licence for the card's metadata: of the settings, or else of the model's card; empty if there is none."""
    if config.license is not None:
        return {"license": config.license}
    card: Path | str = config.model
    if Path(config.model).is_dir():
        card = Path(config.model) / "README.md"
        if not card.exists():
            return {}
    try:
        return stated_license(ModelCard.load(card, ignore_metadata_errors=True))
    except (OSError, HTTPError, OfflineModeIsEnabled):
        return {}


def _last_samples(config: TrainingConfig, output_dir: Path) -> list[dict[str, str]]:
    if config.validation is None:
        return []
    samples = []
    for index, sample in enumerate(config.validation.samples, start=1):
        sheet = Path("samples") / f"step-{config.steps:06d}-{index}.png"
        if (output_dir / sheet).exists():
            samples.append({"prompt": sample.prompt, "sheet": sheet.as_posix()})
    return samples


def create_repository(name: str) -> str:
    """Creates a repository on the Hub if there is none, and returns its full name."""
    try:
        return HfApi().create_repo(name, exist_ok=True).repo_id
    except HTTPError as error:
        raise OSError(f"The repository {name} cannot be created on the Hub: {error}") from error


def push_to_hub(config: TrainingConfig, output_dir: Path, repo_id: str) -> str:
    """Uploads the result with its card and its last samples, and returns the address of the commit."""
    try:
        return push_folder(
            output_dir,
            repo_id,
            commit_message=f"{'LoRA' if config.lora is not None else 'Fine-tune'} of {config.steps} steps",
            patterns=[
                "README.md",
                LORA_FILE,
                "transformer/*",
                "text_encoder/*",
                f"samples/step-{config.steps:06d}-*",
            ],
        )
    except OSError as error:
        raise OSError(f"{error} The result is in {output_dir}.") from error
