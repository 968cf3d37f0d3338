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
"""What Ray costs: throughput, overhead, and the memory of the driver. `make test-fleet` runs it."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time

import pytest
from conftest import FIXTURES
from s3_server import KEYS, serve_s3

from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.fleet import run_jobs_on_ray
from loomvideo_diffusers.fleet.jobs import EditJob
from loomvideo_diffusers.fleet.report import read_report


pytestmark = pytest.mark.fleet

OPTIONS = ["--height", "64", "--width", "64", "--steps", "12"]

# Reads a list of jobs at addresses where nothing is, starts Ray, hears of a few, and prints how much memory that took.
DRIVER = """
import itertools, sys
from functools import partial
from pathlib import Path
from loomvideo_diffusers import LoomVideoEditPipeline
from loomvideo_diffusers.fleet import open_report, read_jobs, run_jobs_on_ray
from loomvideo_diffusers.loading import load_pipeline

def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

path = Path(sys.argv[1])
before = memory()
with open_report(path.with_suffix(".report.jsonl")) as report:
    jobs = report.select(read_jobs(path))
    load = partial(load_pipeline, LoomVideoEditPipeline, "nano", device="cpu")
    for result in itertools.islice(run_jobs_on_ray(jobs, load, cpus=1, workers=1), 50):
        assert "is not there" in result.error, result.error
        report.add(result)
    print(len(jobs), memory() - before)
"""


def run_all(commands) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    options = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, **options) for command in commands]
    assert [process.wait() for process in processes] == [0] * len(processes)


def seconds_a_job(folder, num_jobs, ray) -> float:
    """
    Runs equal jobs by plain processes, or by as many workers of Ray, and returns the seconds between results.

    The first results and the last are left out, when not all are at work.
    """
    num_workers = len(num_jobs)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(FIXTURES / "cat.mp4", folder / "cat.mp4")
    lists = [sum(num_jobs)] if ray else num_jobs
    commands = []
    for number, count in enumerate(lists):
        jobs = [
            {"input": "cat.mp4", "prompt": "Make the square red.", "output": f"{number}-{index}.mp4", "seed": index}
            for index in range(count)
        ]
        path = folder / f"jobs-{number}.jsonl"
        path.write_text("\n".join(map(json.dumps, jobs)))
        command = [sys.executable, "-m", "loomvideo_diffusers", "edit", "--jobs", str(path), *OPTIONS]
        commands.append(command + (["--ray", "--cpus", "1", "--workers", str(num_workers)] if ray else []))
    run_all(commands)
    records = [record for path in folder.glob("*.report.jsonl") for record in read_report(path)]
    ended = sorted(record["ended"] for record in records)[2 * num_workers : -num_workers]
    return (ended[-1] - ended[0]) / (len(ended) - 1)


@pytest.mark.parametrize(("num_jobs", "most"), [([12], 1.03), ([12, 12], 1 / 0.95)], ids=["overhead", "throughput"])
def test_ray_takes_no_longer(num_jobs, most, tmp_path):
    """Pairs of plain processes and of as many workers of Ray, on the same local files."""
    ratios = []
    for number in range(5):
        order = [False, True] if number % 2 else [True, False]
        seconds = {ray: seconds_a_job(tmp_path / "run", num_jobs, ray) for ray in order}
        ratios.append(seconds[True] / seconds[False])
        print(
            f"{len(num_jobs)} workers: plain {seconds[False]:.2f} s a job, Ray {seconds[True]:.2f}: {ratios[-1]:.3f}"
        )
    assert statistics.median(ratios) <= most


def test_the_driver_keeps_up(tmp_path, monkeypatch):
    """It hears of many more jobs a second than the 19 that 800 GPUs do."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    shutil.copy(FIXTURES / "cat.mp4", tmp_path / "cat.mp4")
    jobs = [EditJob(input=tmp_path / "cat.mp4", prompt="a", output=tmp_path / f"{i}.mp4") for i in range(3000)]
    start = None

    def refuse(job, files):
        raise LoomVideoError("It takes no time.")

    for result in run_jobs_on_ray(jobs, lambda: None, refuse, cpus=1, workers=2):
        assert result.error == "It takes no time."
        start = start or time.monotonic()
    rate = len(jobs) / (time.monotonic() - start)
    print(f"the driver hears of {rate:.0f} jobs a second")
    assert rate > 100


def test_memory_of_the_driver(tmp_path, monkeypatch):
    for name, value in (KEYS | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    took = {}
    with serve_s3() as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        subprocess.run([sys.executable, "-c", "import fsspec; fsspec.filesystem('s3').mkdir('shop')"], check=True)
        for count in (1000, 100_000):
            path = tmp_path / f"{count}.jsonl"
            with open(path, "w") as file:
                for index in range(count):
                    job = {"input": f"in/clip-{index:06d}.mp4", "output": f"out/clip-{index:06d}.mp4"}
                    job |= {"prompt": f"Put the jacket of product {index} on her.", "seed": index}
                    job |= {name: f"s3://shop/{job[name]}" for name in ("input", "output")}
                    file.write(json.dumps(job) + "\n")
            result = subprocess.run([sys.executable, "-c", DRIVER, str(path)], capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            took[count] = int(result.stdout.split()[-1])
    a_job = (took[100_000] - took[1000]) / 99_000
    megabytes = {count: round(size / 1e6) for count, size in took.items()}
    print(f"memory of the driver, in MB by number of jobs: {megabytes}: {a_job:.0f} bytes a job")
    assert a_job <= 2048
