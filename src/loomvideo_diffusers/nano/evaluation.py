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
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tqdm import tqdm

from ..media import contact_sheet, write_image, write_whole
from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline
from ..pipelines.loomvideo_frames import Video
from . import OPTIONS, SIDE
from .judge import judge
from .tasks import TASKS, Example, sample_held_out
from .unseen import UNSEEN, read_unseen
from .world import render


NUM_EXAMPLES = 20
# Of the comparisons, which need less to show what is missing
NUM_COMPARED = 6
SEEDS = (0, 1, 2)
BATCH_SIZE = 12

EDITS = ("recolor", "replace", "background")
REFERENCE_TASKS = (
    "recolor by reference",
    "replace by reference",
    "background by reference",
    "reference to video",
    "thing and background to video",
    "shape and color to video",
)

# What is measured: the tasks, and how the model is called. Means over all examples and seeds are kept of each.
EVALUATIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "whole": ((*TASKS, *UNSEEN), {}),
    "without the source": (EDITS, {"without": "source"}),
    "without references": (REFERENCE_TASKS, {"without": "references"}),
    "with the last layer alone": (tuple(TASKS), {"without": "deepstack"}),
    "guidance_scale 1": (EDITS, {"guidance_scale": 1.0}),
    "guidance_scale 5": (EDITS, {"guidance_scale": 5.0}),
    "guidance_scale_visual 1": (EDITS, {"guidance_scale_visual": 1.0}),
    "guidance_scale_visual 3": (EDITS, {"guidance_scale_visual": 3.0}),
}


def evaluate(
    model: Path,
    results_file: Path,
    sheets_dir: Path,
    num_examples: int = NUM_EXAMPLES,
    num_compared: int = NUM_COMPARED,
) -> dict[str, dict[str, dict[str, float]]]:
    """
    Measures all of `EVALUATIONS`, and goes on where it was interrupted.

    Args:
        model: folder of the model.
        results_file: the JSON file that the results are kept in.
        sheets_dir: where to show what succeeded and what failed, a picture of each for every task.
        num_examples: how many of each task, each with every seed, by the whole model.
        num_compared: how many by the others.

    Returns:
        By evaluation and task: the number of results, the share of successes, and the mean of every other judgement.
    """
    results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in EVALUATIONS}
    if results_file.exists():
        results |= json.loads(results_file.read_text(encoding="utf-8"))
    jobs: dict[tuple[str, str], tuple[str, int, Path | None, dict[str, Any]]] = {}
    for name, (tasks, options) in EVALUATIONS.items():
        number, folder = (num_examples, sheets_dir) if name == "whole" else (num_compared, None)
        jobs |= {
            (name, task): (task, number, folder, OPTIONS | options) for task in tasks if task not in results[name]
        }
    for (name, task), means in measure(load_model, model, jobs):
        results[name][task] = means
        write_whole(results_file, partial(_write_json, content=results))
    return {name: {task: results[name][task] for task in tasks} for name, (tasks, _) in EVALUATIONS.items()}


def _write_json(path: str, content: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_model(model: Path) -> LoomVideoPipeline:
    return LoomVideoPipeline.from_pretrained(model, dtype=torch.float32)


def measure(
    load: Callable[[Any], LoomVideoPipeline],
    model: Any,
    jobs: dict[Any, tuple[str, int, Path | None, dict[str, Any]]],
) -> Iterator[tuple[Any, dict[str, float]]]:
    """
    Measures tasks, several at a time.

    Args:
        load: what loads the model, once in each process: a function that can be imported.
        model: what it is called with.
        jobs: by any key a task, how many examples of it, where to show results or None, and options of the calls.

    Yields:
        A key, and the number of results, the share of successes, and the mean of every other judgement.
    """
    # Small as it is, the model is faster in a process for each core than with several threads.
    num_processes = max(1, min(os.cpu_count() or 1, len(jobs)))
    with ProcessPoolExecutor(num_processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(_measure_task, load, model, *job): key for key, job in jobs.items()}
        for future in tqdm(as_completed(futures), desc="Evaluating", total=len(futures)):
            yield futures[future], future.result()


def _measure_task(
    load: Callable[[Any], LoomVideoPipeline],
    model: Any,
    task: str,
    num_examples: int,
    sheets_dir: Path | None,
    options: dict[str, Any],
) -> dict[str, float]:
    judged = evaluate_task(_load_once(load, model), task, num_examples, **options)
    if sheets_dir is not None:
        _show(judged, sheets_dir, task)
    return _means([judgement for *_, judgement in judged])


@lru_cache(maxsize=1)
def _load_once(load: Callable[[Any], LoomVideoPipeline], model: Any) -> LoomVideoPipeline:
    return load(model)


def evaluate_task(
    pipe: LoomVideoPipeline,
    task: str,
    num_examples: int = NUM_EXAMPLES,
    seeds: tuple[int, ...] = SEEDS,
    without: str | None = None,
    **options: Any,
) -> list[tuple[Example, np.ndarray, dict[str, bool | float]]]:
    """
    Makes held-out examples of a task, each with every seed, and judges the results.

    Args:
        pipe: the model.
        task: of `TASKS`, or of `UNSEEN`, of which all examples are made.
        num_examples: how many.
        seeds: of the noise.
        without: what to take away, a key of `ABLATIONS`.
        options: arguments of the pipelines' calls.

    Returns:
        Of each result what was asked for, its frames, uint8 `[F, SIDE, SIDE, 3]`, and the judgement.
    """
    if task in UNSEEN:
        examples = [example for example in read_unseen() if example.task == task]
    else:
        rng = np.random.default_rng([7, list(TASKS).index(task)])
        examples = [sample_held_out(task, rng) for _ in range(num_examples)]
    return evaluate_examples(pipe, examples, seeds, without, **options)


def evaluate_examples(
    pipe: LoomVideoPipeline,
    examples: Sequence[Example],
    seeds: tuple[int, ...] = SEEDS,
    without: str | None = None,
    **options: Any,
) -> list[tuple[Example, np.ndarray, dict[str, bool | float]]]:
    """Makes examples with the same number of references, and judges them; all arguments are as in `evaluate_task`."""
    jobs = [(example, seed) for example in sorted(examples, key=_format) for seed in seeds]
    judged = []
    with ABLATIONS[without](pipe.transformer):
        for _, alike in groupby(jobs, key=lambda job: _format(job[0])):
            same = list(alike)
            for start in range(0, len(same), BATCH_SIZE):
                batch, batch_seeds = zip(*same[start : start + BATCH_SIZE])
                results = run_examples(pipe, batch, batch_seeds, without != "references", **options)
                judged += [(example, frames, judge(example, frames)) for example, frames in zip(batch, results)]
    return judged


def _format(example: Example) -> tuple[bool, int, int, int]:
    """What examples of one call have in common: whether there is a source; frames, height and width."""
    return example.source is None, example.num_frames, example.target.height, example.target.width


def run_examples(
    pipe: LoomVideoPipeline,
    examples: Sequence[Example],
    seeds: Sequence[int],
    with_references: bool = True,
    **options: Any,
) -> list[np.ndarray]:
    """Makes examples of one task in one call, and returns their frames, uint8 `[F, SIDE, SIDE, 3]`."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    inputs = OPTIONS | {"generator": generators} | options
    frames = call(pipe, examples, with_references, **inputs)
    return list((frames * 255).round().astype(np.uint8))


def call(pipe: LoomVideoPipeline, examples: Sequence[Example], with_references: bool = True, **options: Any) -> Any:
    """Calls the pipeline that examples of one task need, and returns what is in its output."""
    first = examples[0]
    inputs: dict[str, Any] = {"prompt": [example.prompt for example in examples]}
    if with_references and first.references:
        inputs["reference_images"] = [
            [PIL.Image.fromarray(render(reference, 1)[0]) for reference in example.references] for example in examples
        ]
    if first.source is None:
        _, num_frames, height, width = _format(first)
        inputs |= {"height": height, "width": width, "num_frames": num_frames}
    else:
        inputs["video"] = [render(example.source, example.num_frames) for example in examples if example.source]
        pipe = LoomVideoEditPipeline.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe(**inputs | options).frames


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


# What can be taken away. Without references, neither the MLLM nor the transformer sees them.
ABLATIONS: dict[str | None, Callable] = {
    None: nullcontext,
    "references": nullcontext,
    "source": lambda transformer: _change_inputs(
        transformer, lambda inputs: {"source_scale": torch.zeros_like(inputs["source_scale"])}
    ),
    "deepstack": lambda transformer: _change_inputs(
        transformer,
        lambda inputs: {
            "encoder_hidden_states": inputs["encoder_hidden_states"][:, -1:].expand_as(inputs["encoder_hidden_states"])
        },
    ),
}


def _means(judgements: list[dict[str, bool | float]]) -> dict[str, float]:
    """The mean of each judgement over the results that have it, and the number of results."""
    values: dict[str, list[float]] = {}
    for judgement in judgements:
        for name, value in judgement.items():
            # An error or a PSNR can be infinite, which no mean survives.
            values.setdefault(name, []).append(min(value, SIDE))
    return {"number": len(judgements)} | {name: float(np.mean(values[name])) for name in sorted(values)}


def _show(judged: list[tuple[Example, np.ndarray, dict[str, Any]]], folder: Path, task: str) -> None:
    """Writes sheets of up to six successes and failures, of each the source above the result."""
    for name, is_success in (("successes", True), ("failures", False)):
        rows: list[Video] = []
        for example, frames, _ in [entry for entry in judged if entry[2]["success"] == is_success][:6]:
            rows += [frames] if example.source is None else [render(example.source, len(frames)), frames]
        if rows:
            write_image(folder / f"{task.replace(' ', '-')}-{name}.png", contact_sheet(rows, columns=5, height=SIDE))
