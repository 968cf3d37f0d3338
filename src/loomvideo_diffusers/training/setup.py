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
"""What a run needs before its first step: checked settings and records, features, validation prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKLWan

from ..defaults import read_default_options
from ..errors import LoomVideoError
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from ..pipelines import LoomVideoPipeline
from ..progress import progress_bar
from .checks import check_settings, check_targets, flatten
from .config import TrainingConfig
from .data import describe_failure, read_clip, read_records, record_of
from .features import Encoders, FeatureStore, hash_inputs
from .processes import gather_failures, is_sharded, share
from .publishing import create_repository
from .validation import Validation


@dataclass
class Setup:
    """
    What a run works with, checked.

    Attributes:
        config: the settings, with the model's own defaults.
        options: how the model says it is best called.
        folder: the model on this machine.
        model_config, vae_config: of its transformer and its VAE.
        records: those that can be read, as far as is known.
        failures: why the others cannot be read, by file and place of the record.
        repo_id: the repository to push to, or None.
    """

    config: TrainingConfig
    options: dict[str, Any]
    folder: str
    model_config: dict[str, Any]
    vae_config: dict[str, Any]
    records: datasets.Dataset
    failures: dict[str, str]
    repo_id: str | None

    @property
    def frozen_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.mixed_precision == "bf16" else torch.float32

    @property
    def num_layers(self) -> int | None:
        """How many of the MLLM's layers are encoded beforehand; None if the MLLM is trained."""
        return None if self.config.train_text_encoder else self.model_config["num_layers"]

    @property
    def token_size(self) -> tuple[int, int]:
        """Frames, and pixels on a side, that become one token."""
        frames, _, side = self.model_config["patch_size"]
        return self.vae_config["scale_factor_temporal"] * frames, self.vae_config["scale_factor_spatial"] * side


def prepare(
    accelerator: Accelerator, config: TrainingConfig, resume: bool, strict: bool, push: bool, precompute_only: bool
) -> Setup:
    """Reads and checks the settings and the records, and downloads the model if it is not on this machine."""
    options = share(accelerator, lambda: read_default_options(config.model))
    config = config.with_defaults(options)
    share(accelerator, lambda: check_settings(config, accelerator, resume, push, precompute_only))
    rows, failures = share(accelerator, lambda: _read_records(config, strict))
    with accelerator.local_main_process_first():
        folder = config.model if Path(config.model).is_dir() else LoomVideoPipeline.download(config.model)
    model_config = LoomVideoTransformer3DModel.load_config(folder, subfolder="transformer")
    if (lora := config.lora) is not None:
        share(accelerator, lambda: check_targets(lora, model_config))
    repo_id = share(accelerator, lambda: create_repository(str(config.hub_model_id))) if push else None
    if not precompute_only:
        _start_tracker(accelerator, config)
    return Setup(
        config=config,
        options=options,
        folder=folder,
        model_config=model_config,
        vae_config=AutoencoderKLWan.load_config(folder, subfolder="vae"),
        records=datasets.Dataset.from_list(rows),
        failures=failures,
        repo_id=repo_id,
    )


def _read_records(config: TrainingConfig, strict: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    records, failures = read_records(config.data, strict)
    for where, reason in failures.items():
        print(f"Skipping {where}: {reason}")
    return records.to_list(), failures


def _start_tracker(accelerator: Accelerator, config: TrainingConfig) -> None:
    try:
        accelerator.init_trackers("loomvideo", config=flatten(config.model_dump(mode="json")))
    except Exception as error:  # each tracker has errors of its own
        raise LoomVideoError(f"`tracker` {config.tracker} does not start: {error}") from error
    if config.tracker is not None and not accelerator.log_with:
        raise LoomVideoError(f"`tracker` {config.tracker} is not installed: install it, or leave `tracker` out.")


def prepare_features(
    accelerator: Accelerator, setup: Setup, load_encoders: Callable[[], Encoders], strict: bool
) -> FeatureStore:
    """Computes the features that are missing on disk, and takes the records that cannot be read out of `setup`."""
    config = setup.config
    files = sorted({file for row in setup.records for file in record_of(row).files})
    digests = share(accelerator, lambda: hash_inputs(setup.folder, files))
    assert config.data.features is not None
    store = FeatureStore(config.data.features, digests, setup.num_layers, setup.frozen_dtype, config.data.variants())
    setup.failures |= _precompute(accelerator, store, setup.records, load_encoders, strict)
    readable = [index for index, where in enumerate(setup.records["where"]) if where not in setup.failures]
    setup.records = setup.records.select(readable)
    if not readable:
        where, reason = next(iter(setup.failures.items()))
        raise LoomVideoError(f"None of the clips can be read; the first is that of {where}: {reason}")
    return store


def _precompute(
    accelerator: Accelerator,
    store: FeatureStore,
    records: datasets.Dataset,
    load_encoders: Callable[[], Encoders],
    strict: bool,
) -> dict[str, str]:
    """Computes missing features, each process its share; returns why what could not be read failed, by record."""
    # Listed once for all: processes start at different moments, and would miss what others have written meanwhile.
    missing = share(
        accelerator,
        lambda: [index for index, row in enumerate(records) if not store.is_complete(record_of(row))],
    )
    failures = {}
    own = missing[accelerator.process_index :: accelerator.num_processes]
    is_shown = bool(accelerator.is_main_process and own)
    with progress_bar(own, desc="Computing features", disable=not is_shown) as progress:
        for index in progress:
            record = record_of(records[index])
            try:
                clip = read_clip(record, "nothing")
            except Exception as error:  # whatever is wrong with a file
                if strict:
                    raise LoomVideoError(f"{record.where}: {describe_failure(error)}") from error
                failures[record.where] = describe_failure(error)
            else:
                store.write(record, clip, load_encoders())
    return gather_failures(failures)


def prepare_validation(
    accelerator: Accelerator, setup: Setup, load_encoders: Callable[[], Encoders]
) -> Validation | None:
    """The samples to make on the way, with their prompts encoded unless the MLLM is trained."""
    config = setup.config
    if config.validation is None:
        return None
    # A sharded model runs in all processes at once, on the same sample.
    first, every = (0, 1) if is_sharded(accelerator) else (accelerator.process_index, accelerator.num_processes)
    validation = Validation(config.validation, setup.model_config["num_layers"], first, every, setup.options)
    if not config.train_text_encoder:
        validation.prepare(lambda: load_encoders().pipe)
    return validation
