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
"""Many edits and generations from one file."""

import csv
import json
import re
import shutil
from collections import Counter
from functools import partial

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from conftest import FIXTURES
from fsspec.implementations.memory import MemoryFileSystem
from torch.nn.modules.module import register_module_forward_hook

from loomvideo_diffusers import cli
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.fleet.jobs import read_jobs
from loomvideo_diffusers.fleet.run import run_jobs
from loomvideo_diffusers.fleet.work import plan_job
from loomvideo_diffusers.footage import run
from loomvideo_diffusers.media import read_comment, read_video


OPTIONS = ["--height", "64", "--width", "64", "--steps", "1"]


@pytest.fixture
def jobs(tmp_path):
    """Four edits, of which the third cannot be done."""
    shutil.copy(FIXTURES / "cat.mp4", tmp_path / "cat.mp4")
    shutil.copy(FIXTURES / "coffee.jpg", tmp_path / "coffee.jpg")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cat.mp4").read_bytes()[:5000])
    lines = [
        {"input": "cat.mp4", "prompt": "make it night", "output": "night.mp4", "seed": 1},
        {"input": "coffee.jpg", "prompt": "make it blue", "output": "blue.png"},
        {"input": "cut.mp4", "prompt": "make it night", "output": "none.mp4"},
        {"input": "cat.mp4", "prompt": "put it on", "output": "cup.mp4", "reference": ["coffee.jpg"]},
    ]
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def test_one_process_goes_on(jobs, model_folder, tmp_path, capsys):
    assert cli.main(["edit", "--jobs", str(jobs), "--model", str(model_folder), *OPTIONS]) == 2
    errors = capsys.readouterr().err
    assert f"{tmp_path / 'none.mp4'} was not made: " in errors
    assert errors.splitlines()[-1] == "loomvideo: error: 1 of 4 jobs failed: the others are done."
    assert (tmp_path / "cup.mp4").exists()


def test_a_mistake_in_the_code_stops_no_other_job(jobs, model_folder, tmp_path, capsys, monkeypatch):
    """It is reported with its traceback, and the exit code says so."""

    def broken(pipe, plan, *arguments):
        return len(3)

    monkeypatch.setattr(run, "_edit_image", broken)
    assert cli.main(["edit", "--jobs", str(jobs), "--model", str(model_folder), *OPTIONS]) == 1
    errors = capsys.readouterr().err
    assert "TypeError: object of type 'int' has no len()" in errors.splitlines()
    assert f"{tmp_path / 'blue.png'} was not made: TypeError" in errors
    assert f"{tmp_path / 'none.mp4'} was not made: {tmp_path / 'cut.mp4'}" in errors
    assert errors.splitlines()[-1] == "loomvideo: error: 2 of 4 jobs failed: the others are done."
    assert (tmp_path / "night.mp4").exists()
    assert (tmp_path / "cup.mp4").exists()


def test_jobs_in_python(jobs, edit, tmp_path):
    """Each result is there as soon as its job is done."""
    settings = {"height": 64, "width": 64, "num_inference_steps": 1}
    results = run_jobs(read_jobs(jobs)[:3], edit, partial(plan_job, **settings))
    assert list(next(results).report.files) == [tmp_path / "night.mp4"]
    assert not (tmp_path / "blue.png").exists()
    second, third = results
    assert list(second.report.files) == [tmp_path / "blue.png"]
    assert str(tmp_path / "cut.mp4") in third.error
    assert third.fault == "job"
    assert third.report is None


JOB = {"input": "cat.mp4", "prompt": "b", "output": "c.mp4"}


def line(**changes) -> str:
    return json.dumps({key: value for key, value in (JOB | changes).items() if value is not None}) + "\n"


@pytest.fixture
def bucket(tmp_path):
    """What is at `memory://bucket/`: a clip and an image."""
    MemoryFileSystem.store.clear()
    memory = fsspec.filesystem("memory")
    memory.put_file(str(FIXTURES / "cat.mp4"), "/bucket/in/cat.mp4")
    memory.put_file(str(FIXTURES / "coffee.jpg"), "/bucket/in/cup.jpg")
    return memory


def test_jobs_at_addresses(bucket, model_folder, tmp_path, capsys):
    """Files are fetched and delivered whole; what is wrong is told of by its address; nothing else is left."""
    lines = [
        {"input": "in/cat.mp4", "prompt": "on", "output": "out/cat.mp4", "reference": ["in/cup.jpg"], "seed": 1},
        {"input": "memory://bucket/in/cup.jpg?sig=secret", "prompt": "blue", "output": str(tmp_path / "cup.png")},
        {"input": "in/none.mp4", "prompt": "night", "output": "out/none.mp4"},
        {"input": "in/cup.jpg", "prompt": "night", "output": "out/cup.mp4"},
    ]
    bucket.pipe_file("/bucket/jobs.jsonl", "\n".join(map(json.dumps, lines)).encode())
    jobs = "memory://me:password@bucket/jobs.jsonl"
    bucket.pipe_file("/me:password@bucket/jobs.jsonl", bucket.cat_file("/bucket/jobs.jsonl"))
    bucket.copy("/bucket/in/cup.jpg", "/bucket/in/cup.jpg?sig=secret")
    for name in ("cat.mp4", "cup.jpg"):
        bucket.copy(f"/bucket/in/{name}", f"/me:password@bucket/in/{name}")
    assert cli.main(["edit", "--jobs", jobs, "--model", str(model_folder), *OPTIONS]) == 2
    said = capsys.readouterr()
    assert "Wrote memory://bucket/out/cat.mp4: 33 frames" in said.out
    assert f"Wrote {tmp_path / 'cup.png'}: 1 image" in said.out
    assert "memory://bucket/out/none.mp4 was not made: memory://bucket/in/none.mp4 is not there." in said.err
    wrong = "memory://bucket/in/cup.jpg is an image: memory://bucket/out/cup.mp4 must end in .png or"
    assert f"memory://bucket/out/cup.mp4 was not made: {wrong}" in said.err
    bucket.get_file("/me:password@bucket/out/cat.mp4", str(tmp_path / "cat.mp4"))
    assert len(read_video(tmp_path / "cat.mp4")) == 33
    comments = [read_comment(tmp_path / name) for name in ("cat.mp4", "cup.png")]
    assert "loomvideo edit memory://bucket/in/cat.mp4 on " in json.loads(comments[0])["command"]
    assert "--reference memory://bucket/in/cup.jpg" in json.loads(comments[0])["command"]
    assert "edit memory://bucket/in/cup.jpg blue" in json.loads(comments[1])["command"]
    for text in (said.out, said.err, *comments):
        assert "password" not in text
        assert "secret" not in text
    assert not [name for name in bucket.store if "unfinished" in name or name.endswith(("none.mp4", "cup.mp4"))]


JOBS_SCHEMA = pyarrow.schema(
    {
        "input": pyarrow.string(),
        "prompt": pyarrow.string(),
        "output": pyarrow.string(),
        "seed": pyarrow.int64(),
        "reference": pyarrow.list_(pyarrow.string()),
    }
)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_jobs_in_other_files(suffix, jobs, tmp_path):
    expected = read_jobs(jobs)
    records = [json.loads(line) for line in jobs.read_text().split("\n") if line]
    path = jobs.with_suffix(suffix)
    if suffix == ".json":
        path.write_text(json.dumps(records))
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records, JOBS_SCHEMA), path)
    else:
        rows = [record | {"reference": json.dumps(record.get("reference", []))} for record in records]
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["prompt", "input", "output", "seed", "reference"])
            writer.writeheader()
            writer.writerows(rows)
    assert read_jobs(path) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("jobs.csv", b"input,prompt,output\ncat.mp4,b\n", "jobs.csv:2 has not as many columns as the first line."),
        ("jobs.csv", b"input,prompt,output\ncat.mp4,b,c.mp4,d\n", "jobs.csv:2 has not as many columns"),
        ("jobs.csv", b"input,prompt\ncat.mp4,b\n", "jobs.csv:2: output: Field required."),
        ("jobs.csv", b"input,prompt,output,seed\ncat.mp4,b,c.mp4,x\n", "jobs.csv:2: seed: Input should be a valid"),
        ("jobs.csv", b"input,prompt,output,reference\ncat.mp4,b,c.mp4,[\n", "jobs.csv:2: reference is not JSON"),
        ("jobs.csv", b"\xff\xfe", "jobs.csv cannot be read as CSV in UTF-8"),
        ("jobs.csv", b"", "jobs.csv has no jobs"),
        ("jobs.parquet", b"PAR1", "jobs.parquet cannot be read as Parquet"),
        ("jobs.jsonl", line(stated={}, _stated={}).encode(), "jobs.jsonl:1: stated: a job has nothing of that name."),
        ("jobs.jsonl", line(output="nothing://a/b.txt?secret").encode(), "nothing://a/b.txt must end in"),
        ("jobs.jsonl", line(output="s3://a/f_%04d.png").encode(), "s3://a/f_%04d.png is an image sequence: keep it"),
        ("jobs.jsonl", line(input="s3://a/f_%04d.png").encode(), "s3://a/f_%04d.png is an image sequence: keep it"),
        ("jobs.jsonl", (2 * line(output="s3://a/b.mp4")).encode(), "jobs.jsonl:1 writes s3://a/b.mp4 too"),
    ],
)
def test_other_files_that_are_no_jobs(name, content, message, tmp_path):
    shutil.copy(FIXTURES / "cat.mp4", tmp_path / "cat.mp4")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoomVideoError, match=re.escape(message)) as error:
        read_jobs(tmp_path / name)
    assert "secret" not in str(error.value)


def test_wrong_settings_of_all_jobs(jobs, model_folder, capsys, monkeypatch):
    monkeypatch.setattr("loomvideo_diffusers.cli.jobs.load_pipeline", None)
    assert cli.main(["edit", "--jobs", str(jobs), "--model", str(model_folder), "--window", "8"]) == 2
    assert "`window_frames` must be 4k + 1" in capsys.readouterr().err


def test_negative_prompts_are_encoded_once(jobs, model_folder, capsys):
    """The MLLM reads each edit's words and, without them, its pixels; and once what all edits are to avoid."""
    counts = Counter()
    hook = register_module_forward_hook(lambda module, *_: counts.update([type(module).__name__]))
    assert cli.main(["edit", "--jobs", str(jobs), "--model", str(model_folder), *OPTIONS]) == 2
    hook.remove()
    assert counts["Qwen3VLTextModel"] == 3 * 2 + 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no jobs: write one a line"),
        ("{", "jobs.jsonl:1 is not JSON: "),
        ("[1]", "jobs.jsonl:1: a job is an object with names and values."),
        (line(output=None), "jobs.jsonl:1: output: Field required"),
        (line(sed=1), "jobs.jsonl:1: sed: a job has nothing of that name"),
        (line(seed=-1), "jobs.jsonl:1: seed: Input should be greater than or equal to 0"),
        (line(seed=2**63), "jobs.jsonl:1: seed: Input should be less than"),
        (line(seed="1"), "jobs.jsonl:1: seed: Input should be a valid integer"),
        (line(prompt=""), "jobs.jsonl:1: prompt: it is blank"),
        (line(prompt="\u200b\u00a0"), "jobs.jsonl:1: prompt: it is blank"),
        (line(prompt="a<|im_end|>"), "jobs.jsonl:1: prompt: it must not hold the MLLM's markers, such as <|im_end|>"),
        (line(output=""), "jobs.jsonl:1: output: it must be the name of a file"),
        (line(input="a\0.mp4"), "jobs.jsonl:1: input: it must be the name of a file"),
        ("\n\n" + line(input="none.mp4"), "jobs.jsonl:3: "),
        (line(input="none.mp4"), "none.mp4 is not there."),
        (line(reference=["none.png"]), "none.png is not there."),
        (line(input="none_%04d.png"), "none_%04d.png"),
        (line(output="c.txt"), "c.txt must end in .mp4 or "),
        (line(input="coffee.jpg"), "c.mp4 must end in .png or "),
        (line(output="cat.mp4/c.mp4"), "is not a folder that can be written to"),
        (line() * 2, "jobs.jsonl:2: "),
        (line() + line(output="./c.mp4"), "jobs.jsonl:1 writes "),
        (line() + line(output="link/c.mp4"), "jobs.jsonl:1 writes "),
        (line() + line(output="link/link/./c.mp4"), "jobs.jsonl:1 writes "),
        (line(output="hard.mp4") + line(output="old.mp4"), "jobs.jsonl:1 writes "),
        (line(output="cat.mp4"), "which jobs.jsonl:1 reads: choose another output"),
        (line(output="link/cat.mp4"), "which jobs.jsonl:1 reads: choose another output"),
        (line(input="coffee.jpg", output="d.png", reference=["coffee.jpg"]) + line(output="old.mp4")
         + line(input="hard.mp4"), "which jobs.jsonl:3 reads: choose another output"),
        (line(input="coffee.jpg", output="coffee.jpg"), "which jobs.jsonl:1 reads: choose another output"),
    ],
)  # fmt: skip
def test_bad_jobs(lines, message, tmp_path, capsys, monkeypatch):
    """All that can be known is said before the model is loaded."""
    monkeypatch.setattr("loomvideo_diffusers.cli.jobs.load_pipeline", None)
    monkeypatch.chdir(tmp_path)
    shutil.copy(FIXTURES / "cat.mp4", "cat.mp4")
    shutil.copy(FIXTURES / "coffee.jpg", "coffee.jpg")
    (tmp_path / "old.mp4").write_text("")
    (tmp_path / "hard.mp4").hardlink_to("old.mp4")
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "jobs.jsonl").write_text(lines)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["edit", "--jobs", "jobs.jsonl"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_jobs_and_more(tmp_path, capsys):
    assert cli.main(["edit", "a.mp4", "b", "--jobs", "jobs.jsonl", "-o", "c.mp4"]) == 2
    assert "with --jobs, inputs, prompts and outputs are in the file" in capsys.readouterr().err
    assert cli.main(["edit", "a.mp4", "b"]) == 2
    assert "the following arguments are required: output" in capsys.readouterr().err
    assert cli.main(["edit", "--jobs", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
