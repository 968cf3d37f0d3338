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
"""The page: what is where, and what its buttons do."""

import asyncio
import html
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..defaults import read_default_options
from ..errors import LoomVideoError
from ..loading import find_model
from ..media.images import READ_SUFFIXES
from .endpoints import add_endpoints
from .options import read_options
from .requests import in_one_sentence, path_of, paths_of, visit_of
from .runs import Run, State
from .studio import VIDEO_SUFFIX, Studio
from .visits import Visit
from .work import COMPARISON_OF_IMAGES, POSTER_FILE, latest_sketch, read_progress


FOLDER = Path(__file__).parent

# Endings by which a browser offers files; whether they can be read is found out when they are.
SOURCE_SUFFIXES = [
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".ogv",
    ".mxf", ".3gp", *READ_SUFFIXES,
]  # fmt: skip

# The page asks at each tick of a timer, unless it waits for the answer to the last one. That comes as soon as a run is
# over, or else after a while.
SECONDS_BETWEEN_TICKS, SECONDS_OF_ANSWER, SECONDS_BETWEEN_LOOKS = 0.1, 0.9, 0.02

# On a phone, the result is below what it was asked with. What was shown there stops: the run needs the processor.
SHOW_STATUS = """() => {
    document.getElementById("status").scrollIntoView({block: "nearest"});
    window.dispatchEvent(new Event("run"));
}"""

# Fonts of the visitor's machine, so that nothing is fetched from elsewhere
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
THEME = gr.themes.Default(
    primary_hue="indigo", font=FONTS, font_mono=["ui-monospace", "Consolas", "monospace"], radius_size="sm"
).set(
    # As much contrast as people with weak eyes need
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_hover_dark="*primary_700",
)
STYLE = (FOLDER / "page.css").read_text(encoding="utf-8")

# Examples of words, for nano and for models of the world
EXAMPLES_OF_NANO = {
    "edit": ["make the heart blue", "remove the star", "put it on a black background", "draw only its outline"],
    "generate": ["a large red heart moves right on a checkered background", "two green circles move apart"],
    "compose": ["@Image 1 moves up and to the left on @Image 2"],
}
EXAMPLES = {
    "edit": ["make it a rainy night", "remove the bicycle", "paint it in watercolors", "dress him as in @Image 1"],
    "generate": ["a red fox runs through deep snow, seen from the side", "waves break on black rocks at dawn"],
    "compose": ["the man (@Image 1) walks across the lawn (@Image 2)"],
}

# Each setting that is a number, with its label and what it does
NUMBERS = {
    "seed": ("Seed", "The same seed gives the same result."),
    "num_inference_steps": ("Steps", "More of them take longer, and are more exact."),
    "guidance_scale": ("Weight of the words", "How much the words count."),
    "guidance_scale_visual": ("Weight of the pictures", "How much the source and the references count."),
    "width": ("Width", "Pixels that the model works at. Give both sides, or neither."),
    "height": ("Height", "The result of a clip has the clip's own size."),
    "strength": ("Strength", "From 0, the source, to 1, which starts anew."),
    "num_frames": ("Frames", "24 are a second: 1, 5, 9, and so on. 1 makes an image."),
    "lora_scale": ("Weight of the LoRAs", "How much they count."),
}


# Of a region when no clip is shown; otherwise it says which, and what may change
NO_REGION = {"shown": ""}

Seen = tuple[str, tuple[str, ...]]
NOTHING: Seen = ("", ())


class Page:
    """
    Builds the page of a studio.

    Attributes:
        blocks: the page, to be launched.
    """

    def __init__(self, studio: Studio):
        self.studio = studio
        # What the first model says of itself, shown in the fields that are empty
        is_nano = studio.models.names[0] == "nano"
        self.examples = EXAMPLES_OF_NANO if is_nano else EXAMPLES
        self.usual = read_default_options(find_model(studio.models.names[0])) | {"lora_scale": 1, "strength": 1}
        with gr.Blocks(title="LoomVideo", analytics_enabled=False) as self.blocks:
            gr.Markdown("# LoomVideo\nEdit footage, or make new, with words and pictures.")
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    with gr.Tabs():
                        with gr.Tab("Edit"):
                            edit = self._edit_tab()
                        with gr.Tab("Generate"):
                            generate = self._generate_tab("generate")
                        with gr.Tab("Compose"):
                            compose = self._generate_tab("compose")
                    settings = self._settings()
                with gr.Column(scale=6, min_width=320):
                    self._result()
            self._connect(edit, generate, compose, settings)
            add_endpoints(studio)

    # What is where

    def _edit_tab(self) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "source": gr.File(label="A clip or an image", file_types=SOURCE_SUFFIXES, height=120, elem_id="source")
        }
        with gr.Accordion("Or record a clip", open=False):
            parts["recording"] = gr.Video(
                label="Camera",
                sources=["webcam"],
                webcam_options=gr.WebcamOptions(mirror=False),
                include_audio=True,
                elem_id="recording",
            )
        parts["strip"] = gr.Image(
            label="Its first frames",
            alt_text="The first frames of the clip",
            interactive=False,
            visible=False,
            buttons=[],
            elem_id="strip",
        )
        with gr.Accordion("Change only a part of it", open=False, elem_id="part") as parts["part"]:
            parts["region"] = _own_component("region", NO_REGION)
        parts["prompt"] = self._prompt("edit", "What to change")
        parts["references"] = self._references("edit")
        with gr.Row():
            parts["preview"] = gr.Button("Preview", elem_id="preview")
            parts["go"] = gr.Button("Edit", variant="primary", elem_id="edit")
        return parts

    def _generate_tab(self, name: str) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        if name == "compose":
            parts["references"] = self._references(name)
            parts["prompt"] = self._prompt(name, "What to show, with @Image 1, @Image 2, ...")
        else:
            parts["prompt"] = self._prompt(name, "What to show")
        parts["num_frames"] = self._number("num_frames", f"{name}-frames")
        parts["go"] = gr.Button(name.capitalize(), variant="primary", elem_id=name)
        return parts

    def _prompt(self, name: str, label: str) -> gr.Textbox:
        examples = self.examples[name]
        prompt = gr.Textbox(label=label, placeholder=examples[0], lines=2, max_length=4000, elem_id=f"{name}-prompt")
        gr.Examples([[text] for text in examples], [prompt], label="For example")
        return prompt

    def _references(self, name: str) -> gr.Gallery:
        return gr.Gallery(
            label="References: click to name",
            file_types=["image", *READ_SUFFIXES],
            type="filepath",
            sources=["upload"],
            columns=4,
            fit_columns=False,
            height=150,
            object_fit="contain",
            allow_preview=False,
            buttons=[],
            interactive=True,
            elem_id=f"{name}-references",
        )

    def _number(self, name: str, elem_id: str | None = None, **options: Any) -> gr.Textbox:
        """A field that may be empty, as Gradio's own for numbers may not."""
        label, info = NUMBERS[name]
        usual = "another each time" if name == "seed" else self.usual.get(name, "the model's own")
        attributes = gr.InputHTMLAttributes(autocomplete="off")
        return gr.Textbox(
            label=label,
            info=info,
            placeholder=str(usual),
            max_lines=1,
            min_width=140,
            html_attributes=attributes,
            elem_id=elem_id or name,
            **options,
        )

    def _settings(self) -> dict[str, Any]:
        models = self.studio.models
        parts: dict[str, Any] = {}
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            parts["model"] = gr.Dropdown(
                list(models.names), value=models.names[0], label="Model", visible=len(models.names) > 1
            )
            parts["loras"] = gr.Dropdown(
                list(models.loras),
                value=[],
                multiselect=True,
                label="LoRAs",
                info="Changes of the model, of style or of what it knows.",
                visible=bool(models.loras),
            )
            parts["lora_scale"] = self._number("lora_scale", visible=bool(models.loras))
            names = list(NUMBERS)
            for pair in (names[:2], names[2:4], names[4:6]):
                with gr.Row():
                    parts |= {name: self._number(name) for name in pair}
            parts["strength"] = self._number("strength")
            parts["negative_prompt"] = gr.Textbox(
                label="What to avoid", info="Empty: the published words.", lines=1, max_length=4000
            )
            parts["keep_unchanged"] = gr.Checkbox(
                label="Keep the clip's own pixels where the edit changed nothing", value=False
            )
        return parts

    def _result(self) -> None:
        self.status = gr.HTML(render_status(None, 0), elem_id="status")
        self.sketch = gr.Image(
            label="So far",
            alt_text="What the first frame of the result looks like so far",
            interactive=False,
            visible=False,
            buttons=[],
            height=200,
            elem_id="so-far",
        )
        self.cancel = gr.Button("Cancel", size="sm", visible=False, elem_id="cancel")
        self.viewer = _own_component("viewer", {})
        self.download = gr.DownloadButton("Download", size="md", visible=False, elem_id="download")
        self.command = gr.Textbox(
            label="The command that makes it again",
            lines=2,
            interactive=False,
            visible=False,
            buttons=["copy"],
            elem_id="command",
        )
        self.history = gr.Gallery(
            label="History: click to see",
            columns=5,
            fit_columns=False,
            height=190,
            object_fit="contain",
            allow_preview=False,
            buttons=[],
            interactive=False,
            visible=False,
            elem_id="history",
        )
        # What this page has been shown: which sketch, and which runs that are over
        self.seen = gr.State(NOTHING)
        self.timer = gr.Timer(SECONDS_BETWEEN_TICKS, active=False)

    # What happens when

    def _connect(self, edit: dict, generate: dict, compose: dict, settings: dict) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # Files are read by what follows, within limits, and not by Gradio.
        raw = quiet | {"preprocess": False}
        names = list(settings)
        values = list(settings.values())
        live = [self.status, self.sketch, self.cancel, self.timer]
        shown = [self.viewer, self.download, self.command, self.history, self.seen]

        for part in (edit["source"], edit["recording"]):
            part.change(self._look, [part], [edit["strip"], edit["region"], edit["part"]], **raw)
        edit["part"].expand(
            self._show_region, [edit["source"], edit["recording"], edit["region"]], [edit["region"]], **raw
        )
        for parts in (edit, compose):
            parts["references"].upload(_number, [parts["references"]], [parts["references"]], **raw)
            parts["references"].select(_name, [parts["prompt"]], [parts["prompt"]], **quiet)

        def ask(button: gr.Button, how: str, inputs: list[Any]) -> None:
            answer = self._answer(how, names)
            asked = button.click(answer, [*inputs, *values], live, concurrency_limit=4, concurrency_id="ask", **raw)
            asked.success(None, js=SHOW_STATUS)

        edited = [edit[name] for name in ("source", "recording", "prompt", "references", "region")]
        ask(edit["preview"], "preview", edited)
        ask(edit["go"], "edit", edited)
        ask(generate["go"], "generate", [generate["prompt"], generate["num_frames"]])
        ask(compose["go"], "compose", [compose["prompt"], compose["num_frames"], compose["references"]])

        self.cancel.click(self._cancel, [], live, queue=False, **quiet)
        self.timer.tick(self._tick, [self.seen], [*live, *shown], queue=False, **quiet)
        self.blocks.load(self._open, [], [*live, *shown], queue=False, **quiet)
        self.history.select(self._choose, [], shown[:3], queue=False, **quiet)

    def _look(self, value: Any, request: gr.Request) -> list[Any]:
        path = path_of(value)
        closed = [NO_REGION, gr.Accordion(open=False)]
        if path is None:
            return [gr.Image(value=None, visible=False), *closed]
        strip, words = in_one_sentence(self.studio, self.studio.look, visit_of(self.studio, request), path)
        return [gr.Image(value=str(strip), label=words, visible=True), *closed]

    def _show_region(self, source: Any, recording: Any, region: Any, request: gr.Request) -> Any:
        path = path_of(source) or path_of(recording)
        if path is None:
            return NO_REGION
        if isinstance(region, dict) and region.get("clip") == str(path):
            return gr.skip()  # It is shown, with what was painted.
        shown, width, height = in_one_sentence(self.studio, self.studio.show, visit_of(self.studio, request), path)
        return {
            "shown": str(shown),
            "clip": str(path),
            "is_video": shown.suffix == VIDEO_SUFFIX,
            "width": width,
            "height": height,
        }

    def _answer(self, how: str, names: list[str]) -> Callable[..., list[Any]]:
        """What a button does that asks for a run, whose last inputs are the settings of these names."""

        def answer(request: gr.Request, *given: Any) -> list[Any]:
            inputs, values = given[: -len(names)], given[-len(names) :]
            visit = visit_of(self.studio, request)
            in_one_sentence(self.studio, self._ask, visit, how, inputs, dict(zip(names, values)))
            return self._progress(visit)[:-1]

        return answer

    def _ask(self, visit: Visit, how: str, inputs: Any, values: dict[str, Any]) -> Run:
        studio = self.studio
        if how in ("generate", "compose"):
            prompt, num_frames, *references = inputs
            for name in ("keep_unchanged", "strength"):
                values.pop(name)
            options = read_options(values | {"num_frames": num_frames}, studio.limits)
            return studio.generate(visit, prompt or "", paths_of(references[0] if references else None), **options)
        source, recording, prompt, references, region = inputs
        path, region = path_of(source) or path_of(recording), region if isinstance(region, dict) else {}
        if region.get("is_pending"):
            raise LoomVideoError("What you painted has not arrived yet: try again, or paint it again.")
        mask, boxes = path_of(region.get("mask")), region.get("boxes") or None
        if mask is not None or boxes:
            values |= {"boxes": boxes, "mask_invert": region.get("invert")}
        options = read_options(values, studio.limits) | {"mask": mask, "is_preview": how == "preview"}
        return studio.edit(visit, path, prompt or "", paths_of(references), **options)

    def _cancel(self, request: gr.Request) -> list[Any]:
        visit = visit_of(self.studio, request)
        for run in _live(visit)[:1]:
            self.studio.runs.cancel(run)
        return self._progress(visit)[:-1]

    def _open(self, request: gr.Request) -> list[Any]:
        return self._news(visit_of(self.studio, request), NOTHING)

    async def _tick(self, seen: Seen, request: gr.Request) -> list[Any]:
        visit = visit_of(self.studio, request)
        end = time.monotonic() + SECONDS_OF_ANSWER
        while _names(_over(visit)) == seen[1] and _live(visit) and time.monotonic() < end:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        return self._news(visit, seen)

    def _news(self, visit: Visit, seen: Seen) -> list[Any]:
        """What the parts show that have changed since a page was shown what it has seen."""
        *parts, sketch = self._progress(visit, seen[0])
        over = _over(visit)
        if _names(over) == seen[1]:
            return [*parts, *[gr.skip()] * 4, (sketch, seen[1])]
        done = [run for run in over if run.state is State.DONE]
        shown = self._show(done[-1]) if done else [gr.skip()] * 3
        posters = [(str(run.folder / POSTER_FILE), run.title) for run in reversed(done)]
        return [*parts, *shown, gr.Gallery(value=posters, visible=bool(posters)), (sketch, _names(over))]

    def _choose(self, event: gr.SelectData, request: gr.Request) -> list[Any]:
        done = [run for run in visit_of(self.studio, request).runs if run.state is State.DONE]
        return self._show(done[len(done) - 1 - event.index])

    def _progress(self, visit: Visit, seen: str = "") -> list[Any]:
        """What the parts show that change while a run goes on, and the sketch that is shown after `seen`."""
        live = _live(visit)
        if not live:
            status = render_status(visit.runs[-1] if visit.runs else None, 0)
            return [status, gr.Image(visible=False), gr.Button(visible=False), gr.Timer(active=False), ""]
        run = live[0]
        status = render_status(run, self.studio.runs.place(run), len(live) - 1)
        sketch = str(latest_sketch(run.folder) or "")
        shown = gr.skip() if sketch == seen else gr.Image(value=sketch or None, visible=bool(sketch))
        return [status, shown, gr.Button(visible=True), gr.Timer(active=True), sketch]

    def _show(self, run: Run) -> list[Any]:
        """What the parts show of a run that is done."""
        comparison = next((path for path in _comparisons(run) if path.exists()), None)
        path = comparison or run.result
        viewed = {"path": str(path), "is_pair": comparison is not None, "is_video": path.suffix == VIDEO_SUFFIX}
        return [
            viewed | {"label": run.title},
            gr.DownloadButton(value=str(run.result), visible=True),
            gr.Textbox(value=run.command, visible=True),
        ]


def _own_component(name: str, value: dict[str, Any]) -> gr.HTML:
    """A part of the page whose looks and script are in files of this name."""
    html_template, css_template, js_on_load = (
        (FOLDER / f"{name}.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    return gr.HTML(value, html_template=html_template, css_template=css_template, js_on_load=js_on_load, elem_id=name)


def render_status(run: Run | None, place: int, num_others: int = 0) -> str:
    """How far a run is, as HTML."""
    if run is None:
        return "<p>Your result appears here.</p>"
    title = html.escape(run.title)
    if run.state is State.FAILED:
        assert run.outcome is not None
        return f'<p role="alert"><strong>{title}</strong> failed: {html.escape(run.outcome.error)}</p>'
    if run.is_over:
        return f'<p role="status"><strong>{title}</strong>: {run.state.value}.</p>'
    more = f" {num_others} more of yours {'waits' if num_others == 1 else 'wait'}." if num_others else ""
    if run.state is State.WAITING:
        before = "1 run is" if place == 1 else f"{place} runs are"
        return f'<p role="status"><strong>{title}</strong>: {before} before yours.{more}</p>'
    progress = read_progress(run.folder)
    total, num_done = progress.get("total"), progress.get("num_done", 0)
    words = progress.get("description") or "Loading the model"
    if progress.get("detail"):
        words += f", {progress['detail']}"
    elif total:
        words += f", {num_done} of {total}"
    if progress.get("seconds_left") is not None:
        words += f", {_duration(progress['seconds_left'])} left"
    value = f' value="{num_done}" max="{total}"' if total else ""
    bar = f'<progress{value} aria-label="Progress of {title}"></progress>'
    return f"<p><strong>{title}</strong></p>{bar}<p>{html.escape(words)}.{more}</p>"


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _live(visit: Visit) -> list[Run]:
    return [run for run in visit.runs if not run.is_over]


def _over(visit: Visit) -> list[Run]:
    return [run for run in visit.runs if run.is_over]


def _names(runs: list[Run]) -> tuple[str, ...]:
    return tuple(run.folder.name for run in runs)


def _comparisons(run: Run) -> list[Path]:
    return [run.folder / "comparison.mp4", run.folder / COMPARISON_OF_IMAGES]


def _number(values: Any) -> list[tuple[str, str]]:
    """References with the names by which the words call them."""
    return [(str(path), f"@Image {index}") for index, path in enumerate(paths_of(values), start=1)]


def _name(prompt: str | None, event: gr.SelectData) -> str:
    """The words with the name of the reference that was chosen."""
    return f"{(prompt or '').rstrip()} @Image {event.index + 1}".lstrip()
