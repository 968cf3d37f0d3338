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
"""Files that are no intact video: one clear line each, at once, and nothing is left behind."""

import http.server
import json
import random
import subprocess
import sys
import threading

import pytest
from clips import make_clip
from conftest import FIXTURES


# Tells what each file led to, as JSON lines: a crash ends these early, and what hangs is ended.
EDIT_ALL = """
import contextlib, io, json, os, signal, sys, time
from loomvideo_diffusers import cli

model, *paths = sys.argv[1:]
for path in paths:
    signal.alarm(20)
    before, stderr, start = set(os.listdir()), io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        options = ["--height", "32", "--width", "64", "--steps", "1", "--guidance-scale", "1"]
        status = cli.main(["edit", path, "blue", "-o", "out.mp4", "--model", model, *options])
    seconds, left = time.monotonic() - start, sorted(set(os.listdir()) - before)
    for name in left:
        os.unlink(name)
    lines = [line for line in stderr.getvalue().splitlines() if line.startswith("loomvideo: ")]
    print(json.dumps([path, status, lines, left, seconds]), flush=True)
"""


class Server(http.server.BaseHTTPRequestHandler):
    """Counts who asks."""

    num_requests = 0

    def do_GET(self):
        Server.num_requests += 1
        self.send_error(404)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def damage(data, kind, rng):
    data = bytearray(data)
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "flipped":
        for _ in range(20):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "overwritten":
        for _ in range(len(data) // 100):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "torn":
        start = rng.randrange(len(data) - 1000)
        del data[start : start + 1000]
    return bytes(data)


def files_that_are_no_videos(address):
    """Name to bytes."""
    secret = (FIXTURES / "coffee.jpg").absolute()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{address}/a.ts\n#EXT-X-ENDLIST\n"
    local = playlist.replace(f"{address}/a.ts", f"file://{secret}")
    dash = (
        f'<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet mimeType="video/mp4">'
        f'<Representation id="0" bandwidth="1"><BaseURL>{address}/a.mp4</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>"
    )
    texts = {
        "text.mp4": "no video",
        "script.mp4": "#!/bin/sh\nexit 0\n",
        "page.mp4": "<html><video src='a.mp4'></html>",
        "records.mkv": '{"video": "a.mp4"}',
        "remote.m3u8": playlist,
        "remote-list.mp4": playlist,
        "local.m3u8": local,
        "local-list.mp4": local,
        "dash.mpd": f'<?xml version="1.0"?>{dash}',
        "dash.mp4": f'<?xml version="1.0"?>{dash}',
        "concat.txt": f"ffconcat version 1.0\nfile {address}/a.mp4\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {secret}\n",
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "subtitles.mp4": "1\n00:00:00,000 --> 00:00:01,000\nno video\n",
    }
    files = {name: text.encode() for name, text in texts.items()}
    photograph = (FIXTURES / "coffee.jpg").read_bytes()
    return files | {
        "empty.mp4": b"",
        "empty.mov": b"",
        "zeros.mp4": bytes(5000),
        "noise.mp4": random.Random(0).randbytes(5000),
        "noise.mkv": random.Random(1).randbytes(5000),
        "photograph.mp4": photograph,
        "archive.mp4": b"PK\x03\x04" + bytes(500),
        "weights.mp4": b"\x08\0\0\0\0\0\0\0{      }",
    }


@pytest.mark.parametrize("num_seeds", [3, pytest.param(15, marks=pytest.mark.slow)])
def test_one_clear_line(num_seeds, model_folder, address, tmp_path):
    clips = [
        FIXTURES / "cat.mp4",
        make_clip(tmp_path / "b.mkv", num_frames=30, size=(128, 96), layout=None),
        make_clip(tmp_path / "c.mov", num_frames=30, size=(128, 96), layout=None, codec="libx265"),
    ]
    files = files_that_are_no_videos(address)
    for clip in clips:
        data = clip.read_bytes()
        for kind in ("cut", "flipped", "overwritten", "torn"):
            for seed in range(num_seeds):
                files[f"{kind}-{seed}-{clip.name}"] = damage(data, kind, random.Random(f"{kind} {seed} {clip.name}"))
        files[f"named-wrongly-{clip.name}.png"] = data
        clip_as_text = data.decode("latin-1").encode()
        files[f"as-text-{clip.name}"] = clip_as_text
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    command = [sys.executable, "-c", EDIT_ALL, str(model_folder), *sorted(files)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, (outcomes[-1:], result.stderr[-500:])
    assert len(outcomes) == len(files)
    harmless = []
    for path, status, lines, left, seconds in outcomes:
        assert seconds < 10, path
        if path.startswith("named-wrongly"):  # What a file is counts.
            assert status == 0, lines
            continue
        if status == 0:
            harmless.append(path)
            continue
        assert (status, left) == (2, []), path
        assert len(lines) == 1, path
        assert lines[0].startswith("loomvideo: error: "), path
        assert path in lines[0], lines
    print(f"{len(files)} files, of which these can be played all the same: {', '.join(harmless)}")
    # No decoder notices what leaves a file as good as whole.
    assert all(name.startswith(("cut", "flipped", "torn", "overwritten")) for name in harmless)
    assert len(harmless) <= len(files) // 50
    assert Server.num_requests == 0
