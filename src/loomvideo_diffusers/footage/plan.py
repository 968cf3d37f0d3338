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
"""The plan of an edit: all that can be refused is refused when it is made, before a model is loaded."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from ..errors import LoomVideoError
from ..media.decoding import PIXEL_FORMATS
from ..media.encoding import OutputPlan, check_footage_path, plan_output
from ..media.files import check_output_path, lock_beside
from ..media.images import IMAGE_SUFFIXES, is_image, read_image
from ..media.sequences import has_frame_number, is_sequence, sequence_files
from .geometry import Placement
from .masks import BoxLike, ClipMask, MaskSource, read_mask
from .settings import EditSettings
from .surveying import Footage, survey


# torch, diffusers and transformers take seconds to import, and a plan needs none of them.
if TYPE_CHECKING:
    import torch

    from ..pipelines import LoomVideoEditPipeline


@dataclass(frozen=True)
class Report:
    """
    What a run wrote.

    Attributes:
        files: each file, or the address of one that was sent elsewhere, with a few words on what it holds.
        seconds: how long each stage took.
    """

    files: Mapping[Path | str, str]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EditPlan:
    """
    A checked edit, made by `plan_edit`.

    Attributes:
        source: the clip or the image.
        settings: what to do with it.
        placement: where the clip's pictures lie in the model's frame; None for an image, which is not placed.
        output: how the result is written; None of a preview, and a path for an image.
        compare: how the source beside the result is written.
        contact_sheet, preview: image files of the source above the result.
        mask: what may change; None for all.
        mask_out: how the mask is written over the source, to be looked at: a video, or an image.
        comment: what the files say about themselves.
        model: what the pipeline is loaded from, LoRAs too: an edit is resumed only with the same model.
        notes: what a person should know before the edit runs, a sentence each.
    """

    source: Footage | PIL.Image.Image
    settings: EditSettings
    placement: Placement | None = None
    output: OutputPlan | Path | None = None
    compare: OutputPlan | None = None
    contact_sheet: Path | None = None
    preview: Path | None = None
    mask: ClipMask | None = None
    mask_out: OutputPlan | Path | None = None
    comment: str = ""
    model: str = ""
    notes: tuple[str, ...] = ()

    def run(
        self,
        pipe: "LoomVideoEditPipeline",
        negative_prompt_embeds: "torch.Tensor | None" = None,
        callback_on_step_end: Callable | None = None,
    ) -> Report:
        """
        Edits and writes.

        Memory does not grow with the length of a clip, except for its latents. They are saved beside the output after
        each step, and the same plan, run again after an interruption, resumes from there.

        Args:
            pipe: the editing pipeline.
            negative_prompt_embeds: what `pipe.encode_negative_prompt` returned for the negative prompt, `[1, layers,
                L, E]`, to encode it once for many edits.
            callback_on_step_end: called after each step, as in a pipeline's call, with the `latents`.

        Raises:
            LoomVideoError, LoomVideoInputError: if something does not fit the pipeline, or the clip cannot be read.
            OSError: if a file cannot be written; what was denoised is kept.
        """
        from .run import run_edit

        return run_edit(pipe, self, negative_prompt_embeds, callback_on_step_end)

    @property
    def duration(self) -> float:
        """The length of the clip in seconds; 0 of an image."""
        return 0.0 if isinstance(self.source, PIL.Image.Image) else float(len(self.source.times) / self.source.rate)

    @property
    def needs_source_pixels(self) -> bool:
        """Whether the result cannot be written without decoding the clip again."""
        assert isinstance(self.output, OutputPlan)
        assert self.placement is not None
        has_alpha = self.output.pixel_format in (PIXEL_FORMATS[False, True], PIXEL_FORMATS[True, True])
        has_pictures_of_both = self.compare is not None or self.contact_sheet is not None
        mixes_pixels = self.settings.keep_unchanged or self.mask is not None or self.placement.crops or has_alpha
        return mixes_pixels or has_pictures_of_both

    def digest(self) -> str:
        """A hash of all that the latents of a clip depend on."""
        assert isinstance(self.source, Footage)
        assert self.placement is not None
        path = self.source.path
        files = sequence_files(path) if is_sequence(path) else [path]
        of_pixels = ("keep_unchanged", "mask_feather")
        values = {name: value for name, value in vars(self.settings).items() if name not in of_pixels}
        values["references"] = [hashlib.sha256(image.tobytes()).hexdigest() for image in self.settings.references]
        values |= {
            "model": self.model,
            "num_frames": self.source.num_model_frames,
            "placement": asdict(self.placement),
            "mask": None if self.mask is None else self.mask.digest,
        }
        values["source"] = [
            [str(file.absolute()), status.st_size, status.st_mtime_ns] for file in files if (status := file.stat())
        ]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def plan_edit(
    source: str | os.PathLike | Footage,
    prompt: str,
    output: str | os.PathLike | None = None,
    *,
    references: Sequence[str | os.PathLike | PIL.Image.Image] = (),
    compare: str | os.PathLike | None = None,
    compare_height: int | None = None,
    contact_sheet: str | os.PathLike | None = None,
    preview: str | os.PathLike | None = None,
    num_frames: int | None = None,
    rate: Fraction | float | None = None,
    audio: str | None = None,
    mask: MaskSource | None = None,
    boxes: Iterable[BoxLike] = (),
    mask_invert: bool = False,
    mask_out: str | os.PathLike | None = None,
    lossless: bool = False,
    comment: str = "",
    model: str = "",
    **settings: Any,
) -> EditPlan:
    """
    Plans the edit of a clip of any length, size and rate, or of an image.

    A clip is decoded once to be checked, with a progress bar; it is not kept in memory. The result has the clip's
    size, times, colors and sound, or of an image its size rounded down to what the model takes.

    Args:
        source: a video, an image, the pattern of an image sequence such as `frames_%04d.png`, or a clip as `survey`
            returned it.
        prompt: the instruction.
        output: the file to write: of a clip one ending in one of `FOOTAGE_SUFFIXES` or the pattern of an image
            sequence, of an image one of `IMAGE_SUFFIXES`. It can be left out for a preview.
        references: images, or their files, that the prompt calls `@Image 1`, `@Image 2`, ...
        compare: a video of the source beside the result.
        compare_height: scale that video, an mp4, mov or mkv, down to so many lines and to what every browser plays:
            even sides, and 8 bits of color without alpha.
        contact_sheet: an image of the source above the result.
        preview: edit only six frames, as images, and write nothing but an image of the source's above the result's.
        num_frames: edit only so many frames from the clip's beginning.
        rate: frames a second of an image sequence, by default 24.
        audio: `copy` to copy the sound where the file can hold it and encode it elsewhere (the default), `encode` or
            `none`.
        mask, boxes, mask_invert: what may change, see `read_mask`. What is outside stays the source's, pixel for
            pixel.
        mask_out: a video or an image of the mask over the source, to be looked at.
        lossless: whether to write the very colors: to a .mkv, or to an image sequence of .png or .tif.
        comment: what the files are to say about themselves.
        model: what the pipeline is loaded from, LoRAs too: an interrupted edit is resumed only with the same model.
        **settings: the other fields of `EditSettings`.

    Raises:
        LoomVideoError: if a setting is out of range, a file cannot be read, or a file could not be written.
        LoomVideoInputError: if a prompt is blank, or is no text.
    """
    checked = EditSettings(prompt, **settings)
    if output is None and preview is None:
        raise LoomVideoError("An edit needs a file to write: give `output` or `preview`.")
    path = source.path if isinstance(source, Footage) else Path(source)
    given = {
        "output": output, "compare": compare, "contact_sheet": contact_sheet, "preview": preview, "mask_out": mask_out,
    }  # fmt: skip
    files = {name: Path(file) for name, file in given.items() if file is not None}
    masks = [mask] if isinstance(mask, (str, os.PathLike)) else []
    check_distinct(files.values(), [path, *map(Path, masks), *paths_among(references)])
    for name in ("contact_sheet", "preview"):
        if name in files:
            check_output_path(files[name], IMAGE_SUFFIXES)
    common: dict[str, Any] = {
        "settings": replace(checked, references=read_references(references)),
        "contact_sheet": files.get("contact_sheet"),
        "comment": comment,
        "model": model,
    }
    if not isinstance(source, Footage) and not is_sequence(path) and is_image(path):
        for_clips = {
            "preview": preview, "compare": compare, "num_frames": num_frames, "audio": audio, "rate": rate,
            "max_crop": checked.max_crop, "keep_unchanged": checked.keep_unchanged, "lossless": lossless,
        }  # fmt: skip
        for name, value in for_clips.items():
            if value:
                raise LoomVideoError(f"{path} is an image: leave out `{name}`, which is for videos.")
        for name in files.keys() & {"output", "mask_out"}:
            check_output_path(files[name], IMAGE_SUFFIXES, f"{path} is an image: ")
        image = read_image(path)
        common |= _plan_mask(image, mask, boxes, mask_invert, files)
        return EditPlan(image, output=files["output"], **common)

    _check_clip_outputs(files, f"{path} is no image: ")
    footage = _survey(source, num_frames, rate)
    common["placement"] = choose_placement(footage, checked)
    common |= _plan_mask(footage, mask, boxes, mask_invert, files)
    if preview is not None:
        if lossless:
            raise LoomVideoError("A preview is an image: leave out `lossless`, which is for the whole.")
        return EditPlan(footage, preview=files["preview"], **common | {"notes": (*footage.notes, *common["notes"])})
    outputs = _plan_outputs(footage, files, audio or "copy", compare_height, lossless)
    return EditPlan(footage, **common | outputs | {"notes": (*outputs["notes"], *common["notes"])})


def _check_clip_outputs(files: Mapping[str, Path], why: str) -> None:
    for name in files.keys() & {"output", "compare", "mask_out"}:
        if name == "mask_out" and _is_picture(files[name]):
            check_output_path(files[name], IMAGE_SUFFIXES)
            continue
        check_footage_path(files[name], why)
        with lock_beside(files[name]):
            pass  # If another run is writing it, that is noticed now and not after the model was loaded.


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not has_frame_number(path)


def _plan_mask(
    source: Footage | PIL.Image.Image,
    mask: MaskSource | None,
    boxes: Iterable[BoxLike],
    invert: bool,
    files: dict[str, Path],
) -> dict[str, Any]:
    """Reads the mask and plans how it is shown; returns attributes of the plan."""
    read, shown = read_mask(source, mask, boxes, invert), files.get("mask_out")
    if read is None and shown is not None:
        raise LoomVideoError("There is no mask to write to `mask_out`: give `mask` or a box.")
    planned: OutputPlan | Path | None = shown
    if shown is not None and isinstance(source, Footage) and not _is_picture(shown):
        planned = plan_output(replace(source, pixel_format=PIXEL_FORMATS[False, False], num_bits=8), shown, "none")
    notes = ("The mask is empty: nothing will change.",) if read is not None and read.is_empty else ()
    return {"mask": read, "mask_out": planned, "notes": notes}


def _survey(source: str | os.PathLike | Footage, num_frames: int | None, rate: Fraction | float | None) -> Footage:
    if isinstance(source, Footage):
        if num_frames is not None or rate is not None:
            raise LoomVideoError(f"{source.path} was surveyed already: give `num_frames` and `rate` to `survey`.")
        return source
    if rate is not None and not is_sequence(source):
        raise LoomVideoError(f"{source} has a rate of its own: leave out `rate`, which is for image sequences.")
    return survey(source, num_frames, show_progress=True, rate=rate)


def _plan_outputs(
    footage: Footage, files: dict[str, Path], audio: str, compare_height: int | None = None, lossless: bool = False
) -> dict[str, Any]:
    """Plans how the result, and the comparison with it, are written; returns attributes of the plan."""
    output, compare = plan_output(footage, files["output"], audio, lossless=lossless), None
    notes = [*footage.notes, *output.notes]
    if "compare" in files:
        shown, size = replace(footage, pixel_format=output.pixel_format), (2 * footage.width, footage.height)
        if compare_height is not None:
            shown = replace(footage, pixel_format=PIXEL_FORMATS[False, False], num_bits=8)
            scale = min(1, compare_height / footage.height)
            size = (4 * max(1, round(footage.width * scale / 2)), 2 * max(1, round(footage.height * scale / 2)))
        compare = plan_output(shown, files["compare"], audio, size)
        notes += [note for note in compare.notes if note not in notes]
    return {"output": output, "compare": compare, "notes": tuple(notes)}


def choose_placement(footage: Footage, settings: EditSettings) -> Placement:
    """Places the pictures of a clip in a frame of the size that was asked for, or of the nearest trained one."""
    from ..pipelines.loomvideo_frames import TRAINED_SIZES_480P, nearest_size

    width, height = settings.width, settings.height
    if width is None or height is None:
        sizes = TRAINED_SIZES_480P + [(height, width) for width, height in TRAINED_SIZES_480P]
        width, height = nearest_size(footage.width, footage.height, sizes)
    return Placement.of((footage.width, footage.height), width, height, settings.max_crop)


def read_references(references: Iterable[str | os.PathLike | PIL.Image.Image]) -> tuple[PIL.Image.Image, ...]:
    """Reads those of the references that are files."""
    return tuple(image if isinstance(image, PIL.Image.Image) else read_image(image) for image in references)


def paths_among(references: Iterable[str | os.PathLike | PIL.Image.Image]) -> list[Path]:
    return [Path(reference) for reference in references if not isinstance(reference, PIL.Image.Image)]


def check_distinct(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises a LoomVideoError if a file is to be written that is read, or written twice."""
    outputs = list(outputs)
    named = [identity(path) for path in (*outputs, *inputs)]
    for path in outputs:
        if named.count(identity(path)) > 1:
            raise LoomVideoError(
                f"{path} is named twice: give the source, the references and each result a name of their own."
            )


def identity(path: Path) -> tuple[int, int] | str:
    """The same for two paths of one file, whatever their names, whether it exists or is still to be written."""
    try:
        status = path.stat()
    except OSError:
        return os.path.normcase(path.resolve())
    return status.st_dev, status.st_ino
