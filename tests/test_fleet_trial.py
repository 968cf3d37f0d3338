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
"""
A long trial of many jobs on Ray: workers, nodes and the driver are killed, the S3 server fails and is slow.

`make test-fleet` runs it and keeps its log in build/fleet.log.
"""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import fsspec
import numpy as np
import PIL.Image
import psutil
import pytest
from clips import make_clip
from conftest import FIXTURES
from s3_server import KEYS, serve_s3

from loomvideo_diffusers import cli
from loomvideo_diffusers.fleet.jobs import EditJob
from loomvideo_diffusers.fleet.report import describe_report, read_report
from loomvideo_diffusers.fleet.work import hash_output
from loomvideo_diffusers.media import read_image, read_video


pytestmark = pytest.mark.fleet

NUM_JOBS = 500
NUM_KILLS = 20
OPTIONS = ["--height", "64", "--width", "64", "--steps", "6"]
STORE = 80_000_000

# What is wrong with a job, and a part of the reason that the report must give
WRONG = {
    "missing": ({"input": "in/none.mp4"}, "s3://shop/in/none.mp4 is not there"),
    "no bucket": ({"input": "s3://elsewhere/a.mp4"}, "s3://elsewhere/a.mp4 is not there"),
    "cut": ({"input": "in/cut.mp4"}, "s3://shop/in/cut.mp4 is truncated"),
    "text": ({"input": "in/text.mp4"}, "s3://shop/in/text.mp4"),
    "empty": ({"input": "in/empty.png", "output": "out/{}.png"}, "s3://shop/in/empty.png"),
    "sound only": ({"input": "in/sound.mp4"}, "s3://shop/in/sound.mp4"),
    "image to video": ({"input": "in/still-0.png"}, "s3://shop/in/still-0.png is an image"),
    "video to image": ({"input": "in/clip-0.mp4", "output": "out/{}.png"}, "s3://shop/in/clip-0.mp4 is no image"),
    "reference": ({"reference": ["in/clip-0.mp4"]}, "s3://shop/in/clip-0.mp4 cannot be read as an image"),
    "no reference": ({"reference": ["in/none.png"]}, "s3://shop/in/none.png is not there"),
}


def fill(folder: Path) -> None:
    """Makes the footage of the shop."""
    folder.mkdir()
    for index in range(8):
        make_clip(folder / f"clip-{index}.mp4", num_frames=5 + 4 * index, layout="stereo" if index % 2 else None)
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 3), np.uint8)
        PIL.Image.fromarray(pixels).resize((64 + 16 * index, 64)).save(folder / f"still-{index}.png")
    (folder / "cut.mp4").write_bytes((FIXTURES / "cat.mp4").read_bytes()[:5000])
    (folder / "text.mp4").write_text("not a clip")
    (folder / "empty.png").write_bytes(b"")
    make_clip(folder / "both.mp4", num_frames=9)
    with av.open(str(folder / "both.mp4")) as source, av.open(str(folder / "sound.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    (folder / "both.mp4").unlink()


def make_jobs() -> tuple[list[dict], dict[str, str]]:
    """All jobs in a random order, and what is to be said of those that are wrong, by their outputs."""
    jobs, reasons = [], {}
    for index in range(NUM_JOBS - 2 * len(WRONG)):
        name, suffix = (f"clip-{index % 8}.mp4", "mp4") if index % 3 == 0 else (f"still-{index % 8}.png", "png")
        reference = {"reference": ["in/still-1.png"]} if index % 7 == 0 else {}
        job = {"input": f"in/{name}", "prompt": f"Make square {index} red.", "output": f"out/{index:03d}.{suffix}"}
        jobs.append(job | reference | ({"seed": index} if index % 2 else {}))
    for number, (changes, reason) in enumerate([*WRONG.values()] * 2):
        job = {"input": "in/clip-0.mp4", "prompt": "Make it blue.", "output": "out/{}.mp4"} | changes
        job["output"] = job["output"].format(f"wrong-{number:02d}")
        jobs.append(job)
        reasons[f"s3://shop/{job['output']}"] = reason
    random.Random(0).shuffle(jobs)
    return jobs, reasons


class Trouble:
    """Kills workers and nodes at random times, puts other nodes in the place of these, and once adds one."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.nodes = []
        self.random = random.Random(1)
        self.kills = Counter()
        self.has_joined = False
        # After how many jobs have ended
        self.times = sorted(self.random.sample(range(5, NUM_JOBS - 30), NUM_KILLS + 1))
        self.next = 0.0
        for _ in range(2):
            self.join()

    def join(self):
        self.nodes.append(self.cluster.add_node(wait=False, num_cpus=1, object_store_memory=STORE))

    def make(self, num_ended):
        """Makes trouble if it is time to, but not twice in a few seconds, when nobody is at work."""
        if not self.times or num_ended < self.times[0] or time.monotonic() < self.next:
            return
        self.times.pop(0)
        self.next = time.monotonic() + 8
        workers = [process for process in psutil.process_iter() if is_worker(process)]
        if self.num_kills >= NUM_KILLS // 2 and not self.has_joined:
            self.has_joined = True
            self.join()
            log("a node joined")
        elif self.random.random() < 0.5 and workers:
            victim = self.random.choice(workers)
            victim.kill()
            self.kills["worker"] += 1
            log(f"killed a worker, process {victim.pid}, of {len(workers)}")
        else:
            self.cluster.remove_node(self.nodes.pop(self.random.randrange(len(self.nodes))), allow_graceful=False)
            self.kills["node"] += 1
            log(f"killed a node, with {len(workers)} workers on all")
            self.join()

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())


def log(text: str) -> None:
    print(time.strftime("%X"), text, flush=True)


def is_worker(process) -> bool:
    try:
        return any("ray::RemoteWorker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def run_driver(command, output, report, trouble) -> int:
    """Runs the command, kills it when a third is done, and runs it again. Returns its exit status."""
    was_killed = False
    with open(output, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
        while process.poll() is None:
            time.sleep(0.1)
            num_ended = report.read_text().count("\n") if report.exists() else 0
            trouble.make(num_ended)
            if num_ended >= NUM_JOBS // 3 and not was_killed:
                process.kill()
                process.wait()
                was_killed = True
                log(f"killed the driver after {num_ended} jobs")
                process = subprocess.Popen(command, stdout=file, stderr=file)
    assert was_killed
    return process.returncode


def seed_of(job: dict) -> int:
    """Its seed, or the one that follows from where it writes what."""
    return EditJob(**job | {"output": f"s3://shop/{job['output']}"}).choose_seed(None)


def contents(path):
    """The decoded frames of a file, and the packets of its sound."""
    if path.suffix == ".png":
        return np.asarray(read_image(path)), []
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0)] if container.streams.audio else []
    return read_video(path), packets


def test_jobs_survive(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    for name, value in (KEYS | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    fill(tmp_path / "in")
    jobs, reasons = make_jobs()
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    with serve_s3(share=0.1, delay=0.2) as (address, server):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.mkdir("shop")
        bucket.put(str(tmp_path / "in"), "shop/", recursive=True)
        bucket.put_file(str(tmp_path / "jobs.jsonl"), "shop/jobs.jsonl")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
        trouble = Trouble(cluster)
        report, output = tmp_path / "report.jsonl", tmp_path / "output"
        command = [sys.executable, "-m", "loomvideo_diffusers", "edit", "--jobs", "s3://shop/jobs.jsonl", *OPTIONS]
        command += ["--ray", cluster.address, "--cpus", "1", "--report", str(report), "--attempts", "5"]
        start = time.monotonic()
        try:
            assert run_driver(command, output, report, trouble) == 2
        finally:
            cluster.shutdown()
            Path("build").mkdir(exist_ok=True)
            Path("build/fleet.log").write_text(output.read_text())
        print(f"{time.monotonic() - start:.0f} s, {dict(trouble.kills)} killed")
        print(f"{server.num_failed} of {server.num_requests} requests failed")
        bucket.invalidate_cache()
        there = bucket.find("shop/out")
        bucket.get(there, [str(tmp_path / "made" / Path(name).name) for name in there])

    records = {record["output"]: record for record in read_report(report)}
    print(describe_report([*records.values()]))
    assert trouble.num_kills == NUM_KILLS
    assert sorted(records) == sorted(f"s3://shop/{job['output']}" for job in jobs)
    wrong = {output: record["error"] for output, record in records.items() if record["error"]}
    assert wrong.keys() == reasons.keys()
    assert [output for output, reason in reasons.items() if reason not in wrong[output]] == []
    assert {records[output]["attempts"] for output in wrong} <= {1, 2, 3}
    good = [job for job in jobs if f"s3://shop/{job['output']}" not in reasons]
    assert sorted(there) == sorted(f"shop/{job['output']}" for job in good)
    said = output.read_text() + report.read_text()
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in said
    assert KEYS["AWS_ACCESS_KEY_ID"] not in said

    # Each is what one process makes of the same list; a seed of a job's own depends on where it writes.
    local = [job | {"output": f"single/{Path(job['output']).name}", "seed": seed_of(job)} for job in good]
    (tmp_path / "single.jsonl").write_text("\n".join(map(json.dumps, local)))
    assert cli.main(["edit", "--jobs", str(tmp_path / "single.jsonl"), "--device", "cpu", *OPTIONS]) == 0
    differing = []
    for job in good:
        made, single = (tmp_path / folder / Path(job["output"]).name for folder in ("made", "single"))
        assert hash_output(made)[0] == records[f"s3://shop/{job['output']}"]["sha256"]
        (frames, sound), (expected_frames, expected_sound) = contents(made), contents(single)
        if not np.array_equal(frames, expected_frames) or sound != expected_sound:
            differing.append(made.name)
    assert differing == []
