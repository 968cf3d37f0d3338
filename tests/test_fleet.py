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
"""Many jobs on a real Ray cluster, with files on a real S3 server."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import FIXTURES
from s3_server import KEYS, serve_s3

from loomvideo_diffusers import cli
from loomvideo_diffusers.fleet.report import read_report
from loomvideo_diffusers.fleet.work import hash_output
from loomvideo_diffusers.media import read_comment, read_image, read_video
from loomvideo_diffusers.nano import MODEL


OPTIONS = ["--height", "64", "--width", "64", "--steps", "1", "--frames", "5"]


@pytest.fixture
def cluster(bucket, monkeypatch):
    """A cluster of a head, on which nothing runs, and two nodes, each with a CPU and what it takes for a GPU."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    options = {"object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1, **options) for _ in range(2)]
    yield cluster, nodes
    cluster.shutdown()


@pytest.fixture
def bucket(monkeypatch):
    """What is in `s3://shop`, whose server fails one request in ten, and is slow."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with serve_s3(share=0.1, delay=0.05) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("shop")
        for name in ("cat.mp4", "coffee.jpg"):
            system.put_file(str(FIXTURES / name), f"shop/in/{name}")
        yield system


def test_a_node_dies(cluster, bucket, tmp_path):
    """What can be done is done once, as a single edit does it; what cannot is named; nothing says a secret."""
    cluster, nodes = cluster
    jobs = [
        {"input": f"in/{name}", "prompt": "Make the square red.", "output": f"out/{index:02d}.{suffix}", "seed": index}
        for index, (name, suffix) in enumerate([("cat.mp4", "mp4"), ("coffee.jpg", "png")] * 6)
    ]
    jobs[3] |= {"input": "in/none.jpg"}
    bucket.pipe_file("shop/jobs.jsonl", "\n".join(map(json.dumps, jobs)).encode())
    report, log = tmp_path / "report.jsonl", tmp_path / "log"
    command = [sys.executable, "-m", "loomvideo_diffusers", "edit", "--jobs", "s3://shop/jobs.jsonl", *OPTIONS]
    command += ["--ray", cluster.address, "--report", str(report)]
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    while not report.exists() or report.read_text().count("\n") < 2:
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    cluster.remove_node(nodes[0], allow_graceful=False)
    assert process.wait(60) == 2

    records = {record["output"]: record for record in read_report(report)}
    assert sorted(records) == [f"s3://shop/{job['output']}" for job in jobs]
    assert [output for output, record in records.items() if record["error"]] == ["s3://shop/out/03.png"]
    assert records["s3://shop/out/03.png"]["error"] == "s3://shop/in/none.jpg is not there."
    bucket.invalidate_cache()
    there = [f"shop/{job['output']}" for job in jobs if job is not jobs[3]]
    assert sorted(bucket.find("shop")) == ["shop/in/cat.mp4", "shop/in/coffee.jpg", "shop/jobs.jsonl", *there]
    (tmp_path / "out").mkdir()
    for job in (jobs[0], jobs[1], jobs[10], jobs[11]):
        made, single = tmp_path / job["output"], tmp_path / "single" / job["output"]
        bucket.get_file(f"shop/{job['output']}", str(made))
        assert hash_output(made)[0] == records[f"s3://shop/{job['output']}"]["sha256"]
        arguments = ["edit", str(FIXTURES / Path(job["input"]).name), job["prompt"], "-o", str(single)]
        options = OPTIONS if made.suffix == ".mp4" else OPTIONS[:-2]
        assert cli.main([*arguments, "--seed", str(job["seed"]), *options]) == 0
        assert np.array_equal(*(read_frames(path) for path in (made, single)))
    said = log.read_text() + report.read_text() + (read_comment(tmp_path / "out/00.mp4") or "")
    assert "edit s3://shop/in/cat.mp4 " in said
    assert not any(secret in said for secret in KEYS.values() if secret != KEYS["AWS_DEFAULT_REGION"])


def test_no_cluster(tmp_path, capsys):
    job = {"input": str(FIXTURES / "coffee.jpg"), "prompt": "a", "output": str(tmp_path / "a.png")}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        assert cli.main(["edit", "--jobs", str(tmp_path / "jobs.jsonl"), "--ray", address]) == 2
        assert (
            f"No cluster answers at {address} ([Errno 111] Connection refused): see --ray." in capsys.readouterr().err
        )
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.jsonl"]


@pytest.mark.slow
def test_no_worker(tmp_path, capfd):
    """What no worker can do is said once, and nothing is left."""
    job = {"input": str(FIXTURES / "coffee.jpg"), "prompt": "a", "output": str(tmp_path / "a.png")}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    shutil.copytree(MODEL, tmp_path / "broken")
    (tmp_path / "broken/transformer/diffusion_pytorch_model.safetensors").unlink()
    command = ["edit", "--jobs", str(tmp_path / "jobs.jsonl"), "--ray"]
    for options, message in (
        (["--cpus", "1", "--model", str(tmp_path / "broken")], "No worker can start: Error no file named"),
        (
            ["--cpus", "5000"],
            "No node of the cluster has 5000 CPUs: give fewer --cpus, or --workers if nodes are to come.",
        ),
    ):
        assert cli.main([*command, *options]) == 2
        said = capfd.readouterr().err
        assert said.count(message) == 1
        assert said.splitlines()[-1].startswith(f"loomvideo: error: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "jobs.jsonl"]


def read_frames(path):
    return np.asarray(read_video(path) if path.suffix == ".mp4" else read_image(path))
