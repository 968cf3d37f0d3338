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
"""What visitors ask for: looked at, checked against the limits, planned, and put into the queue."""

import json
import secrets
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..defaults import complete_settings
from ..descriptions import describe_result, options_of
from ..errors import LoomVideoError
from ..footage import EditPlan, Footage, GenerationPlan, plan_edit, plan_generation, read_frames
from ..footage.resume import choose_seed
from ..loading import find_model
from ..media import (
    FRAMES_PER_SECOND,
    contact_sheet,
    is_animation,
    is_image,
    probe_video,
    read_image,
    read_video,
    write_image,
)
from ..media.decoding import PIXEL_FORMATS
from ..media.encoding import plan_output, write_footage
from .limits import Limits, read_reference
from .models import Models, edit_pipeline_of
from .runs import Run, Runs
from .visits import Visit, Visits
from .work import Outcome, work


# How many lines the video has in which source and result are compared
COMPARISON_HEIGHT = 720

STRIP_HEIGHT = 160

# Of the copy of a clip over which it is said what may change
SHOWN_HEIGHT = 360

# What a result of each kind is called in the history
TITLES = {"edit": "Edit", "preview": "Preview", "generate": "New"}

# The name of a video that is written; images are .png.
VIDEO_SUFFIX = ".mp4"


class Studio:
    """
    The page without its looks.

    Args:
        models: what is offered.
        root: a folder for the files of visits.
        limits: of each visit.
        wrap: what the work of each run is wrapped in, such as what lends it a GPU.
    """

    def __init__(
        self,
        models: Models,
        root: Path,
        limits: Limits,
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda work: work,
    ):
        self.models = models
        self.limits = limits
        self.visits = Visits(root)
        self._work = wrap(self._work_on)
        self.runs = Runs(self._run)

    def look(self, visit: Visit, path: Path) -> tuple[Path, str]:
        """
        Reads the beginning of a clip, or an image.

        Returns:
            An image file of its first frames in a row, and a few words on it.

        Raises:
            LoomVideoError: if it is neither, or is over a limit.
        """
        self._check_owner(visit, [path])
        self.limits.check_size(path)
        if is_image(path) and not is_animation(path):
            picture = read_image(path)
            frames, words = [picture], f"{picture.width} × {picture.height}"
        else:
            most = 4 * int(self.limits.seconds * FRAMES_PER_SECOND / 4) + 1
            width, height, num_frames = probe_video(path, most + 16)
            if num_frames > most + 12:
                raise self.limits.too_long(path)
            frames = list(read_video(path, max_frames=21))
            words = f"{width} × {height}, {num_frames / FRAMES_PER_SECOND:.1f} seconds"
        strip = visit.folder / f"strip-{secrets.token_hex(4)}.jpg"
        write_image(strip, contact_sheet([frames], height=STRIP_HEIGHT))
        return strip, f"{path.name}: {words}"

    def show(self, visit: Visit, path: Path) -> tuple[Path, int, int]:
        """
        Writes a small copy of a clip or an image, which every browser shows.

        Returns:
            The copy, and the width and height of the clip itself in pixels.

        Raises:
            LoomVideoError: if it is neither, or is over a limit.
        """
        self._check_owner(visit, [path])
        source = self.limits.read_source(path)
        scale = min(1.0, SHOWN_HEIGHT / source.height)
        for older in visit.folder.glob("shown-*"):
            older.unlink(missing_ok=True)
        shown = visit.folder / f"shown-{secrets.token_hex(4)}{VIDEO_SUFFIX if isinstance(source, Footage) else '.jpg'}"
        if isinstance(source, Footage):
            even = replace(source, pixel_format=PIXEL_FORMATS[False, False], num_bits=8, pixel_aspect=None)
            size = (max(2, 2 * round(source.width * scale / 2)), max(2, 2 * round(source.height * scale / 2)))
            with write_footage(plan_output(even, shown, "none", size), even) as output:
                for pixels in read_frames(even):
                    output.write(pixels)
        else:
            picture = source.copy()
            picture.thumbnail((source.width, SHOWN_HEIGHT))
            write_image(shown, picture)
        return shown, source.width, source.height

    def edit(
        self,
        visit: Visit,
        source: Path | None,
        prompt: str,
        references: Sequence[Path] = (),
        model: str | None = None,
        loras: Sequence[str] = (),
        is_preview: bool = False,
        is_watched: bool = True,
        mask: Path | None = None,
        **settings: Any,
    ) -> Run:
        """
        Plans an edit, and lets it wait for its turn.

        Args:
            visit: of whoever asks; the files must be that visit's.
            source: a clip or an image.
            prompt: the instruction.
            references: images.
            model, loras: of those that are offered; by default the first model, and no LoRA.
            is_preview: whether to edit a few frames only.
            is_watched: whether to show what becomes of it, and source and result side by side.
            mask: an image or a video of what may change.
            settings: the other settings of an edit, boxes among them; None for the model's own.

        Raises:
            LoomVideoError, LoomVideoInputError: if something is not allowed, or cannot be done.
        """
        if source is None:
            raise LoomVideoError("Choose a clip or an image first.")
        model = model or self.models.names[0]
        masks = [] if mask is None else [mask]
        self._check(visit, [source, *references, *masks], references, model, loras)
        for path in masks:
            self.limits.read_source(path)
        settings = self._complete(model, settings)
        settings.pop("num_frames", None)
        read = self.limits.read_source(source)
        is_clip = isinstance(read, Footage)
        if is_preview and not is_clip:
            raise LoomVideoError("An image is edited as fast as its preview: edit it.")
        folder = visit.folder / secrets.token_hex(4)
        suffix = VIDEO_SUFFIX if is_clip and not is_preview else ".png"
        result = folder / f"{source.stem}-{'preview' if is_preview else 'edited'}{suffix}"
        names: dict[str, Any] = {"preview": result} if is_preview else {"output": result}
        if is_clip and not is_preview and is_watched:
            names |= {"compare": folder / f"comparison{VIDEO_SUFFIX}", "compare_height": COMPARISON_HEIGHT}
        pictures = [read_reference(path) for path in references]
        if not is_clip:
            for name in ("max_crop", "keep_unchanged"):
                settings.pop(name, None)
        plan = plan_edit(
            read if isinstance(read, Footage) else source,
            prompt,
            **names,
            references=pictures,
            mask=mask,
            model=shlex.join([model, *loras]),
            **settings,
        )
        if plan.mask is not None and plan.mask.is_empty:
            raise LoomVideoError("Nothing may change: paint, or drag a box, where something is to.")
        options: dict[str, Any] = {"input": _argument(source.name), "prompt": prompt}
        options |= {"mask": None if mask is None else _argument(mask.name), "box": settings.get("boxes")}
        options["mask_invert"] = settings.get("mask_invert")
        options["preview" if is_preview else "output"] = result.name
        kind = "preview" if is_preview else "edit"
        run = Run(folder, plan, result, model, tuple(loras), _title(kind, prompt), is_watched=is_watched)
        return self._add(visit, run, plan, references, options | options_of(settings))

    def generate(
        self,
        visit: Visit,
        prompt: str,
        references: Sequence[Path] = (),
        model: str | None = None,
        loras: Sequence[str] = (),
        is_watched: bool = True,
        **settings: Any,
    ) -> Run:
        """
        Plans a generation, and lets it wait for its turn.

        Args:
            visit, references, model, loras, is_watched: as in `edit`.
            prompt: what to show.
            settings: the other settings of a generation; None for the model's own. One frame makes an image.

        Raises:
            LoomVideoError, LoomVideoInputError: if something is not allowed, or cannot be done.
        """
        model = model or self.models.names[0]
        self._check(visit, references, references, model, loras)
        settings = self._complete(model, settings)
        num_frames = settings.setdefault("num_frames", 81)
        if num_frames > self.limits.seconds * FRAMES_PER_SECOND + 1:
            raise LoomVideoError(
                f"{num_frames} frames are longer than the {self.limits.seconds:g} seconds that are made here: choose "
                "fewer."
            )
        folder = visit.folder / secrets.token_hex(4)
        result = folder / f"generated{'.png' if num_frames == 1 else VIDEO_SUFFIX}"
        pictures = [read_reference(path) for path in references]
        plan = plan_generation(prompt, result, references=pictures, **settings)
        options = {"prompt": prompt, "output": result.name, "frames": num_frames}
        run = Run(folder, plan, result, model, tuple(loras), _title("generate", prompt), is_watched=is_watched)
        return self._add(visit, run, plan, references, options | options_of(settings))

    def close(self) -> None:
        """Ends all runs."""
        self.runs.close()

    def _check(
        self, visit: Visit, files: Sequence[Path], references: Sequence[Path], model: str, loras: Sequence[str]
    ) -> None:
        self._check_owner(visit, files)
        self.models.check(model, loras)
        if len(references) > self.limits.references:
            raise LoomVideoError(
                f"{len(references)} references are more than the {self.limits.references} that are taken here: "
                "remove some."
            )
        num_live = sum(not run.is_over for run in visit.runs)
        if num_live >= self.limits.runs:
            raise LoomVideoError(
                f"{num_live} of your runs wait already, which is as many as can: wait for one, or cancel it."
            )

    def _check_owner(self, visit: Visit, files: Sequence[Path]) -> None:
        for file in files:
            if not visit.owns(file):
                raise LoomVideoError("That file is not one that you sent, or it is gone: choose it again.")

    def _complete(self, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        completed = complete_settings(find_model(model), settings)
        return {"seed": choose_seed(None)} | completed

    def _add(
        self,
        visit: Visit,
        run: Run,
        plan: EditPlan | GenerationPlan,
        references: Sequence[Path],
        options: Mapping[str, Any],
    ) -> Run:
        """Lets a run wait, whose result says how it was made: by these options of the command, and the run's own."""
        named = {"model": run.model, "lora": list(run.loras)}
        named["reference"] = [_argument(path.name) for path in references]
        command = "edit" if isinstance(plan, EditPlan) else "generate"
        comment = describe_result(command, named | dict(options), plan.settings)
        run.plan, run.command = replace(plan, comment=comment), json.loads(comment)["command"]
        self.runs.add(visit, run)
        visit.add(run)
        return run

    def _run(self, run: Run) -> Outcome | None:
        outcome = self._work(run.plan, run.model, run.loras, run.folder, run.result, run.is_watched)
        return outcome and replace(outcome, error=self.visits.without_folders(outcome.error))

    def _work_on(
        self,
        plan: EditPlan | GenerationPlan,
        model: str,
        loras: Sequence[str],
        folder: Path,
        result: Path,
        is_watched: bool,
    ) -> Outcome | None:
        def load() -> Any:
            pipe = self.models.load(model, loras)
            return edit_pipeline_of(pipe) if isinstance(plan, EditPlan) else pipe

        # With offloading, a sketch would send the transformer away, and fetch it again.
        return work(plan, load, folder, result, is_watched and self.models.levers.offload is None)


def _title(kind: str, prompt: str) -> str:
    return textwrap.shorten(f"{TITLES[kind]}: {prompt}", 100, placeholder=" ...")


def _argument(name: str) -> str:
    """A file's name as an argument of a command, which is no option."""
    return f"./{name}" if name.startswith("-") else name
