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
"""Measures LoomVideo-nano on what its training never showed it, whole and with one mechanism taken away at a time."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tqdm import tqdm

from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline
from ..video import contact_sheet, write_image
from . import NUM_INFERENCE_STEPS, SIDE
from .judge import judge
from .tasks import TASKS, Example, sample_held_out
from .world import render


BATCH_SIZE = 12


def evaluate(
    model: str | Path,
    tasks: list[str] | None = None,
    num_examples: int = 24,
    seeds: tuple[int, ...] = (0, 1, 2),
    without: str | None = None,
    sheets_dir: Path | None = None,
    **options: Any,
) -> dict[str, dict[str, float]]:
    """
    Makes examples of each task, each with several seeds, and judges the results.

    Args:
        model: folder of the model.
        tasks: of `TASKS`; by default all.
        num_examples: how many of each task.
        seeds: of the noise.
        without: a key of `ABLATIONS`, or None.
        sheets_dir: where to show what succeeded and what failed, a picture of each for every task.
        options: arguments of the pipelines' calls.

    Returns:
        By task: the share of successes, and the mean of every other judgement.
    """
    pipe = LoomVideoPipeline.from_pretrained(model)
    edit = LoomVideoEditPipeline.from_pipe(pipe)
    for pipeline in (pipe, edit):
        pipeline.set_progress_bar_config(disable=True)
    table = {}
    with ABLATIONS[without](pipe.transformer) if without in ABLATIONS else _nothing(pipe.transformer):
        for task in tqdm(tasks or list(TASKS), desc=f"Evaluating{f' without {without}' if without else ''}"):
            rng = np.random.default_rng([len(TASKS), list(TASKS).index(task)])
            examples = [sample_held_out(task, rng) for _ in range(num_examples)]
            jobs = [(example, seed) for example in examples for seed in seeds]
            judged = []
            for start in range(0, len(jobs), BATCH_SIZE):
                batch = jobs[start : start + BATCH_SIZE]
                results = run_examples(pipe, edit, *zip(*batch), with_references=without != "references", **options)
                judged += [(example, frames, judge(example, frames)) for (example, _), frames in zip(batch, results)]
            names = sorted({name for _, _, judgement in judged for name in judgement})
            table[task] = {"number": len(judged)} | {
                name: float(np.mean([min(judgement[name], SIDE) for *_, judgement in judged])) for name in names
            }
            if sheets_dir is not None:
                _show(judged, sheets_dir, task)
    return table


def run_examples(
    pipe: LoomVideoPipeline,
    edit: LoomVideoEditPipeline,
    examples: tuple[Example, ...],
    seeds: tuple[int, ...],
    with_references: bool = True,
    **options: Any,
) -> list[np.ndarray]:
    """Makes examples of one task in one call, and returns their frames, uint8 `[F, SIDE, SIDE, 3]`."""
    first = examples[0]
    inputs = {"prompt": [example.prompt for example in examples]}
    if with_references and first.references:
        inputs["reference_images"] = [
            [PIL.Image.fromarray(render(reference, 1)[0]) for reference in example.references] for example in examples
        ]
    if first.source is None:
        inputs |= {"height": SIDE, "width": SIDE, "num_frames": first.num_frames}
    else:
        inputs["video"] = [render(example.source, example.num_frames) for example in examples]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    inputs |= {"num_inference_steps": NUM_INFERENCE_STEPS, "generator": generators} | options
    frames = (pipe if first.source is None else edit)(**inputs).frames
    return list((frames * 255).round().astype(np.uint8))


@contextmanager
def _change_inputs(transformer: torch.nn.Module, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Has the transformer get other arguments than the pipeline passes."""
    hook = transformer.register_forward_pre_hook(
        lambda module, args, inputs: (args, inputs | change(inputs)), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


def _nothing(transformer: torch.nn.Module) -> Any:
    return _change_inputs(transformer, lambda inputs: {})


def _without_source(transformer: torch.nn.Module) -> Any:
    return _change_inputs(transformer, lambda inputs: {"source_scale": torch.zeros_like(inputs["source_scale"])})


def _with_last_layer(transformer: torch.nn.Module) -> Any:
    return _change_inputs(
        transformer,
        lambda inputs: {
            "encoder_hidden_states": inputs["encoder_hidden_states"][:, -1:].expand_as(inputs["encoder_hidden_states"])
        },
    )


# What can be taken away. Without references, neither the MLLM nor the transformer sees them.
ABLATIONS = {
    "source": _without_source,
    "references": _nothing,
    "deepstack": _with_last_layer,
}


def _show(judged: list[tuple[Example, np.ndarray, dict[str, Any]]], folder: Path, task: str) -> None:
    """Writes sheets of up to six successes and failures, of each the source above the result."""
    for name, is_success in (("successes", True), ("failures", False)):
        rows = []
        for example, frames, _ in [entry for entry in judged if entry[2]["success"] == is_success][:6]:
            rows += [frames] if example.source is None else [render(example.source, len(frames)), frames]
        if rows:
            write_image(folder / f"{task.replace(' ', '-')}-{name}.png", contact_sheet(rows, columns=5, height=SIDE))


def write_table(table: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
