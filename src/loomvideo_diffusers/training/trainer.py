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
"""The training run, from settings to a file that pipelines load."""

import hashlib
import json
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from diffusers import AutoencoderKLWan
from diffusers.training_utils import free_memory
from torch.utils.data import DataLoader

from ..defaults import read_default_options
from ..errors import LoomVideoError
from ..media.files import lock_folder, remove_leftovers_in
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline
from ..progress import progress_bar
from .checkpoints import find_checkpoints, load_checkpoint, read_state, save_checkpoint
from .checks import check_settings, check_targets, flatten
from .config import TrainingConfig
from .data import (
    Clip,
    Item,
    TokenBatchSampler,
    TrainingDataset,
    describe_failure,
    read_clip,
    read_records,
    record_of,
    shapes_of,
)
from .features import Encoders, Features, FeatureStore, hash_inputs
from .model import TrainedModel, prepare_model, save_result
from .objective import (
    TrainingSample,
    TransformerWithTextEncoder,
    dynamic_shift,
    group_by_shape,
    sample_timestep,
    squared_error,
)
from .processes import Termination, gather, share
from .publishing import create_repository, push_to_hub, write_card
from .validation import Validation


# How long processes wait for each other: one may have many more features to compute than the others.
PROCESS_TIMEOUT = timedelta(hours=4)

# The exit code after a SIGTERM, 128 and the signal's number, by which SLURM and shells know it
TERMINATED = 143


def train(
    config: TrainingConfig,
    resume: bool = False,
    strict: bool = False,
    push: bool = False,
    precompute_only: bool = False,
) -> Path | None:
    """
    Trains a LoRA, or a whole transformer with or without its MLLM (spec: training objective).

    A SIGTERM, by which clusters say that they will end a process, has it write a checkpoint of the step that it has
    just finished and raise SystemExit(143), as shells and schedulers call that end.

    Args:
        config: the settings.
        resume: go on from the last checkpoint in the output folder, if there is one.
        strict: stop at the first damaged clip, before the training if all can be read then, instead of going on
            without it and reporting it at the end.
        push: upload the result to `config.hub_model_id`.
        precompute_only: compute the features, and do not train.

    Returns:
        The file of the LoRA, or the folder of the transformer, beside which is that of the MLLM if it was trained;
        None if nothing was to be trained.

    Raises:
        LoomVideoError: if something in the settings or the data is wrong, another run is writing to the output folder,
            or the loss is no longer a number.
        OSError: if a checkpoint cannot be written; the previous one stays.
    """
    output_dir = Path(config.output_dir)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.tracker,
        project_dir=output_dir / "logs",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT),
            # Without images in a batch, the vision tower has nothing to do.
            DistributedDataParallelKwargs(find_unused_parameters=config.train_text_encoder),
        ],
    )
    with ExitStack() as stack:
        if not precompute_only:
            share(accelerator, lambda: stack.enter_context(lock_folder(output_dir)))
        return _train(accelerator, config, output_dir, resume, strict, push, precompute_only)


def _train(
    accelerator: Accelerator,
    config: TrainingConfig,
    output_dir: Path,
    resume: bool,
    strict: bool,
    push: bool,
    precompute_only: bool,
) -> Path | None:
    # 1. The records, and all that can be wrong with them and with the settings
    options = share(accelerator, lambda: read_default_options(config.model))
    config = config.with_defaults(options)
    batches_per_step = config.gradient_accumulation_steps * accelerator.num_processes
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    share(accelerator, lambda: check_settings(config, batches_per_step, is_sharded, resume, push, precompute_only))
    rows, failures = share(accelerator, lambda: _read_records(config, strict))
    with accelerator.local_main_process_first():
        folder = config.model if Path(config.model).is_dir() else LoomVideoPipeline.download(config.model)
    model_config = LoomVideoTransformer3DModel.load_config(folder, subfolder="transformer")
    if config.lora is not None:
        share(accelerator, lambda: check_targets(config.lora, model_config))
    repo_id = share(accelerator, lambda: create_repository(config.hub_model_id)) if push else None
    if not precompute_only:
        _start_tracker(accelerator, config)

    # 2. What the frozen models make of the clips
    frozen_dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    num_layers = None if config.train_text_encoder else model_config["num_layers"]
    frozen = _FrozenModels(folder, num_layers, accelerator.device, frozen_dtype)
    records, read = datasets.Dataset.from_list(rows), read_clip
    if config.data.features is not None:
        store = _open_store(accelerator, config, frozen, records)
        failures |= _precompute(accelerator, store, records, frozen, strict)
        records = _leave_out(records, failures)
        read = store.read
    if precompute_only:
        _report(failures, accelerator.is_main_process)
        return None
    validation = _prepare_validation(accelerator, config, model_config["num_layers"], options, frozen)
    if config.data.features is None:
        frozen.load()
    else:
        frozen.unload()

    # 3. The model, and where it begins
    run = _Run(
        accelerator=accelerator,
        config=config,
        folder=folder,
        output_dir=output_dir,
        vae_config=AutoencoderKLWan.load_config(folder, subfolder="vae"),
        patch_size=tuple(model_config["patch_size"]),
        model=prepare_model(accelerator, config, folder, frozen_dtype),
        encoders=frozen.encoders,
        validation=validation,
        records_digest=hashlib.sha256(json.dumps(records.to_list()).encode()).hexdigest(),
        failures=failures,
    )
    run.resume()

    # 4. Steps
    run.train(run.load_batches(records, read), strict)

    # 5. The result
    with run.model.averaged():
        result = save_result(accelerator, run.model.module, config, output_dir)
    if accelerator.is_main_process:
        write_card(config, output_dir, repo_id)
    _report(gather(run.failures), accelerator.is_main_process)
    accelerator.end_training()
    if push and accelerator.is_main_process:
        print(f"Pushed: {push_to_hub(config, output_dir, repo_id)}")
    return result


class _FrozenModels:
    """The encoders of a model, loaded when they are first needed."""

    def __init__(self, folder: str, num_layers: int | None, device: torch.device, dtype: torch.dtype):
        self.folder = folder
        self.num_layers = num_layers
        self.device = device
        self.dtype = dtype
        self.encoders: Encoders | None = None

    def load(self) -> Encoders:
        if self.encoders is None:
            self.encoders = Encoders(self.folder, self.num_layers, self.device, self.dtype)
        return self.encoders

    def unload(self) -> None:
        self.encoders = None
        free_memory()


@dataclass
class _Run:
    """
    A training that is ready for its steps.

    Attributes:
        folder: of the model that it began with.
        encoders: what the clips are encoded by as they come, or None where features are read.
        records_digest: a hash of the records, by which a checkpoint knows them.
        failures: what could not be read and why, by record.
        first_step, first_batch: where it begins.
    """

    accelerator: Accelerator
    config: TrainingConfig
    folder: str
    output_dir: Path
    vae_config: dict[str, Any]
    patch_size: tuple[int, int, int]
    model: TrainedModel
    encoders: Encoders | None
    validation: Validation | None
    records_digest: str
    failures: dict[str, str]
    first_step: int = 0
    first_batch: int = 0
    termination: Termination = field(init=False)

    def __post_init__(self):
        self.termination = Termination(self.accelerator)

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / "checkpoints"

    @property
    def batches_per_step(self) -> int:
        return self.config.gradient_accumulation_steps * self.accelerator.num_processes

    @property
    def is_sharded(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.FSDP

    def resume(self) -> None:
        """Goes back to the last checkpoint, if there is one."""
        if self.accelerator.is_main_process:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for place in (self.output_dir, self.checkpoints, self.output_dir / "samples"):
                remove_leftovers_in(place)
        self.accelerator.wait_for_everyone()
        found = find_checkpoints(self.checkpoints)
        if not found:
            return
        state = read_state(found[-1])
        if state["records"] != self.records_digest:
            raise LoomVideoError(
                f"The records are not those that {found[-1]} was written with: set them back, or choose another "
                "`output_dir` to begin anew."
            )
        load_checkpoint(self.accelerator, found[-1], state, self.model.ema)
        self.first_step, self.first_batch = state["step"], state["batches"]
        for scheduler, scheduler_state in zip(self.model.schedulers, state["schedulers"]):
            scheduler.load_state_dict(scheduler_state)
        self.failures |= state["failures"]

    def load_batches(self, records: datasets.Dataset, read: Callable[..., Clip | Features]) -> Iterator[list[Item]]:
        """The batches of this process, from the first one on. Prints what the training will do."""
        config, accelerator = self.config, self.accelerator
        patch_frames, _, patch_width = self.patch_size
        weights = [dataset.weight for dataset in config.data.datasets]
        sampler = TokenBatchSampler(
            shapes=shapes_of(records),
            dataset_of=records["dataset"],
            weights=None if weights[0] is None else weights,
            token_size=(
                self.vae_config["scale_factor_temporal"] * patch_frames,
                self.vae_config["scale_factor_spatial"] * patch_width,
            ),
            tokens_per_batch=config.data.tokens_per_batch,
            seed=config.seed,
            first_batch=self.first_batch,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
        )
        loader = DataLoader(
            TrainingDataset(records, read, config.data.drop_all, config.data.drop_text),
            batch_sampler=sampler,
            collate_fn=list,
            num_workers=config.data.num_workers,
            worker_init_fn=_leave_signals_to_parent,
            # Its base seed would come from the random state, which a continued run has to find as it was.
            generator=torch.Generator().manual_seed(config.seed),
        )
        if accelerator.is_main_process:
            trained = sum(parameter.numel() for parameter in self.model.parameters)
            plan = _describe_plan(config, sampler, trained, self.first_step, self.batches_per_step)
            print(plan, flush=True)
        return iter(loader)

    def train(self, batches: Iterator[list[Item]], strict: bool) -> None:
        """Does all steps, with what belongs between them. Raises SystemExit after a SIGTERM."""
        config, is_main = self.config, self.accelerator.is_main_process
        bar = {"initial": self.first_step, "desc": "Training", "unit": "step", "disable": not is_main}
        progress = progress_bar(total=config.steps, **bar)
        # Closed before an error is told, which would stand in the bar's line otherwise
        with self.termination, progress:
            # A run that ended while it validated has its checkpoint already. All processes validate, or none.
            if self.first_step > 0 and self._is_validation_due(self.first_step):
                self._complete_validation(progress)
            for step in range(self.first_step + 1, config.steps + 1):
                items = [next(batches) for _ in range(config.gradient_accumulation_steps)]
                _collect_failures(self.failures, items, strict)
                loss, grad_norm = self._backpropagate(items)
                self._check_finite(step, loss, grad_norm)
                learning_rate = self.model.step()

                progress.update()
                progress.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.1e}")
                values = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
                _log(self.accelerator, values, step)

                is_saved = step % config.checkpoint_every == 0 or step == config.steps
                if is_saved:
                    self._save_checkpoint(step)
                is_ending = self.termination.is_agreed()
                if self._is_validation_due(step) and not is_ending:
                    self._validate(step)
                    is_ending = self.termination.is_agreed()
                if is_ending:
                    if not is_saved:
                        self._save_checkpoint(step)
                    self._end(step, progress)

    def _backpropagate(self, items: list[list[Item]]) -> tuple[float, float]:
        """Computes the gradients of a step's batches, clipped. Returns the loss and the norm of the gradients."""
        accelerator, module = self.accelerator, self.model.module
        # Of the whole step, so that it does not matter how its samples are divided.
        num_elements = sum(_num_elements(item.content, self.vae_config) for batch in items for item in batch)
        num_elements = accelerator.reduce(torch.tensor(float(num_elements), device=accelerator.device)).item()
        shift, device = self.config.timestep_shift, accelerator.device
        loss = torch.zeros((), device=accelerator.device)
        for index, batch in enumerate(items):
            samples = [make_sample(item, self.encoders, self.patch_size, shift, device) for item in batch]
            groups = group_by_shape(samples)
            for group in groups:
                is_last = index == len(items) - 1 and group is groups[-1]
                with nullcontext() if is_last else accelerator.no_sync(module):
                    error = squared_error(module, group) / num_elements
                    # The gradients of all processes are averaged.
                    accelerator.backward(error * accelerator.num_processes)
                loss += error.detach()
        max_norm = self.config.optimizer.max_grad_norm
        grad_norm = accelerator.clip_grad_norm_(self.model.parameters, max_norm)
        return accelerator.reduce(loss).item(), float(grad_norm)

    def _check_finite(self, step: int, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        if not self.accelerator.is_main_process:
            raise SystemExit(2)  # The main process says why.
        what = "loss" if not math.isfinite(loss) else "norm of the gradients"
        found = find_checkpoints(self.checkpoints)
        last = f", the last good checkpoint is {found[-1]}" if found else ""
        raise LoomVideoError(
            f"The {what} of step {step} is no longer a number: try a lower `optimizer.learning_rate`{last}."
        )

    def _save_checkpoint(self, step: int) -> None:
        state = {
            "step": step,
            "batches": self.first_batch + (step - self.first_step) * self.batches_per_step,
            "batches_per_step": self.batches_per_step,
            "num_processes": self.accelerator.num_processes,
            "records": self.records_digest,
            "schedulers": [scheduler.state_dict() for scheduler in self.model.schedulers],
            "failures": gather(self.failures),
            "config": self.config.model_dump(mode="json"),
        }
        save_checkpoint(self.accelerator, self.checkpoints, step, state, self.model.ema, self.config.keep_checkpoints)

    def _is_validation_due(self, step: int) -> bool:
        settings = self.config.validation
        return settings is not None and (step % settings.every == 0 or step == self.config.steps)

    def _complete_validation(self, progress: Any) -> None:
        step, samples_dir = self.first_step, self.output_dir / "samples"
        if not share(self.accelerator, lambda: self.validation.is_complete(samples_dir, step)):
            self._validate(step)
            if self.termination.is_agreed():
                self._end(step, progress)

    def _validate(self, step: int) -> None:
        """Makes the samples of a step, which are logged too."""
        accelerator, module = self.accelerator, self.model.module
        with self.model.averaged():
            module.eval()
            transformer = module if self.is_sharded else accelerator.unwrap_model(module)
            has_text_encoder = isinstance(transformer, TransformerWithTextEncoder)
            if self.encoders is not None:
                pipe = self.encoders.pipe
            else:
                without = {"transformer": None, "text_encoder": None}
                without |= {} if has_text_encoder else {"processor": None}
                pipe = LoomVideoEditPipeline.from_pretrained(self.folder, **without).to(accelerator.device)
            if has_text_encoder:
                # What it makes of the prompts changes from step to step.
                text_encoder = transformer.text_encoder
                self.validation.prepare(lambda: LoomVideoEditPipeline.from_pipe(pipe, text_encoder=text_encoder))
                transformer = transformer.transformer
            # The processes of a sharded model cannot stop one by one.
            should_stop = (lambda: False) if self.is_sharded else (lambda: self.termination.is_requested)
            samples_dir = self.output_dir / "samples"
            sheets = self.validation.run(transformer, pipe.vae, pipe.scheduler, samples_dir, step, should_stop)
            module.train()
        images = {f"sample {name.split('-')[-1]}": np.asarray(sheet)[None] for name, sheet in sheets.items()}
        for tracker in accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(images, step=step, **options)
        accelerator.wait_for_everyone()

    def _end(self, step: int, progress: Any) -> NoReturn:
        progress.close()
        if self.accelerator.is_main_process:
            message = f"terminated after step {step}, of which there is a checkpoint: go on with --resume"
            print(f"loomvideo: {message}.", file=sys.stderr)
        self.accelerator.end_training()
        raise SystemExit(TERMINATED)


def _read_records(config: TrainingConfig, strict: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of `read_records`, and what is left out, of which it is said why."""
    records, failures = read_records(config.data, strict)
    for where, reason in failures.items():
        print(f"Skipping {where}: {reason}")
    return records.to_list(), failures


def _open_store(
    accelerator: Accelerator, config: TrainingConfig, frozen: _FrozenModels, records: datasets.Dataset
) -> FeatureStore:
    files = sorted({file for row in records for file in record_of(row).files})
    digests = share(accelerator, lambda: hash_inputs(frozen.folder, files))
    return FeatureStore(config.data.features, digests, frozen.num_layers, frozen.dtype, config.data.variants())


def _leave_out(records: datasets.Dataset, failures: dict[str, str]) -> datasets.Dataset:
    """The records that can be read."""
    kept = records.select([index for index, where in enumerate(records["where"]) if where not in failures])
    if len(kept) == 0:
        where, reason = next(iter(failures.items()))
        raise LoomVideoError(f"None of the clips can be read, the first is that of {where}: {reason}")
    return kept


def _prepare_validation(
    accelerator: Accelerator,
    config: TrainingConfig,
    num_layers: int,
    options: dict[str, Any],
    frozen: _FrozenModels,
) -> Validation | None:
    if config.validation is None:
        return None
    # A sharded model runs in all processes at once, on the same sample.
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    share_of_samples = (0, 1) if is_sharded else (accelerator.process_index, accelerator.num_processes)
    validation = Validation(config.validation, num_layers, *share_of_samples, options)
    if not config.train_text_encoder:
        validation.prepare(lambda: frozen.load().pipe)
    return validation


def _precompute(
    accelerator: Accelerator,
    store: FeatureStore,
    records: datasets.Dataset,
    frozen: _FrozenModels,
    strict: bool,
) -> dict[str, str]:
    """Computes missing features, each process its share; returns what could not be read and why, by record."""
    # Listed once, as the processes begin at different moments, and some at files that others have just written
    missing = share(
        accelerator,
        lambda: [index for index, row in enumerate(records) if not store.is_complete(record_of(row))],
    )
    failures = {}
    own = missing[accelerator.process_index :: accelerator.num_processes]
    is_shown = accelerator.is_main_process and own
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
                store.write(record, clip, frozen.load())
    return gather(failures)


def _describe_plan(
    config: TrainingConfig, sampler: TokenBatchSampler, num_trained: int, first_step: int, batches_per_step: int
) -> str:
    """What a training will do."""
    counts = Counter((width, height, num_frames) for num_frames, height, width, _ in sampler.shapes)
    lines = ["Clips by width x height x frames:"]
    lines += [f"  {' x '.join(map(str, size)):>18} {count:9,}" for size, count in sorted(counts.items())]
    num_batches = len(sampler.epoch(0))
    epochs = config.steps * batches_per_step / num_batches
    lines.append(
        f"Training {num_trained:,} parameters from step {first_step:,} to {config.steps:,}. Samples: "
        f"{len(sampler.shapes):,}. Batches an epoch: {num_batches:,}, a step: {batches_per_step}. "
        f"Epochs: {epochs:,.1f}."
    )
    return "\n".join(lines)


def _start_tracker(accelerator: Accelerator, config: TrainingConfig) -> None:
    try:
        accelerator.init_trackers("loomvideo", config=flatten(config.model_dump(mode="json")))
    except Exception as error:  # each tracker has errors of its own
        raise LoomVideoError(f"`tracker` {config.tracker} does not start: {error}") from error
    if config.tracker is not None and not accelerator.log_with:
        raise LoomVideoError(f"`tracker` {config.tracker} is not installed: install it, or leave `tracker` out.")


def _leave_signals_to_parent(worker: int) -> None:
    # A scheduler may send SIGTERM to all processes of a job, and the parent still needs the data of its step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _log(accelerator: Accelerator, values: dict[str, float], step: int) -> None:
    try:
        accelerator.log(values, step=step)
    except OSError as error:
        raise OSError(
            f"The log in {accelerator.project_dir} could not be written ({error.strerror}): make room, and go on with "
            "--resume."
        ) from error


def _collect_failures(failures: dict[str, str], items: list[list[Item]], strict: bool) -> None:
    for item in (item for batch in items for item in batch):
        for where, reason in item.failures:
            if strict:
                raise LoomVideoError(f"{where}: {reason}")
            if where not in failures:
                print(f"Skipping {where}: {reason}")
            failures[where] = reason
        if item.content is None:
            where, reason = item.failures[-1]
            raise LoomVideoError(f"No clip of the shape of {where} can be read: {reason}")


def _num_elements(content: Clip | Features, vae_config: dict[str, Any]) -> int:
    """How many elements the latents of a sample have."""
    if isinstance(content, Features):
        return content.latents.numel()
    num_frames, height, width, _ = content.target.shape
    side = vae_config["scale_factor_spatial"]
    frames = (num_frames - 1) // vae_config["scale_factor_temporal"] + 1
    return vae_config["z_dim"] * frames * (height // side) * (width // side)


def make_sample(
    item: Item,
    encoders: Encoders | None,
    patch_size: tuple[int, int, int],
    timestep_shift: float | None,
    device: torch.device,
) -> TrainingSample:
    """Encodes a clip if that is not done, and draws its timestep and its noise by the seed of its draw."""
    features = item.content if isinstance(item.content, Features) else encoders.encode(item.content)
    generator = torch.Generator().manual_seed(item.seed)
    positions = sum(latents[0].numel() for latents in (features.latents, *features.reference_latents))
    shift = dynamic_shift(positions // math.prod(patch_size)) if timestep_shift is None else timestep_shift
    timestep = sample_timestep(shift, generator)
    noise = torch.randn(features.latents.shape, generator=generator)
    return TrainingSample(
        latents=features.latents.to(device),
        prompt={name: tensor.to(device) for name, tensor in features.prompt.items()},
        noise=noise.to(device),
        timestep=timestep,
        source_latents=None if features.source_latents is None else features.source_latents.to(device),
        reference_latents=[latents.to(device) for latents in features.reference_latents],
    )


def _report(failures: dict[str, str], is_main: bool) -> None:
    if failures and is_main:
        print(f"Skipped {len(failures)} damaged {'clip' if len(failures) == 1 else 'clips'}:")
        for where, reason in sorted(failures.items()):
            print(f"  {where}: {reason}")
