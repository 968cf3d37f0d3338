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
"""The training run: prepare, take the steps, save the result."""

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NoReturn

from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import free_memory

from ..errors import LoomVideoError
from ..media.files import lock_folder, remove_leftovers_in
from ..progress import close_bars, progress_bar
from .batches import Item, TokenBatchSampler, collect_failures, load_batches, make_sampler
from .checkpoints import find_checkpoints, load_checkpoint, read_state, save_checkpoint
from .config import TrainingConfig
from .data import read_clip
from .features import Encoders
from .model import load_model, save_result
from .optimization import Optimization
from .processes import Termination, gather_failures, is_sharded, make_accelerator, share
from .publishing import push_to_hub, write_card
from .setup import Setup, prepare, prepare_features, prepare_validation
from .step import SampleMaker, compute_gradients
from .validation import Validation, validate


# The exit code after a SIGTERM, 128 and the signal's number, as SLURM and shells know it
TERMINATED = 143


def train(
    config: TrainingConfig,
    resume: bool = False,
    strict: bool = False,
    push: bool = False,
    precompute_only: bool = False,
) -> Path | None:
    """
    Trains a LoRA, or a whole transformer with or without its MLLM (architecture: Training objective).

    After a SIGTERM, which clusters send before they end a process, it finishes the step, writes a checkpoint, and
    raises SystemExit(143), the code by which shells and schedulers know this end.

    Args:
        config: the settings.
        resume: whether to continue from the last checkpoint in the output folder, if there is one.
        strict: whether to stop at the first damaged clip, before the training if all clips can be read then. Otherwise
            damaged clips are left out, and listed at the end.
        push: whether to upload the result to `config.hub_model_id`.
        precompute_only: whether to compute the features and not to train.

    Returns:
        The file of the LoRA, or the folder of the transformer, with that of the MLLM beside it if it was trained;
        None if only features were computed.

    Raises:
        LoomVideoError: if something in the settings or the data is wrong, another run is writing to the output folder,
            or the loss is no longer a number.
        OSError: if a checkpoint cannot be written; the previous one stays.
    """
    accelerator = make_accelerator(config)
    with ExitStack() as stack:
        if not precompute_only:
            share(accelerator, lambda: stack.enter_context(lock_folder(config.output_dir)))
        setup = prepare(accelerator, config, resume, strict, push, precompute_only)
        load_encoders = cache(lambda: Encoders(setup.folder, setup.num_layers, accelerator.device, setup.frozen_dtype))
        uses_features = config.data.features is not None
        read = prepare_features(accelerator, setup, load_encoders, strict).read if uses_features else read_clip
        if precompute_only:
            _report(setup.failures, accelerator.is_main_process)
            return None
        validation = prepare_validation(accelerator, setup, load_encoders)
        encoders = None if uses_features else load_encoders()
        load_encoders.cache_clear()
        free_memory()

        run = Run(accelerator, setup, validation, encoders, strict)
        run.load_last_checkpoint()
        sampler = make_sampler(accelerator, setup.config, setup.records, setup.token_size, run.first_batch)
        run.print_plan(sampler)
        run.take_steps(load_batches(setup.config, setup.records, read, sampler))
        return run.finish(push)


class Run:
    """
    A run from its first step, or the one after its last checkpoint, to its result.

    Args:
        accelerator: of this process.
        setup: what to train on what.
        validation: the samples to make on the way, or None.
        encoders: of clips; None where features are read from disk.
        strict: whether to stop at the first damaged clip.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        setup: Setup,
        validation: Validation | None,
        encoders: Encoders | None,
        strict: bool,
    ):
        self.accelerator = accelerator
        self.setup = setup
        self.config = setup.config
        self.validation = validation
        self.encoders = encoders
        self.strict = strict
        self.failures = setup.failures
        self.output_dir = Path(self.config.output_dir)
        self.checkpoints = self.output_dir / "checkpoints"
        self.samples_dir = self.output_dir / "samples"
        self.records_digest = hashlib.sha256(json.dumps(setup.records.to_list()).encode()).hexdigest()
        self.batches_per_step = self.config.gradient_accumulation_steps * accelerator.num_processes
        self.first_step, self.first_batch = 0, 0

        set_seed(self.config.seed)
        model = load_model(accelerator, setup.folder, self.config, setup.frozen_dtype)
        self.sample_maker = SampleMaker(
            encoders=encoders,
            patch_size=tuple(setup.model_config["patch_size"]),
            timestep_shift=self.config.timestep_shift,
            vae_config=setup.vae_config,
            device=accelerator.device,
        )
        self.optimization = Optimization(accelerator, model, self.config)
        set_seed(self.config.seed, device_specific=True)
        self.termination = Termination(accelerator)

    def load_last_checkpoint(self) -> None:
        """Removes what a killed run left unfinished, and puts everything back as it was at the last checkpoint."""
        if self.accelerator.is_main_process:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for folder in (self.output_dir, self.checkpoints, self.samples_dir):
                remove_leftovers_in(folder)
        self.accelerator.wait_for_everyone()
        found = find_checkpoints(self.checkpoints)
        if not found:
            return
        state = read_state(found[-1])
        if state["records"] != self.records_digest:
            raise LoomVideoError(
                f"The records are not those that {found[-1]} was written with: set them back, or choose another "
                "`output_dir` to start anew."
            )
        load_checkpoint(self.accelerator, found[-1], state, self.optimization.ema)
        for scheduler, scheduler_state in zip(self.optimization.schedulers, state["schedulers"]):
            scheduler.load_state_dict(scheduler_state)
        self.first_step, self.first_batch = state["step"], state["batches"]
        self.failures |= state["failures"]

    def print_plan(self, sampler: TokenBatchSampler) -> None:
        if not self.accelerator.is_main_process:
            return
        counts = Counter((width, height, num_frames) for num_frames, height, width, _ in sampler.shapes)
        print("Clips by width x height x frames:")
        for size, count in sorted(counts.items()):
            print(f"  {' x '.join(map(str, size)):>18} {count:9,}")
        num_trained = sum(parameter.numel() for parameter in self.optimization.parameters)
        num_batches = len(sampler.epoch(0))
        epochs = self.config.steps * self.batches_per_step / num_batches
        print(
            f"Training {num_trained:,} parameters from step {self.first_step:,} to {self.config.steps:,}. Samples: "
            f"{len(sampler.shapes):,}. Batches an epoch: {num_batches:,}, a step: {self.batches_per_step}. "
            f"Epochs: {epochs:,.1f}.",
            flush=True,
        )

    def take_steps(self, batches: Iterator[list[Item]]) -> None:
        """Trains to the last step, with logs, checkpoints and samples on the way."""
        optimization = self.optimization
        progress = progress_bar(
            total=self.config.steps,
            initial=self.first_step,
            desc="Training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        # The bar is closed before an error is printed, which would otherwise stand in the bar's line.
        with self.termination, progress:
            self.make_missing_samples()
            for step in range(self.first_step + 1, self.config.steps + 1):
                items = [next(batches) for _ in range(self.config.gradient_accumulation_steps)]
                collect_failures(self.failures, items, self.strict)

                loss = compute_gradients(self.accelerator, optimization.model, self.sample_maker, items)
                grad_norm = optimization.clip_gradients()
                self.check_finite(step, loss, grad_norm)
                learning_rate = optimization.learning_rate
                optimization.step()

                progress.update()
                progress.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.1e}")
                self.log(step, {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate})
                self.save_and_validate(step)

    def make_missing_samples(self) -> None:
        """Makes the samples of the checkpoint, if the previous run ended before it had them all."""
        validation, step = self.validation, self.first_step
        if step == 0 or validation is None or not validation.is_due(step, self.config.steps):
            return
        # All processes validate, or none.
        if not share(self.accelerator, lambda: validation.is_complete(self.samples_dir, step)):
            self.validate(step)
            if self.termination.is_agreed():
                self.stop(step)

    def check_finite(self, step: int, loss: float, grad_norm: float) -> None:
        """Ends all processes if a loss or a norm is no longer a number; the main process says why."""
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        if not self.accelerator.is_main_process:
            raise SystemExit(2)
        what = "norm of the gradients" if math.isfinite(loss) else "loss"
        found = find_checkpoints(self.checkpoints)
        last = f", the last good checkpoint is {found[-1]}" if found else ""
        raise LoomVideoError(
            f"The {what} of step {step} is no longer a number: try a lower `optimizer.learning_rate`{last}."
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        try:
            self.accelerator.log(values, step=step)
        except OSError as error:
            raise OSError(
                f"The log in {self.accelerator.project_dir} could not be written ({error.strerror}): make room, and "
                "continue with --resume."
            ) from error

    def save_and_validate(self, step: int) -> None:
        """Writes the checkpoint and the samples that are due after a step, and stops if the run is asked to."""
        is_saved = step % self.config.checkpoint_every == 0 or step == self.config.steps
        if is_saved:
            self.save_checkpoint(step)
        is_stopping = self.termination.is_agreed()
        if not is_stopping and self.validation is not None and self.validation.is_due(step, self.config.steps):
            self.validate(step)
            is_stopping = self.termination.is_agreed()
        if is_stopping:
            if not is_saved:
                self.save_checkpoint(step)
            self.stop(step)

    def save_checkpoint(self, step: int) -> None:
        state = {
            "step": step,
            "batches": self.first_batch + (step - self.first_step) * self.batches_per_step,
            "batches_per_step": self.batches_per_step,
            "num_processes": self.accelerator.num_processes,
            "records": self.records_digest,
            "schedulers": [scheduler.state_dict() for scheduler in self.optimization.schedulers],
            "failures": gather_failures(self.failures),
            "config": self.config.model_dump(mode="json"),
        }
        keep = self.config.keep_checkpoints
        save_checkpoint(self.accelerator, self.checkpoints, step, state, self.optimization.ema, keep)

    def validate(self, step: int) -> None:
        def should_stop() -> bool:
            # The processes of a sharded model cannot stop one by one.
            return self.termination.is_requested and not is_sharded(self.accelerator)

        assert self.validation is not None
        pipe = None if self.encoders is None else self.encoders.pipe
        with self.optimization.averaged_weights():
            validate(
                self.accelerator,
                self.validation,
                self.optimization.model,
                pipe,
                self.setup.folder,
                self.samples_dir,
                step,
                should_stop,
            )

    def stop(self, step: int) -> NoReturn:
        """Ends a run that was asked to end, and whose checkpoint is written."""
        close_bars()
        if self.accelerator.is_main_process:
            message = f"terminated after step {step}; its checkpoint is written: continue with --resume"
            print(f"loomvideo: {message}.", file=sys.stderr)
        self.accelerator.end_training()
        raise SystemExit(TERMINATED)

    def finish(self, push: bool) -> Path:
        """Writes the result and its card, lists the damaged clips, and uploads the result if it is to be pushed."""
        is_main, repo_id = self.accelerator.is_main_process, self.setup.repo_id
        with self.optimization.averaged_weights():
            result = save_result(self.accelerator, self.optimization.model, self.config)
        if is_main:
            write_card(self.config, self.output_dir, repo_id)
        _report(gather_failures(self.failures), is_main)
        self.accelerator.end_training()
        if push and repo_id is not None and is_main:
            print(f"Pushed: {push_to_hub(self.config, self.output_dir, repo_id)}")
        return result


def _report(failures: dict[str, str], is_main: bool) -> None:
    if failures and is_main:
        print(f"Skipped {len(failures)} damaged {'clip' if len(failures) == 1 else 'clips'}:")
        for where, reason in sorted(failures.items()):
            print(f"  {where}: {reason}")
