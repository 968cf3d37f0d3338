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
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from diffusers import AutoencoderKLWan
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, cast_training_params, free_memory
from peft import LoraConfig
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Qwen3VLModel

from ..defaults import read_default_options
from ..errors import LoomVideoError
from ..media.files import check_writable, lock_folder, remove_leftovers_in, replace_folder, write_whole
from ..media.video import MAX_FRAMES, read_image, read_video
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline
from ..progress import progress_bar
from .checkpoints import (
    LORA_FILE,
    find_checkpoints,
    load_checkpoint,
    read_state,
    save_checkpoint,
    save_lora,
    save_only_lora,
)
from .config import LoraSettings, OptimizerSettings, TrainingConfig
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
from .objective import (
    TrainingSample,
    TransformerWithTextEncoder,
    dynamic_shift,
    group_by_shape,
    sample_timestep,
    squared_error,
)
from .publishing import create_repository, find_license, push_to_hub, write_card
from .validation import Validation


# What may change between a checkpoint and its continuation without changing what the steps compute.
FREE_KEYS = ("output_dir", "data.num_workers", "validation", "gradient_checkpointing", "checkpoint_every")
FREE_KEYS += ("compile_blocks", "keep_checkpoints", "tracker", "hub_model_id", "license")

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
            _share(accelerator, lambda: stack.enter_context(lock_folder(output_dir)))
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
    checkpoints = output_dir / "checkpoints"
    is_main = accelerator.is_main_process
    is_sharded = accelerator.distributed_type == DistributedType.FSDP

    # 1. The records, and all that can be wrong with them and with the settings
    options = _share(accelerator, lambda: read_default_options(config.model))
    config = config.with_defaults(options)
    batches_per_step = config.gradient_accumulation_steps * accelerator.num_processes
    _share(accelerator, lambda: _check(config, batches_per_step, is_sharded, resume, push, precompute_only))
    rows, failures = _share(accelerator, lambda: _read_records(config, strict))
    records = datasets.Dataset.from_list(rows)
    with accelerator.local_main_process_first():
        folder = config.model if Path(config.model).is_dir() else LoomVideoPipeline.download(config.model)
    model_config = LoomVideoTransformer3DModel.load_config(folder, subfolder="transformer")
    vae_config = AutoencoderKLWan.load_config(folder, subfolder="vae")
    frozen_dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    if config.lora is not None:
        _share(accelerator, lambda: _check_targets(config.lora, model_config))
    repo_id = _share(accelerator, lambda: create_repository(config.hub_model_id)) if push else None
    if not precompute_only:
        _start_tracker(accelerator, config)

    # 2. What the frozen models make of the clips
    encoders = None
    num_layers = None if config.train_text_encoder else model_config["num_layers"]

    def load_encoders() -> Encoders:
        nonlocal encoders
        if encoders is None:
            encoders = Encoders(folder, num_layers, accelerator.device, frozen_dtype)
        return encoders

    read = read_clip
    if config.data.features is not None:
        files = sorted({file for row in records for file in record_of(row).files})
        digests = _share(accelerator, lambda: hash_inputs(folder, files))
        store = FeatureStore(config.data.features, digests, num_layers, frozen_dtype, config.data.variants())
        failures |= _precompute(accelerator, store, records, load_encoders, strict)
        records = records.select([index for index, where in enumerate(records["where"]) if where not in failures])
        if len(records) == 0:
            where, reason = next(iter(failures.items()))
            raise LoomVideoError(f"None of the clips can be read, the first is that of {where}: {reason}")
        read = store.read
    if precompute_only:
        _report(failures, is_main)
        return None
    validation = None
    if config.validation is not None:
        # A sharded model runs in all processes at once, on the same sample.
        share = (0, 1) if is_sharded else (accelerator.process_index, accelerator.num_processes)
        validation = Validation(config.validation, model_config["num_layers"], *share, options)
        if not config.train_text_encoder:
            validation.prepare(lambda: load_encoders().pipe)
    if config.data.features is None:
        load_encoders()
    else:
        encoders = None
        free_memory()

    # 3. The model, and what changes it
    set_seed(config.seed)
    transformer = LoomVideoTransformer3DModel.from_pretrained(
        folder,
        subfolder="transformer",
        # What is trained stays in float32, and so does what is sharded together with it.
        dtype=frozen_dtype if config.lora is not None and not is_sharded else torch.float32,
    )
    if config.lora is not None:
        _add_lora(transformer, config.lora)
        save_only_lora(accelerator)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.compile_blocks:
        # Groups of one sample and of many, with and without references, with and without padding: each is compiled.
        torch._dynamo.config.recompile_limit = 64
        transformer.compile_repeated_blocks(dynamic=True)
    model = transformer
    if config.train_text_encoder:
        text_encoder = Qwen3VLModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
        if config.compile_blocks:
            for layer in text_encoder.language_model.layers:
                layer.compile(dynamic=True)
        model = TransformerWithTextEncoder(transformer, text_encoder)
    model.train()
    patch_size = tuple(transformer.config.patch_size)
    model, *optimizers = accelerator.prepare(model, *_make_optimizers(model, config.optimizer))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Not prepared: that would step it once for each process.
    schedulers = [_make_scheduler(optimizer, config) for optimizer in optimizers]
    ema = None if config.ema_decay is None else EMAModel(parameters, decay=config.ema_decay)
    set_seed(config.seed, device_specific=True)

    # 4. Where to begin
    records_digest = hashlib.sha256(json.dumps(records.to_list()).encode()).hexdigest()
    first_step, first_batch = 0, 0
    if is_main:
        checkpoints.mkdir(parents=True, exist_ok=True)
        for place in (output_dir, checkpoints, output_dir / "samples"):
            remove_leftovers_in(place)
    accelerator.wait_for_everyone()
    if find_checkpoints(checkpoints):
        path = find_checkpoints(checkpoints)[-1]
        state = read_state(path)
        if state["records"] != records_digest:
            raise LoomVideoError(
                f"The records are not those that {path} was written with: set them back, or choose another "
                "`output_dir` to begin anew."
            )
        load_checkpoint(accelerator, path, state, ema)
        first_step, first_batch = state["step"], state["batches"]
        for scheduler, scheduler_state in zip(schedulers, state["schedulers"]):
            scheduler.load_state_dict(scheduler_state)
        failures |= state["failures"]
    sampler = TokenBatchSampler(
        shapes=shapes_of(records),
        dataset_of=records["dataset"],
        weights=_weights(config),
        token_size=(
            vae_config["scale_factor_temporal"] * patch_size[0],
            vae_config["scale_factor_spatial"] * patch_size[2],
        ),
        tokens_per_batch=config.data.tokens_per_batch,
        seed=config.seed,
        first_batch=first_batch,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    batches = iter(
        DataLoader(
            TrainingDataset(records, read, config.data.drop_all, config.data.drop_text),
            batch_sampler=sampler,
            collate_fn=list,
            num_workers=config.data.num_workers,
            worker_init_fn=_leave_signals_to_parent,
            # Its base seed would come from the random state, which a continued run has to find as it was.
            generator=torch.Generator().manual_seed(config.seed),
        )
    )
    if is_main:
        trained = sum(parameter.numel() for parameter in parameters)
        print(_describe_plan(config, sampler, trained, first_step, batches_per_step), flush=True)

    # 5. Steps
    termination = _Termination(accelerator)

    def is_validation_due(step: int) -> bool:
        return validation is not None and (step % config.validation.every == 0 or step == config.steps)

    def validate(step: int) -> None:
        # The processes of a sharded model cannot stop one by one.
        should_stop = (lambda: False) if is_sharded else (lambda: termination.is_requested)
        with _averaged(ema, parameters):
            _validate(accelerator, validation, model, encoders, folder, output_dir / "samples", step, should_stop)

    def checkpoint(step: int) -> None:
        state = {
            "step": step,
            "batches": first_batch + (step - first_step) * batches_per_step,
            "batches_per_step": batches_per_step,
            "num_processes": accelerator.num_processes,
            "records": records_digest,
            "schedulers": [scheduler.state_dict() for scheduler in schedulers],
            "failures": _gather(failures),
            "config": config.model_dump(mode="json"),
        }
        save_checkpoint(accelerator, checkpoints, step, state, ema, config.keep_checkpoints)

    def end(step: int) -> NoReturn:
        progress.close()
        if is_main:
            message = f"terminated after step {step}, of which there is a checkpoint: go on with --resume"
            print(f"loomvideo: {message}.", file=sys.stderr)
        accelerator.end_training()
        raise SystemExit(TERMINATED)

    progress = progress_bar(total=config.steps, initial=first_step, desc="Training", unit="step", disable=not is_main)
    # Closed before an error is told, which would stand in the bar's line otherwise
    with termination, progress:
        # A run that ended while it validated has its checkpoint already. All processes validate, or none.
        if first_step > 0 and is_validation_due(first_step):
            is_complete = _share(accelerator, lambda: validation.is_complete(output_dir / "samples", first_step))
            if not is_complete:
                validate(first_step)
                if termination.is_agreed():
                    end(first_step)
        for step in range(first_step + 1, config.steps + 1):
            items = [next(batches) for _ in range(config.gradient_accumulation_steps)]
            _collect_failures(failures, items, strict)
            # Of the whole step, so that it does not matter how its samples are divided.
            num_elements = sum(_num_elements(item.content, vae_config) for batch in items for item in batch)
            num_elements = accelerator.reduce(torch.tensor(float(num_elements), device=accelerator.device)).item()

            loss = torch.zeros((), device=accelerator.device)
            for index, batch in enumerate(items):
                samples = [
                    make_sample(item, encoders, patch_size, config.timestep_shift, accelerator.device)
                    for item in batch
                ]
                groups = group_by_shape(samples)
                for group in groups:
                    is_last = index == len(items) - 1 and group is groups[-1]
                    with nullcontext() if is_last else accelerator.no_sync(model):
                        error = squared_error(model, group) / num_elements
                        # The gradients of all processes are averaged.
                        accelerator.backward(error * accelerator.num_processes)
                    loss += error.detach()
            loss = accelerator.reduce(loss).item()
            grad_norm = float(accelerator.clip_grad_norm_(parameters, config.optimizer.max_grad_norm))
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                what = "loss" if not math.isfinite(loss) else "norm of the gradients"
                if not is_main:
                    raise SystemExit(2)  # The main process says why.
                raise LoomVideoError(
                    f"The {what} of step {step} is no longer a number: try a lower `optimizer.learning_rate`"
                    f"{_last_checkpoint(checkpoints)}."
                )
            learning_rate = schedulers[0].get_last_lr()[0]
            for optimizer, scheduler in zip(optimizers, schedulers):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if ema is not None:
                ema.step(parameters)

            progress.update()
            progress.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.1e}")
            _log(accelerator, {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}, step)

            is_saved = step % config.checkpoint_every == 0 or step == config.steps
            if is_saved:
                checkpoint(step)
            is_ending = termination.is_agreed()
            if is_validation_due(step) and not is_ending:
                validate(step)
                is_ending = termination.is_agreed()
            if is_ending:
                if not is_saved:
                    checkpoint(step)
                end(step)

    # 6. The result
    with _averaged(ema, parameters):
        result = _save_result(accelerator, model, config, output_dir)
    if is_main:
        write_card(config, output_dir, repo_id)
    _report(_gather(failures), is_main)
    accelerator.end_training()
    if push and is_main:
        print(f"Pushed: {push_to_hub(config, output_dir, repo_id)}")
    return result


def _read_records(config: TrainingConfig, strict: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of `read_records`, and what is left out, of which it is said why."""
    records, failures = read_records(config.data, strict)
    for where, reason in failures.items():
        print(f"Skipping {where}: {reason}")
    return records.to_list(), failures


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


class _Termination:
    """Notes that a process is asked to end by SIGTERM, in place of ending it, within a `with`."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.is_requested = False

    def __enter__(self) -> None:
        # Python allows only its main thread to do this.
        self.before = None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._note)

    def __exit__(self, *_) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def _note(self, *_) -> None:
        self.is_requested = True

    def is_agreed(self) -> bool:
        """Whether any process is asked to end; all of them learn it at the same step."""
        is_requested = torch.tensor(float(self.is_requested), device=self.accelerator.device)
        return self.accelerator.reduce(is_requested).item() > 0


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


def _check(
    config: TrainingConfig, batches_per_step: int, is_sharded: bool, resume: bool, push: bool, precompute_only: bool
) -> None:
    """Raises ValueError for what is wrong apart from the records and the model, before hours have gone into it."""
    if push and config.hub_model_id is None:
        raise LoomVideoError("`hub_model_id` is missing in the settings: name the repository to push to.")
    if push and not find_license(config):
        raise LoomVideoError(
            f"The card of {config.model} states no licence: say one by `license`, such as apache-2.0."
        )
    if precompute_only and config.data.features is None:
        raise LoomVideoError("`data.features` is missing in the settings: name the folder to keep features in.")
    checkpoints = Path(config.output_dir) / "checkpoints"
    found = find_checkpoints(checkpoints)
    if found and not (resume or precompute_only):
        raise LoomVideoError(
            f"{config.output_dir} has checkpoints already: go on from the last one with --resume, or choose another "
            "`output_dir`."
        )
    if found and resume:
        _check_same(config, batches_per_step, found[-1])
    check_writable(checkpoints / "step")
    if config.data.features is not None:
        for kind in ("latents", "prompts"):
            check_writable(Path(config.data.features) / kind / "features")
    for key in ("ema_decay", "train_text_encoder"):
        if getattr(config, key) and is_sharded:
            raise LoomVideoError(f"`{key}` does not work with FSDP: leave it out.")
    if config.optimizer.name == "muon" and not hasattr(torch.optim, "Muon"):
        raise LoomVideoError(f"`optimizer.name` muon needs PyTorch 2.9, this is {torch.__version__}: choose adamw.")
    if config.optimizer.name == "muon" and is_sharded:
        raise LoomVideoError("`optimizer.name` muon does not work with FSDP: choose adamw.")
    if config.optimizer.name == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise LoomVideoError(
            "`optimizer.name` adamw8bit needs bitsandbytes: install it with `pip install bitsandbytes`."
        )
    for index, sample in enumerate(config.validation.samples if config.validation is not None else []):
        for file in (sample.video, sample.image, *sample.reference_images):
            if file is not None and not Path(file).is_file():
                raise LoomVideoError(f"`validation.samples.{index}` names {file}, which is not there.")
        try:
            if sample.video is not None:
                read_video(sample.video, max_frames=MAX_FRAMES)
            for file in ([] if sample.image is None else [sample.image]) + sample.reference_images:
                read_image(file)
        except ValueError as error:
            raise LoomVideoError(f"`validation.samples.{index}`: {error}") from error


def _check_targets(settings: LoraSettings, model_config: dict[str, Any]) -> None:
    with torch.device("meta"):
        transformer = LoomVideoTransformer3DModel.from_config(model_config)
    names = [name for name, module in transformer.named_modules() if isinstance(module, (nn.Linear, nn.Conv3d))]
    for target in settings.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise LoomVideoError(f"`lora.target_modules`: no layer is called {target}, there are {', '.join(names)}.")


def _share(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """Makes something in the main process and gives it to all; if it fails, the main process alone says why."""
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = make()
        except (ValueError, OSError) as raised:
            error = raised
    result, has_failed = broadcast_object_list([result, error is not None])
    if error is not None:
        raise error
    if has_failed:
        raise SystemExit(2)
    return result


def _start_tracker(accelerator: Accelerator, config: TrainingConfig) -> None:
    try:
        accelerator.init_trackers("loomvideo", config=_flatten(config.model_dump(mode="json")))
    except Exception as error:  # each tracker has errors of its own
        raise LoomVideoError(f"`tracker` {config.tracker} does not start: {error}") from error
    if config.tracker is not None and not accelerator.log_with:
        raise LoomVideoError(f"`tracker` {config.tracker} is not installed: install it, or leave `tracker` out.")


def _precompute(
    accelerator: Accelerator,
    store: FeatureStore,
    records: datasets.Dataset,
    load_encoders: Callable[[], Encoders],
    strict: bool,
) -> dict[str, str]:
    """Computes missing features, each process its share; returns what could not be read and why, by record."""
    # Listed once, as the processes begin at different moments, and some at files that others have just written
    missing = _share(
        accelerator,
        lambda: [index for index, row in enumerate(records) if not store.is_complete(record_of(row))],
    )
    failures = {}
    share = missing[accelerator.process_index :: accelerator.num_processes]
    is_shown = accelerator.is_main_process and share
    with progress_bar(share, desc="Computing features", disable=not is_shown) as progress:
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
    return _gather(failures)


def _add_lora(transformer: LoomVideoTransformer3DModel, settings: LoraSettings) -> None:
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.target_modules,
        )
    )
    cast_training_params(transformer, torch.float32)


def _make_optimizers(model: torch.nn.Module, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    if settings.name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as adamw_class
    else:
        adamw_class = torch.optim.AdamW
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = []
    if settings.name == "muon":
        embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
        matrices = [parameter for parameter in parameters if parameter.ndim == 2 and parameter not in embeddings]
        parameters = [parameter for parameter in parameters if parameter.ndim != 2 or parameter in embeddings]
        # With this, one learning rate suits both.
        options = {"weight_decay": settings.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        optimizers.append(torch.optim.Muon(matrices, lr=settings.learning_rate, **options))
    if parameters:
        optimizers.append(
            adamw_class(
                parameters,
                lr=settings.learning_rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                eps=settings.eps,
            )
        )
    return optimizers


def _make_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> LambdaLR:
    settings, num_steps = config.optimizer, config.steps
    scheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=num_steps,
    )
    if settings.lr_decay_steps:
        factors = scheduler.lr_lambdas
        scheduler.lr_lambdas = [
            lambda step, factor=factor: factor(step) * min(1, (num_steps - step) / settings.lr_decay_steps)
            for factor in factors
        ]
    return scheduler


def _weights(config: TrainingConfig) -> list[float] | None:
    weights = [dataset.weight for dataset in config.data.datasets]
    return None if weights[0] is None else weights


def _check_same(config: TrainingConfig, batches_per_step: int, path: Path) -> None:
    """Raises LoomVideoError if settings that steps depend on are not what they were when a checkpoint was written."""
    state = read_state(path)
    advice = "set it back, or choose another `output_dir` to begin anew"
    # How many batches make a step is compared below, as processes count too.
    free = {*FREE_KEYS, "gradient_accumulation_steps"}
    now, before = _flatten(config.model_dump(mode="json")), _flatten(state["config"])
    # What a constant learning rate has led to does not depend on when it falls.
    has_decayed = state["step"] > before["steps"] - before.get("optimizer.lr_decay_steps", 0)
    if config.optimizer.lr_scheduler.startswith("constant") and not has_decayed:
        free |= {"steps", "optimizer.lr_decay_steps"}
    for key in sorted({*now, *before}):
        if not {key, key.split(".")[0]} & free and now.get(key) != before.get(key):
            raise LoomVideoError(
                f"`{key}` is {now.get(key)}, but was {before.get(key)} when {path} was written: {advice}."
            )
    if batches_per_step != state["batches_per_step"]:
        raise LoomVideoError(
            f"Processes times `gradient_accumulation_steps` are {batches_per_step}, but were "
            f"{state['batches_per_step']} when {path} was written: {advice}."
        )
    if config.steps < state["step"]:
        raise LoomVideoError(f"`steps` is {config.steps}, but {path} is beyond that: {advice}.")


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Settings by their whole keys, as trackers and people read them."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (str, int, float, bool)) else json.dumps(value)
    return flat


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


def _gather(failures: dict[str, str]) -> dict[str, str]:
    """The failures of all processes."""
    return dict(gather_object(list(failures.items())))


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


@contextmanager
def _averaged(ema: EMAModel | None, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Puts the moving average in the place of the weights for a while."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def _validate(
    accelerator: Accelerator,
    validation: Validation,
    model: torch.nn.Module,
    encoders: Encoders | None,
    folder: str,
    samples_dir: Path,
    step: int,
    should_stop: Callable[[], bool],
) -> None:
    model.eval()
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    transformer = model if is_sharded else accelerator.unwrap_model(model)
    has_text_encoder = isinstance(transformer, TransformerWithTextEncoder)
    if encoders is not None:
        pipe = encoders.pipe
    else:
        without = {"transformer": None, "text_encoder": None} | ({} if has_text_encoder else {"processor": None})
        pipe = LoomVideoEditPipeline.from_pretrained(folder, **without).to(accelerator.device)
    if has_text_encoder:
        # What it makes of the prompts changes from step to step.
        validation.prepare(lambda: LoomVideoEditPipeline.from_pipe(pipe, text_encoder=transformer.text_encoder))
        transformer = transformer.transformer
    sheets = validation.run(transformer, pipe.vae, pipe.scheduler, samples_dir, step, should_stop)
    model.train()
    images = {f"sample {name.split('-')[-1]}": np.asarray(sheet)[None] for name, sheet in sheets.items()}
    for tracker in accelerator.trackers:
        tracker.log_images(images, step=step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}))
    accelerator.wait_for_everyone()


def _save_result(accelerator: Accelerator, model: torch.nn.Module, config: TrainingConfig, output_dir: Path) -> Path:
    """Writes the LoRA, or the transformer and the MLLM, into the output folder, each whole or not at all."""
    state_dict = accelerator.get_state_dict(model)
    model = accelerator.unwrap_model(model)
    if config.lora is not None:
        path = output_dir / LORA_FILE
        if accelerator.is_main_process:
            write_whole(path, lambda file: save_lora(model, Path(file).parent, state_dict=state_dict))
    else:
        path = output_dir / "transformer"
        if accelerator.is_main_process:
            if config.train_text_encoder:
                replace_folder(output_dir / "text_encoder", model.text_encoder.save_pretrained)
                model, state_dict = model.transformer, model.transformer.state_dict()
            with torch.device("meta"):
                whole = LoomVideoTransformer3DModel.from_config(model.config)
            whole.load_state_dict(state_dict, assign=True)
            replace_folder(path, whole.save_pretrained)
    accelerator.wait_for_everyone()
    return path


def _last_checkpoint(checkpoints: Path) -> str:
    found = find_checkpoints(checkpoints)
    return f", the last good checkpoint is {found[-1]}" if found else ""


def _report(failures: dict[str, str], is_main: bool) -> None:
    if failures and is_main:
        print(f"Skipped {len(failures)} damaged {'clip' if len(failures) == 1 else 'clips'}:")
        for where, reason in sorted(failures.items()):
            print(f"  {where}: {reason}")
