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
"""The page over HTTP: what its programs get, and what it keeps from those who ask for more."""

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
import torch
from clips import make_clip
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from loomvideo_diffusers import LoomVideoPipeline, LoomVideoTransformer3DModel
from loomvideo_diffusers.app import Limits, Models, serve
from loomvideo_diffusers.app.guard import COOKIE
from loomvideo_diffusers.app.runs import Run, Runs, State
from loomvideo_diffusers.app.server import read_passwords
from loomvideo_diffusers.app.visits import Visits
from loomvideo_diffusers.app.work import Outcome
from loomvideo_diffusers.cli import main
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.footage import read_frames, survey
from loomvideo_diffusers.media import read_comment


LIMITS = Limits(megabytes=2, seconds=2, megapixels=0.1, references=2, steps=20, runs=3)
SMALL = {"height": 96, "width": 96, "num_inference_steps": 12, "guidance_scale": 2.5, "guidance_scale_visual": 2.5}
QUICK = {"num_inference_steps": 1, "guidance_scale": 1, "guidance_scale_visual": 1, "seed": 3}
SECRETS = ["a" * 40, "b" * 40]


@pytest.fixture(scope="module")
def address():
    with serve(Models(["nano"]), limits=LIMITS) as address:
        yield address.rstrip("/")


@pytest.fixture
def visitors(address):
    """Two visitors, as they come with a browser's cookies."""
    with (
        httpx.Client(base_url=address, cookies={COOKIE: SECRETS[0]}) as one,
        httpx.Client(base_url=address, cookies={COOKIE: SECRETS[1]}) as other,
    ):
        yield one, other


def upload(visitor, path):
    response = visitor.post("/gradio_api/upload", files={"files": (Path(path).name, Path(path).read_bytes())})
    assert response.status_code == 200, response.text
    return response.json()[0]


def file_of(path, url=None):
    return {"path": path, "url": url, "meta": {"_type": "gradio.FileData"}}


def ask(visitor, clip, **options):
    """Calls an endpoint as any program could. Returns the events that it is sent."""
    data = [clip, "make it blue", [], False, *([None] * 6), False, None, None, [], None, None, None, [], None, None]
    names = ["seed", "num_inference_steps", "guidance_scale", "guidance_scale_visual", "height", "width"]
    for place, name in enumerate(names, start=4):
        data[place] = options.pop(name, QUICK.get(name))
    for name, value in options.items():
        data[{"references": 2, "model": 12, "loras": 13}[name]] = value
    response = visitor.post("/gradio_api/call/edit", json={"data": data})
    if response.status_code != 200:
        return response
    return visitor.get(f"/gradio_api/call/edit/{response.json()['event_id']}", timeout=60).text


def test_programs(address, tmp_path):
    """An edit has the clip's size and sound, says how it was made, and the same seed makes the same again."""
    clip, image = make_clip(tmp_path / "my clip.mp4", num_frames=9, size=(96, 96)), tmp_path / "red.png"
    Image.new("RGB", (32, 32), "red").save(image)
    client = Client(address, verbose=False, download_files=tmp_path / "results")
    files = {"clip": handle_file(clip), "references": [handle_file(image)]}
    results = [client.predict(prompt="as in @Image 1", **files, **QUICK, api_name="/edit") for _ in range(2)]
    assert Path(results[0]).name == "my_clip-edited.mp4" or Path(results[0]).name == "my clip-edited.mp4"
    assert Path(results[0]).read_bytes() == Path(results[1]).read_bytes()
    with av.open(results[0]) as container:
        assert (container.streams.video[0].width, container.streams.video[0].frames) == (96, 9)
        assert len(container.streams.audio) == 1
    command = json.loads(read_comment(results[0]))["command"]
    assert re.match(r"loomvideo edit '?my.clip.mp4'? 'as in @Image 1' --reference red.png --output ", command)
    assert "--seed 3" in command

    sheet = client.predict(prompt="blue", clip=files["clip"], is_preview=True, **QUICK, api_name="/edit")
    assert Image.open(sheet).size == (6 * 128, 2 * 128)
    edited = client.predict(prompt="blue", clip=handle_file(image), **QUICK, api_name="/edit")
    assert Image.open(edited).size == (96, 96)
    Image.fromarray(np.tile(np.arange(96) < 48, (96, 1))).save(tmp_path / "mask.png")
    parts = {"mask": handle_file(tmp_path / "mask.png")}, {"boxes": ["0,0,48,96@0", "0,0,48,96@1"], "strength": 0.5}
    source = np.stack(list(read_frames(survey(clip)))).astype(int)
    for part in parts:
        result = client.predict(prompt="blue", clip=files["clip"], mask_invert=True, **part, **QUICK, api_name="/edit")
        frames = np.stack(list(read_frames(survey(result))))
        assert np.abs(frames - source)[:, :, :46].mean() < 2 < np.abs(frames - source)[:, :, 52:].mean()
    made = client.predict(prompt="a blue star", num_frames=5, **QUICK, api_name="/generate")
    with av.open(made) as container:
        assert container.streams.video[0].frames == 5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": " "}, "blank"),
        ({"num_inference_steps": 1000}, "At most 20 steps"),
        ({"seed": -1}, "`seed` cannot be that"),
        ({"width": 4000, "height": 4000}, "million pixels"),
        ({"width": 90, "height": 96}, "multiple of"),
        ({"model": "someone/else"}, "not offered here"),
        ({"loras": ["../lora.safetensors"]}, "not offered here"),
        ({"loras": ["http://127.0.0.1:1/lora"]}, "not offered here"),
        ({"references": 3}, "3 references are more than the 2"),
        ({"boxes": ["0,0,999,9"]}, "does not lie within the 96 x 96 pixels"),
        ({"boxes": ["somewhere"]}, "A box must be X,Y,W,H"),
        ({"strength": 2}, "`strength` cannot be that"),
        ({"mask_invert": True}, "There is no mask to invert"),
        ({"clip": "no-video.mp4"}, "cannot be read as a video"),
        ({"clip": "long.mp4"}, "longer than the 2 seconds"),
        ({"clip": "large.mp4"}, "0.1 million are taken"),
        ({"clip": "bomb.png"}, "12000 x 12000 pixels, but at most 0.1 million"),
        ({"references": ["bomb.png"]}, "12000 x 12000 pixels, but at most 64 million"),
    ],
)
def test_what_is_refused_in_a_sentence(changes, reason, address, tmp_path):
    make_clip(tmp_path / "clip.mp4", num_frames=5, size=(96, 96))
    make_clip(tmp_path / "long.mp4", num_frames=80, size=(64, 48), layout=None)
    make_clip(tmp_path / "large.mp4", num_frames=1, size=(640, 480), layout=None)
    (tmp_path / "no-video.mp4").write_bytes(b"no video" * 100)
    write_bomb(tmp_path / "bomb.png", 12000)
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    arguments = {"prompt": "blue", "clip": "clip.mp4", **QUICK} | changes
    arguments["clip"] = handle_file(tmp_path / arguments["clip"])
    references = arguments.get("references", [])
    names = ["image.png"] * references if isinstance(references, int) else references
    arguments["references"] = [handle_file(tmp_path / name) for name in names]
    client = Client(address, verbose=False)
    with pytest.raises(AppError, match=reason) as error:
        client.predict(**arguments, api_name="/edit")
    assert "/tmp" not in str(error.value)
    assert str(error.value).count(". ") == 0, "one sentence"


def write_bomb(path, side):
    """A png of a few kilobytes that takes a gigabyte to decode."""

    def chunk(kind, data):
        checked = kind + data
        return len(data).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    data = zlib.compress(bytes(3 * side + 1) * 64, 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_files_belong_to_a_visit(visitors, tmp_path):
    one, other = visitors
    clip = make_clip(tmp_path / "clip.mp4", num_frames=5, size=(96, 96))
    own = upload(one, clip)
    assert one.get(f"/gradio_api/file={own}").status_code == 200
    assert one.get(f"/gradio_api/file={own}", headers={"range": "bytes=0-9"}).status_code == 206
    assert other.get(f"/gradio_api/file={own}").status_code == 403
    assert httpx.get(f"{one.base_url}/gradio_api/file={own}").status_code == 403
    events = ask(one, file_of(own))
    result = json.loads(events.rpartition("data: ")[2])[0]["path"]
    assert one.get(f"/gradio_api/file={result}").status_code == 200
    assert other.get(f"/gradio_api/file={result}").status_code == 403
    for clip in (file_of(own), file_of(result), {"path": own}, {"video": {"path": own}}):
        assert ask(other, clip).status_code == 403
    others = upload(other, make_clip(tmp_path / "other.mp4", num_frames=1, size=(96, 96), layout=None))
    assert ask(other, file_of(others), references=[file_of(own)]).status_code == 403
    # The same content, sent by both, is both's.
    assert upload(other, tmp_path / "clip.mp4") == own
    assert other.get(f"/gradio_api/file={own}").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "/etc/./passwd", "//etc/passwd", "etc/passwd", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd",
        "%2Fetc%2Fpasswd", "%252Fetc%252Fpasswd", "file:///etc/passwd", "http://127.0.0.1:{port}/", "{own}/../../..",
        "{folder}", "{folder}/%2e%2e/%2e%2e/etc/passwd", "\0", "",
    ],
)  # fmt: skip
def test_no_other_file_is_answered(path, visitors, tmp_path):
    one, _ = visitors
    own = upload(one, make_clip(tmp_path / "clip.mp4", num_frames=1, size=(96, 96), layout=None))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        path = path.format(own=own, folder=Path(own).parent, port=listener.getsockname()[1])
        request = one.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=b"/gradio_api/file=" + path.replace("\0", "%00").encode())
        response = one.send(request)
        assert response.status_code in (403, 404)
        assert b"root:" not in response.content
        for clip in (file_of(path), {"path": path}, file_of(own, path or "x"), {"url": path or "x"}):
            answer = ask(one, clip)
            assert getattr(answer, "status_code", None) == 403, answer
        for clip in (path, [path], None, {}, {"path": None}, {"meta": {"_type": "gradio.FileData"}}):
            answer = ask(one, clip)
            assert "event: error" in answer if isinstance(answer, str) else answer.status_code == 403
        with pytest.raises(TimeoutError):
            listener.accept()


def test_links_lead_nowhere(tmp_path):
    visits = Visits(tmp_path / "root")
    _, visit = visits.of("a" * 40)
    visit.folder.mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (visit.folder / "link").symlink_to(tmp_path / "secret")
    (visit.folder / "own").write_text("own")
    assert visit.owns(visit.folder / "own")
    assert not visit.owns(visit.folder / "link")
    assert not visit.owns(tmp_path / "secret")
    assert not visit.owns("own")


@pytest.mark.parametrize("length", [None, 2_000_000_000])
def test_large_bodies(length, visitors):
    """They are refused as soon as they say, or turn out, that they are too large."""
    one, _ = visitors
    num_sent = 0

    def body():
        nonlocal num_sent
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
        while num_sent < 50_000_000:
            num_sent += 100_000
            yield bytes(100_000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    headers |= {} if length is None else {"content-length": str(length)}
    try:
        response = one.post("/gradio_api/upload", content=body(), headers=headers)
        assert response.status_code == 413
    except httpx.WriteError:  # The connection is closed while it is sent.
        pass
    assert length is None or num_sent < 20_000_000
    response = one.post("/gradio_api/call/edit", content=b'{"data": ["' + b"a" * 2_000_000 + b'"]}')
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://127.0.0.1:1/"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/deep_link?session_hash=x"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-code/"),
        ("GET", "/gradio_api/stream/a/b/1/playlist-file"),
        ("PUT", "/"),
        ("DELETE", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/custom_component/a/client/b/c.js"),
    ],
)
def test_routes_that_the_page_does_not_use(method, path, visitors):
    assert visitors[0].request(method, path).status_code == 404


def test_names_of_the_page(visitors):
    """Another site whose name leads to this machine does not reach the page."""
    assert visitors[0].get("/", headers={"host": "evil.example"}).status_code == 403
    assert visitors[0].get("/", headers={"host": "localhost:7860"}).status_code == 200


def test_sessions_belong_to_a_visit(visitors, tmp_path):
    one, other = visitors
    own = upload(one, make_clip(tmp_path / "clip.mp4", num_frames=1, size=(96, 96), layout=None))
    body = {"data": [file_of(own)], "fn_index": 0, "session_hash": "mine"}
    assert one.post("/gradio_api/queue/join", json=body).status_code == 200
    assert other.post("/gradio_api/queue/join", json=body | {"data": []}).status_code == 403
    assert other.get("/gradio_api/queue/data?session_hash=mine").status_code == 403


def test_nothing_in_a_file_or_a_prompt_is_run(visitors, tmp_path):
    one, _ = visitors
    page = tmp_path / "<img src=x onerror=alert(1)>.svg"
    page.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    response = one.get(f"/gradio_api/file={upload(one, page)}")
    assert response.status_code == 200
    assert "sandbox" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "private"
    assert response.headers["content-disposition"].startswith("attachment")


def test_cookies(address):
    response = httpx.get(address)
    cookie = response.headers["set-cookie"]
    assert re.fullmatch(rf"{COOKIE}=[\w-]{{43}}; Path=/; HttpOnly; SameSite=Lax", cookie)
    guessable = httpx.get(address, cookies={COOKIE: "short"}).headers["set-cookie"]
    assert not guessable.startswith(f"{COOKIE}=short")
    safe = httpx.get(address, headers={"x-forwarded-proto": "https"}).headers["set-cookie"]
    assert safe.endswith("HttpOnly; SameSite=None; Secure; Partitioned")


def test_passwords(tmp_path):
    file = tmp_path / "passwords"
    file.write_text("ann:se:cret\n\nbob:other\n", encoding="utf-8")
    assert read_passwords(file) == [("ann", "se:cret"), ("bob", "other")]
    for text in ("", "ann", "ann:", ":secret"):
        file.write_text(text)
        with pytest.raises(LoomVideoError):
            read_passwords(file)
    file.write_text("ann:secret")
    with serve(Models(["nano"]), auth=file) as address:
        assert httpx.get(address + "config").status_code == 401
        assert httpx.post(address + "gradio_api/upload", files={"files": b"x"}).status_code == 401
        with pytest.raises(Exception, match="login"):
            Client(address, verbose=False, auth=("ann", "wrong"))
        assert Client(address, verbose=False, auth=("ann", "secret")).view_api(return_format="dict")["named_endpoints"]
    with pytest.raises(LoomVideoError, match="cannot be read"):
        read_passwords(tmp_path / "none")


class Order:
    """Work that takes as long as it is told to."""

    def __init__(self):
        self.done, self.goes_on = [], False

    def __call__(self, run):
        while not self.goes_on:
            if (run.folder / "cancel").exists():
                return None
            time.sleep(0.005)
        self.done.append(run.title)
        return Outcome(error="broken" if "bad" in run.title else "")


def make_run(folder, title):
    return Run(folder / title, None, folder / title / "out.mp4", "nano", (), title)


def test_visits_take_turns(tmp_path):
    order = Order()
    runs = Runs(order, most=6)
    first = make_run(tmp_path, "a0")
    runs.add("a", first)
    while first.state is State.WAITING:
        time.sleep(0.005)
    waiting = {title: make_run(tmp_path, title) for title in ("a1", "a2", "a3 bad", "b1", "b2", "c1")}
    for title, run in waiting.items():
        runs.add(title[0], run)
    with pytest.raises(LoomVideoError, match="6 runs are waiting"):
        runs.add("d", make_run(tmp_path, "d1"))
    expected = ["a1", "b1", "c1", "a2", "b2", "a3 bad"]
    assert sorted(waiting, key=lambda title: runs.place(waiting[title])) == expected
    assert runs.place(waiting["b1"]) == 2
    runs.cancel(waiting["a2"])
    order.goes_on = True
    while not waiting["a3 bad"].is_over:
        time.sleep(0.005)
    runs.close()
    assert order.done == ["a0", "a1", "b1", "c1", "a3 bad", "b2"]
    assert waiting["a2"].state is State.CANCELLED
    assert waiting["a3 bad"].state is State.FAILED
    assert not waiting["a2"].folder.exists()
    assert not waiting["a3 bad"].folder.exists()
    assert waiting["b1"].folder.exists()


def test_closing_cancels(tmp_path):
    runs = Runs(Order())
    both = [make_run(tmp_path, title) for title in ("a", "b")]
    for run in both:
        runs.add("v", run)
    runs.close()
    assert [run.state for run in both] == [State.CANCELLED] * 2
    assert not list(tmp_path.iterdir())


def test_old_files_go(tmp_path):
    visits = Visits(tmp_path / "root", lifetime=0.2)
    secret, visit = visits.of(None)
    visit.folder.mkdir(parents=True)
    (visit.folder / "result").write_text("result")
    sent = tmp_path / "root" / "hash" / "clip.mp4"
    sent.parent.mkdir()
    sent.write_text("clip")
    visit.uploads.add(sent)
    busy = make_run(visit.folder, "busy")
    busy.folder.mkdir()
    visit.add(busy)
    time.sleep(0.3)
    visits.remove_old()
    assert sent.exists(), "a run may need it"
    busy.state = State.DONE
    visits.of(secret)
    visits.remove_old()
    assert (visit.folder / "result").exists()
    time.sleep(0.3)
    visits.remove_old()
    visits.remove_old()
    assert [path for path in (tmp_path / "root").rglob("*") if path.is_file()] == []
    assert visits.of(secret)[1] is not visit


def test_only_the_last_results_are_kept(tmp_path):
    _, visit = Visits(tmp_path).of(None)
    visit.folder.mkdir(parents=True)
    for index in range(30):
        run = make_run(visit.folder, str(index))
        run.folder.mkdir()
        run.state = State.DONE
        visit.add(run)
    assert len(visit.runs) == len(list(visit.folder.iterdir())) == 24
    assert visit.runs[-1].title == "29"


def test_many_who_do_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("loomvideo_diffusers.app.visits.MOST_IDLE", 5)
    visits = Visits(tmp_path)
    secret, visit = visits.of(None)
    visit.uploads.add(tmp_path / "clip.mp4")
    for _ in range(50):
        visits.of(None)
    assert visits.of(secret)[1] is visit
    assert len(visits._visits) <= 6
    for event in (None, 7, "a" * 1000, "event"):
        visit.cancel(event)
    assert visit.cancelled == {"event"}


def test_loras_that_are_chosen(model_folder, tmp_path):
    """Each run has those that were chosen for it, and what none was chosen for is the model alone."""
    loras = []
    for seed in range(2):
        torch.manual_seed(seed)
        transformer = LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")
        transformer.add_adapter(LoraConfig(target_modules=["to_q"], init_lora_weights=False))
        LoomVideoPipeline.save_lora_weights(tmp_path / str(seed), get_peft_model_state_dict(transformer))
        loras.append(str(tmp_path / str(seed)))
    offered, alone = Models([str(model_folder), "nano"], loras[:0]), Models([str(model_folder)], loras)
    for model, chosen in ((str(tmp_path), ()), (str(model_folder), ["another"])):
        with pytest.raises(LoomVideoError, match="not offered"):
            alone.check(model, chosen)
    call = {"height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1, "output_type": "latent"}

    def latents(models, *chosen):
        pipe = models.load(str(model_folder), chosen)
        return pipe("blue", generator=torch.Generator().manual_seed(0), **call).frames

    plain = latents(offered)
    results = [latents(alone, *chosen) for chosen in ((), loras[:1], loras, loras[1:], (), loras[:1])]
    assert torch.equal(results[0], plain)
    assert torch.equal(results[4], plain)
    assert torch.equal(results[1], results[5])
    for one, other in itertools.combinations(results[:4], 2):
        assert not torch.allclose(one, other)
    assert offered.load("nano", ()) is not offered.load(str(model_folder), ())


@pytest.mark.slow
def test_ten_visitors_at_once(address, tmp_path):
    """None of their runs is lost, and nobody gets another's."""

    def visit(number):
        clip = make_clip(tmp_path / f"{number}.mp4", num_frames=number + 1, size=(96, 96), layout=None)
        client = Client(address, verbose=False, download_files=tmp_path / f"results-{number}")
        lengths = []
        for _ in range(2):
            result = client.predict(clip=handle_file(clip), prompt="blue", **QUICK, api_name="/edit")
            with av.open(result) as container:
                lengths.append(container.streams.video[0].frames)
        return lengths

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(visit, range(10))) == [[number + 1] * 2 for number in range(10)]


def test_the_command(tmp_path):
    """It says where it is, and when told to end, in the background too, removes all files and ends well."""
    loomvideo = Path(sys.executable).parent / "loomvideo"
    command = ["sh", "-c", 'trap "" INT; exec "$0" app', loomvideo]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        address = server.stdout.readline().split()[-1]
        assert httpx.get(address).status_code == 200
        assert list(tmp_path.glob("loomvideo-*"))
        server.terminate()
        assert server.wait(30) == 0
    assert not list(tmp_path.glob("loomvideo-*"))


def test_what_the_command_refuses(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wrong = {
            ("--port", str(taken.getsockname()[1])): "is taken: choose another",
            ("--max-seconds", "0"): "must be more than 0",
            ("--model", "a/b/c"): "neither a folder",
            ("--lora", "none.safetensors"): "none.safetensors",
            ("--auth", "none"): "cannot be read",
        }
        for options, reason in wrong.items():
            assert main(["app", *options]) == 2
            assert reason in capsys.readouterr().err
