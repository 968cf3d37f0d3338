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
"""The page in a real browser, as people use it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from clips import make_clip
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from loomvideo_diffusers.footage import read_frames, survey


CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium, which `make test` installs")

# Where the pictures of the page go that people look at
PICTURES = os.environ.get("LOOMVIDEO_PAGE_PICTURES")

# In milliseconds
TIMEOUT = 20_000
expect.set_options(timeout=TIMEOUT)

# The names of what the keyboard is in
ANCESTORS = """() => {
    const names = [];
    for (let part = document.activeElement; part; part = part.parentElement) if (part.id) names.push(part.id);
    return names;
}"""

# What a canvas shows
PIXELS = """canvas => {
    const small = document.createElement("canvas");
    small.width = small.height = 96;
    const context = small.getContext("2d");
    context.drawImage(canvas, 0, 0, 96, 96);
    return [...context.getImageData(0, 0, 96, 96).data];
}"""

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page's address, and the folder in which all its files are."""
    folder = tmp_path_factory.mktemp("server")
    command = [Path(sys.executable).parent / "loomvideo", "app", "--max-seconds", "3", "--max-megabytes", "2"]
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process.stdout.readline().split()[-1], folder
        process.terminate()
    assert not list(folder.glob("loomvideo-*"))


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser):
    """Opens the page as another visitor each time. No script may fail, and nothing may come from elsewhere."""
    problems, contexts = [], []

    def note_others(address):
        if not address.startswith((server[0], "data:", "blob:")):
            problems.append(address)

    def visit(size=WIDE, **options) -> Page:
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((server[0], "data:", "blob:")) or problems.append(request.url),
        )
        page.goto(server[0])
        page.wait_for_selector("#edit")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "my clip.mp4", num_frames=17, size=(96, 96))


def choose(page, clip):
    page.set_input_files("#source input[type=file]", clip)
    page.wait_for_selector("#strip img")


def set_steps(page, steps):
    page.click("#settings button")
    page.fill("#num_inference_steps textarea, #num_inference_steps input", str(steps))
    page.fill("#seed textarea, #seed input", "3")


def picture(page, name):
    if PICTURES:
        page.wait_for_timeout(600)
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def folders_of_runs(folder):
    return {path for path in folder.glob("loomvideo-*/visits/*/*") if path.is_dir()}


def test_an_edit_from_the_picker_to_the_download(visit, server, clip, tmp_path):
    page = visit()
    expect(page.locator("#status")).to_have_text("Your result appears here.")
    picture(page, "empty")
    choose(page, clip)
    expect(page.locator("#strip")).to_contain_text("clip.mp4: 96 × 96, 0.7 seconds")

    # References, the second of which is clicked into the words
    for name, color in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / name)
    page.set_input_files("#edit-references input[type=file]", [tmp_path / "red.png", tmp_path / "blue.png"])
    expect(page.locator("#edit-references")).to_contain_text("@Image 2")
    page.fill("#edit-prompt textarea", "make it as blue as")
    page.locator("#edit-references button:has(img[src])").nth(1).click()
    expect(page.locator("#edit-prompt textarea")).to_have_value("make it as blue as @Image 2")

    set_steps(page, 2)
    page.click("#preview")
    page.wait_for_selector("#download:visible")
    expect(page.locator("#status")).to_have_text("Preview: make it as blue as @Image 2: done.")
    picture(page, "preview")

    page.click("#edit")
    expect(page.locator("#status")).to_have_text("Edit: make it as blue as @Image 2: done.")
    expect(page.locator("#history img")).to_have_count(2)
    with page.expect_download() as download:
        page.click("#download")
    result = tmp_path / "result.mp4"
    download.value.save_as(result)
    assert re.fullmatch(r"my.clip-edited\.mp4", download.value.suggested_filename)
    with av.open(str(result)) as after, av.open(str(clip)) as before:
        assert after.streams.video[0].frames == 17
        assert [bytes(packet) for packet in after.demux(audio=0)] == [
            bytes(packet) for packet in before.demux(audio=0)
        ]
    command = page.input_value("#command textarea")
    assert re.match(
        r"loomvideo edit '?my.clip.mp4'? 'make it as blue as @Image 2' --reference red.png blue.png", command
    )

    # Before and after in one picture, on both sides of a line that the keyboard moves
    canvas, divide = page.locator("#viewer canvas"), page.locator("#viewer [name=divide]")
    page.click("#viewer [name=play]")
    frames = {}
    for key in ("Home", "End"):
        divide.press(key)
        page.wait_for_timeout(100)
        frames[key] = np.asarray(
            canvas.evaluate("""canvas => [...canvas.getContext("2d")
            .getImageData(0, 0, canvas.width, canvas.height).data]""")
        ).reshape(480, 480, 4)[2::5, 2::5, :3]
    shown = [np.abs(frame - frames["End"]).mean() for frame in read_frames(survey(clip))]
    assert min(shown) < 8
    edited = [np.abs(frame - frames["Home"]).mean() for frame in read_frames(survey(result))]
    assert min(edited) < 8
    page.click("#viewer [name=beside]")
    page.wait_for_timeout(100)
    assert canvas.evaluate("canvas => [canvas.width, canvas.height]") == [960, 480]
    picture(page, "edit")

    # An earlier result
    page.locator("#history button:has(img[src])").nth(1).click()
    expect(page.locator("#command textarea")).to_have_value(re.compile("--preview"))


def test_bad_files_and_an_end(visit, server, clip, tmp_path):
    page = visit()
    page.click("#edit")
    expect(page.locator(".toast-body").last).to_contain_text("Choose a clip or an image first.")
    (tmp_path / "notes.mp4").write_text("no video")
    page.set_input_files("#source input[type=file]", tmp_path / "notes.mp4")
    expect(page.locator(".toast-body").last).to_contain_text("notes.mp4 cannot be read as a video")
    page.click("#source button[aria-label='Clear'], #source button[aria-label='Remove']")
    page.set_input_files("#source input[type=file]", make_clip(tmp_path / "long.mp4", num_frames=120, layout=None))
    expect(page.locator(".toast-body").last).to_contain_text("long.mp4 is longer than the 3 seconds")
    picture(page, "too-long")
    page.click("#source button[aria-label='Clear'], #source button[aria-label='Remove']")

    choose(page, clip)
    page.fill("#edit-prompt textarea", "<img src=x onerror=alert(1)> blue")
    set_steps(page, 200)
    earlier = folders_of_runs(server[1])
    page.click("#edit")
    expect(page.locator("#status")).to_contain_text("Denoising, 1")
    page.wait_for_selector("#so-far img")
    picture(page, "progress")
    page.reload()
    expect(page.locator("#status")).to_contain_text("Denoising")
    assert len(folders_of_runs(server[1]) - earlier) == 1
    page.click("#cancel")
    expect(page.locator("#status")).to_have_text("Edit: <img src=x onerror=alert(1)> blue: cancelled.")
    expect(page.locator("#cancel")).to_be_hidden()
    assert folders_of_runs(server[1]) == earlier
    assert page.locator("#status img").count() == 0


def reddish(pixels):
    """Where the overlay is, in 96 x 96 pixels of a canvas, over what is gray of the clip."""
    pixels = np.array(pixels).reshape(96, 96, 4).astype(int)
    return pixels[..., 0] > pixels[..., 1] + 60


def drag(page, begin, end):
    """Moves the pressed mouse from one place of the region to another; both are shares of the picture."""
    page.locator("#region canvas").scroll_into_view_if_needed()
    box = page.locator("#region canvas").bounding_box()
    for index, (x, y) in enumerate((begin, end)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        (page.mouse.down, page.mouse.up)[index]()


def told(page, words):
    expect(page.locator("#region [data-told], #region[data-told]").first).to_have_attribute(
        "data-told", re.compile(re.escape(words))
    )


def edited_frames(page, clip, tmp_path):
    """Runs an edit of a clip. Returns its frames before and after it."""
    page.click("#edit")
    expect(page.locator("#status")).to_have_text("Edit: blue: done.")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "result.mp4")
    return [np.stack(list(read_frames(survey(path)))).astype(int) for path in (clip, tmp_path / "result.mp4")]


def test_a_part_of_a_clip(visit, clip, tmp_path):
    """A box that moves, and paint, are seen over the clip, and nothing else changes."""
    page = visit()
    page.click("#part button")
    expect(page.locator("#region")).to_contain_text("Choose a clip or an image first.")
    page.click("#part button")
    choose(page, clip)
    page.fill("#edit-prompt textarea", "blue")
    set_steps(page, 1)
    page.click("#part button")
    page.wait_for_selector("#region canvas:visible")
    page.wait_for_function("document.querySelector('#region canvas').width >= 288")
    page.click("#region [name=box]")
    drag(page, (0.004, 0.004), (0.25, 0.5))
    told(page, '"boxes":["0,0,24,48"]')
    page.locator("#region [name=time]").fill("1000")
    page.wait_for_timeout(200)
    drag(page, (0.5, 0.5), (0.75, 1))
    told(page, '"48,48,24,48@')
    shown = page.locator("#region canvas").evaluate(PIXELS)
    assert reddish(shown)[60:, 50:70].all()
    assert not reddish(shown)[:20].any()
    picture(page, "part")
    before, after = edited_frames(page, clip, tmp_path)
    assert np.abs(after - before)[0, :, 30:].max() < 30
    command = page.input_value("#command textarea")
    assert re.search(r"--box 0,0,24,48@0 48,48,24,48@0\.\d+", command)

    page.click("#region [name=brush]")
    drag(page, (0.75, 0.1), (0.75, 0.9))
    told(page, '"isPainted":true')
    page.check("#region [name=invert]")
    told(page, '"invert":true')
    before, after = edited_frames(page, clip, tmp_path)
    assert np.abs(after - before)[:, 20:76, 69:75].max() < 30
    assert re.search(r"--mask mask\.png --mask-invert", page.input_value("#command textarea"))

    # It is there after the panel was closed, and gone when another clip is shown.
    page.click("#part button")
    page.click("#part button")
    page.wait_for_timeout(500)
    shown = page.locator("#region canvas").evaluate(PIXELS)
    assert reddish(shown)[50:70, :60].any()

    # What could not be sent is not left out.
    page.route("**/upload*", lambda route: route.abort())
    drag(page, (0.2, 0.1), (0.2, 0.9))
    page.wait_for_timeout(500)
    page.click("#edit")
    expect(page.locator(".toast-body").last).to_contain_text("What you painted has not arrived yet")
    page.unroute("**/upload*")

    page.fill("#region [name=boxes]", "8,8,16,16")
    page.press("#region [name=boxes]", "Enter")
    told(page, '"boxes":["8,8,16,16"],"isPainted":false')
    page.click("#region [name=clear]")
    told(page, '"boxes":[],"isPainted":false')
    page.click("#region [name=eraser]")
    drag(page, (0.2, 0.1), (0.2, 0.9))
    page.wait_for_timeout(300)
    told(page, '"boxes":[],"isPainted":false')


@pytest.mark.slow
def test_two_visitors_at_once(visit, clip):
    pages = [visit(), visit()]
    for page, words in zip(pages, ("red", "blue")):
        choose(page, clip)
        page.fill("#edit-prompt textarea", words)
        set_steps(page, 10)
        page.click("#edit")
    expect(pages[1].locator("#status")).to_contain_text("1 run is before yours.")
    for page, words in zip(pages, ("red", "blue")):
        expect(page.locator("#status")).to_have_text(f"Edit: {words}: done.")
        expect(page.locator("#history img")).to_have_count(1)
    address = pages[0].locator("#history img").get_attribute("src")
    assert pages[0].request.get(address).status == 200
    assert pages[1].request.get(address).status == 403


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_everybody_can_use_it(scheme, size, visit, clip, tmp_path):
    """axe finds nothing serious, nothing is wider than the window, and the keyboard reaches everything."""
    page = visit(size, color_scheme=scheme, has_touch=size is PHONE)
    choose(page, clip)
    page.click("#part button")
    page.wait_for_selector("#region canvas:visible")
    set_steps(page, 1)
    page.fill("#edit-prompt textarea", "blue")
    page.click("#edit")
    page.wait_for_selector("#download:visible")
    for tab in ("Generate", "Compose", "Edit"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        found = Axe().run(page).response["violations"]
        serious = {
            one["id"]: [node["html"][:200] for node in one["nodes"]]
            for one in found
            if one["impact"] in ("serious", "critical")
        }
        assert not serious, json.dumps(serious, indent=1)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    picture(page, f"{'phone' if size is PHONE else 'wide'}-{scheme}")
    page.locator("body").click(position={"x": 1, "y": 1})
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached |= set(page.evaluate(ANCESTORS))
    assert {"edit", "preview", "download", "viewer", "source", "history", "region", "edit-prompt", "seed"} <= reached


@pytest.mark.slow
def test_references_and_words_of_a_new_video(visit, tmp_path):
    page = visit()
    page.get_by_role("tab", name="Generate").click()
    page.get_by_role("button", name="two green circles move apart").click()
    expect(page.locator("#generate-prompt textarea")).to_have_value("two green circles move apart")
    set_steps(page, 2)
    page.fill("#generate-frames textarea, #generate-frames input", "5")
    page.click("#generate")
    expect(page.locator("#status")).to_have_text("New: two green circles move apart: done.")
    assert page.locator("#viewer [name=divide]").is_hidden()
    page.get_by_role("tab", name="Compose").click()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    page.set_input_files("#compose-references input[type=file]", tmp_path / "red.png")
    expect(page.locator("#compose-references")).to_contain_text("@Image 1")
    page.locator("#compose-references button:has(img[src])").first.click()
    expect(page.locator("#compose-prompt textarea")).to_have_value("@Image 1")
    page.fill("#compose-frames textarea, #compose-frames input", "1")
    page.click("#compose")
    expect(page.locator("#status")).to_have_text("New: @Image 1: done.")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "generated.png"


@pytest.mark.slow
def test_a_clip_from_the_camera(visit):
    page = visit(permissions=["camera", "microphone"])
    page.get_by_role("button", name="Or record a clip").click()
    page.click("#recording button[title='grant webcam access'], #recording button:has-text('Click to Access Webcam')")
    record = page.locator("#recording button[aria-label='start recording'], #recording .button-wrap button").first
    record.click()
    page.wait_for_timeout(1500)
    page.locator("#recording button[aria-label='stop recording'], #recording .button-wrap button").first.click()
    page.wait_for_selector("#strip img")
    page.fill("#edit-prompt textarea", "blue")
    set_steps(page, 1)
    page.click("#edit")
    expect(page.locator("#status")).to_have_text("Edit: blue: done.", timeout=3 * TIMEOUT)
    with page.expect_download() as download:
        page.click("#download")
    with av.open(download.value.path()) as container:
        assert len(container.streams.audio) == 1
