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
import hashlib
import json
import re
import shutil
import tempfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import FIXTURES
from fsspec.implementations.memory import MemoryFileSystem
from torch.nn.modules.module import register_module_forward_hook

from loomvideo_diffusers import cli
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.fleet import ClipEditor, addresses
from loomvideo_diffusers.fleet import report as fleet_report
from loomvideo_diffusers.fleet.jobs import EditJob, read_jobs
from loomvideo_diffusers.fleet.report import read_report
from loomvideo_diffusers.fleet.run import run_jobs
from loomvideo_diffusers.fleet.work import Disk, plan_job
from loomvideo_diffusers.footage import run
from loomvideo_diffusers.media import read_comment, read_video
from loomvideo_diffusers.media.files import lock_beside


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


@pytest.fixture
def do(jobs, model_folder, capsys):
    """Runs the jobs with more options. Returns the exit status and what was said."""

    def do(*options, command="edit", path=jobs):
        status = cli.main([command, "--jobs", str(path), "--model", str(model_folder), *OPTIONS, *options])
        said = capsys.readouterr()
        return status, said.out + said.err

    return do


def outputs_in(said):
    return sorted(Path(name).name for name in re.findall(r"Wrote (\S+):", said))


def test_a_second_run_does_what_is_not_done(do, jobs, tmp_path):
    """What failed, what was changed, what is gone, what is new; and no more."""
    assert outputs_in(do()[1]) == ["blue.png", "cup.mp4", "night.mp4"]
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    status, said = do()
    assert status == 2
    assert f"3 of 4 jobs are done: see {tmp_path / 'jobs.report.jsonl'}." in said
    assert outputs_in(said) == []
    assert "1 of 1 jobs failed" in said

    shutil.copy(FIXTURES / "cat.mp4", tmp_path / "cut.mp4")
    text = jobs.read_text().replace('"put it on"', '"put it off"')
    jobs.write_text(text + json.dumps({"input": "coffee.jpg", "prompt": "a", "output": "new.png"}))
    (tmp_path / "blue.png").unlink()
    status, said = do()
    assert (status, outputs_in(said)) == (0, ["blue.png", "cup.mp4", "new.png", "none.mp4"])
    assert before["blue.png"] == (tmp_path / "blue.png").read_bytes()
    assert do()[1].count("\n") == 1
    assert outputs_in(do("--steps", "2")[1]) == ["blue.png", "cup.mp4", "new.png", "night.mp4", "none.mp4"]
    assert do("--steps", "2", "--cpu-offload")[1].startswith("loomvideo: 5 of 5 jobs are done")
    # What was made before that is no longer there.
    assert outputs_in(do()[1]) == ["blue.png", "cup.mp4", "new.png", "night.mp4", "none.mp4"]


def test_verification(do, tmp_path):
    do()
    before = (tmp_path / "night.mp4").read_bytes()
    (tmp_path / "night.mp4").write_bytes(b"damaged")
    (tmp_path / "cup.mp4").unlink()
    assert len(re.findall(r"Wrote \S+: as it was", do("--verify")[1])) == 1
    assert (tmp_path / "night.mp4").read_bytes() == before
    assert (tmp_path / "cup.mp4").exists()
    report = (tmp_path / "jobs.report.jsonl").read_bytes()
    said = do("--verify")[1]
    assert len(re.findall(r"Wrote \S+: as it was", said)) == 3
    lines = (tmp_path / "jobs.report.jsonl").read_bytes().removeprefix(report).splitlines()
    assert [Path(json.loads(line)["output"]).name for line in lines] == ["none.mp4"]


def test_reports(do, jobs, tmp_path, capsys):
    """As lines and as Parquet; a line that a kill tore is dropped; the table says why what failed."""
    do()
    lines, table = tmp_path / "jobs.report.jsonl", tmp_path / "jobs.report.parquet"
    with open(lines, "a") as file:
        file.write('{"output": "torn')
    do()
    records = read_report(lines)
    assert [Path(record["output"]).name for record in records] == ["night.mp4", "blue.png", "none.mp4", "cup.mp4"]
    assert sorted(read_report(table), key=str) == sorted(records, key=str)
    assert records[0]["sha256"] == hashlib.sha256((tmp_path / "night.mp4").read_bytes()).hexdigest()
    assert records[0]["bytes"] == (tmp_path / "night.mp4").stat().st_size
    assert records[0]["duration"] == 1.375
    assert records[0]["seconds"].keys() == {"read", "edit"}
    for path in (lines, table):
        assert cli.main(["report", str(path)]) == 0
        said = capsys.readouterr().out
        assert said.startswith("4 jobs: 3 done (3 s of video), 1 failed")
        assert "1       the input is truncated: choose a complete file." in said
        assert "cup.mp4" in said


def test_what_is_no_report(do, jobs, tmp_path):
    for name, content, message in (
        ("a.jsonl", '{"a": 1}\n', "a.jsonl:1 is not what became of a job: name a report, or a new file."),
        # Nor is anything of a list lost, with or without an end of its last line
        ("b.jsonl", line(), "b.jsonl:1 is not what became of a job: name a report, or a new file."),
        ("c.jsonl", line().rstrip(), "c.jsonl:1 is not what became of a job: name a report, or a new file."),
        ("d.jsonl", "my notes", "d.jsonl:1 is not what became of a job: name a report, or a new file."),
        ("a.txt", "", "a.txt must end in .jsonl."),
    ):
        (tmp_path / name).write_text(content)
        status, said = do("--report", str(tmp_path / name))
        assert (status, said) == (2, f"loomvideo: error: {tmp_path / message}\n")
        assert (tmp_path / name).read_text() == content
    with lock_beside(tmp_path / "jobs.report.jsonl"):
        status, said = do()
    assert status == 2
    assert "Another run is writing to" in said


def test_generations(do, tmp_path):
    lines = [
        {"prompt": "a cat", "output": "a.png", "seed": 1},
        {"prompt": "a cup like @Image 1", "output": "b.mp4", "reference": ["coffee.jpg"]},
        {"prompt": "a cup like @Image 1", "output": "c.mp4", "reference": ["cut.mp4"]},
    ]
    path = tmp_path / "generations.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    status, said = do("--frames", "5", command="generate", path=path)
    assert status == 2
    assert "c.mp4 was not made: " in said
    assert len(read_video(tmp_path / "b.mp4")) == 5
    command = json.loads(read_comment(tmp_path / "b.mp4"))["command"]
    assert command.startswith("loomvideo generate 'a cup like @Image 1' ")
    assert f"--reference {tmp_path / 'coffee.jpg'}" in command
    assert "--jobs" not in command
    path.write_text(json.dumps(lines[0] | {"input": "cat.mp4"}))
    assert "input: a job has nothing of that name" in do(command="generate", path=path)[1]


def test_options_of_clips_leave_images_alone(do, tmp_path):
    _, said = do("--frames", "5", "--audio", "none", "--keep-unchanged")
    assert outputs_in(said) == ["blue.png", "cup.mp4", "night.mp4"]
    assert len(read_video(tmp_path / "night.mp4")) == 5


def test_seeds_of_jobs():
    """They are stated, or of the command, or follow from what is written where."""
    job = EditJob(**JOB)
    assert job.choose_seed(None) == EditJob(**JOB).choose_seed(None)
    assert job.choose_seed(7) == 7
    assert EditJob(**JOB, seed=3).choose_seed(7) == 3
    others = [EditJob(**JOB | change) for change in ({"output": "d.mp4"}, {"prompt": "c"})]
    assert len({one.choose_seed(None) for one in (job, *others)}) == 3
    signed = [EditJob(**JOB | {"output": f"s3://a/b.mp4?signature={number}"}) for number in range(2)]
    assert len({one.choose_seed(None) for one in signed}) == 1


def test_options_of_lists(capsys):
    for option in (["--ray"], ["--verify"], ["--workers", "2"], ["--report", "a.jsonl"]):
        for command in (["edit", "a.mp4", "b"], ["generate", "b"]):
            assert cli.main([*command, "-o", "c.mp4", *option]) == 2
            assert f"{option[0]} is for lists: give one with --jobs" in capsys.readouterr().err
    assert cli.main(["generate", "--jobs", "a.jsonl", "b"]) == 2
    assert "with --jobs, prompts and outputs are in the file" in capsys.readouterr().err


def test_the_disk_is_bounded(monkeypatch, tmp_path):
    """What does not fit waits, what never fits is refused, and folders of killed runs are removed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    disk, order = Disk(1e-6), []
    with pytest.raises(LoomVideoError, match="give more with --disk"), disk.room(1001):
        pass

    def wait():
        with disk.room(600):
            order.append("second")

    with disk.room(600) as folder:
        (folder / "file").write_text("a")
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_clips_of_batches(edit, tmp_path):
    """Rows with files or frames; one that is wrong says so and harms no other."""
    settings = {"height": 64, "width": 64, "num_inference_steps": 1}
    editor = ClipEditor(lambda: edit, num_frames=5, **settings)
    frames = np.zeros((5, 64, 64, 3), np.uint8)
    rows = [
        {"input": str(FIXTURES / "cat.mp4"), "output": "a.mp4", "frames": None, "seed": 1},
        {"input": None, "output": "b.mp4", "frames": frames, "seed": 2},
        {"input": None, "output": "c.png", "frames": frames[0], "seed": 3},
        {"input": None, "output": "d.png", "frames": frames[0].astype(float), "seed": 4},
        {"input": None, "output": "e.mp4", "frames": None, "seed": 5},
        {"input": str(FIXTURES / "coffee.jpg"), "output": "f.mp4", "frames": None, "seed": 6},
    ]
    batch = {name: column_of([row[name] for row in rows]) for name in ("input", "frames", "seed")}
    batch |= {"output": np.array([str(tmp_path / row["output"]) for row in rows]), "prompt": np.array(["blue"] * 6)}
    edited = editor(batch)
    assert edited.keys() == {"input", "seed", "output", "prompt", "sha256", "duration", "seconds", "error"}
    assert [bool(error) for error in edited["error"]] == [False, False, False, True, True, True]
    assert "uint8 [F, H, W, 3] or [H, W, 3] is needed, not float64 (64, 64, 3)" in edited["error"][3]
    assert edited["error"][4] == "input: Field required."
    assert "is an image" in edited["error"][5]
    assert edited["sha256"][1] == hashlib.sha256((tmp_path / "b.mp4").read_bytes()).hexdigest()
    assert len(read_video(tmp_path / "b.mp4")) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "c.png"]


def column_of(values):
    column = np.empty(len(values), object)
    column[:] = values
    return column


JOB = {"input": "cat.mp4", "prompt": "b", "output": "c.mp4"}


def line(**changes) -> str:
    return json.dumps({key: value for key, value in (JOB | changes).items() if value is not None}) + "\n"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """What is at `memory://bucket/`: a clip and an image."""
    monkeypatch.chdir(tmp_path)  # Reports of lists at addresses are written there.
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
        ("jobs.jsonl", line(output="memory://a/b.txt?secret").encode(), "memory://a/b.txt must end in"),
        ("jobs.jsonl", line(output="https://a.b/c.mp4?secret").encode(), "https://a.b/c.mp4 cannot be written"),
        ("jobs.jsonl", line(input="nothing://a/b.mp4?secret").encode(), "nothing://a/b.mp4 cannot be reached"),
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


def test_a_report_at_an_address(do, bucket, monkeypatch):
    """It is delivered as lines and as Parquet, and the next run goes on from it; what may not be read is not new."""
    address = "memory://bucket/reports/r.jsonl"
    assert "3 of 4 jobs are done" not in do("--report", address)[1]
    assert {"/bucket/reports/r.jsonl", "/bucket/reports/r.parquet"} <= set(bucket.store)
    assert f"3 of 4 jobs are done: see {address}." in do("--report", address)[1]
    assert len(read_report(address)) == 4
    monkeypatch.setattr(fleet_report, "SECONDS_BETWEEN_DELIVERIES", 0)
    monkeypatch.setattr(addresses, "PAUSES", ())
    put_file, errors = MemoryFileSystem.put_file, [OSError("the line is down")]

    def fail_once(*arguments, **options):
        if errors:
            raise errors.pop()
        put_file(*arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", fail_once)
    said = do("--report", address)[1]
    assert f"{address} cannot be written (OSError: the line is down): the report is kept here meanwhile." in said
    assert len(read_report(address)) == 4
    errors += [OSError("the line is down")] * 3
    kept = re.search(r"The report is kept as (\S+)\.$", do("--report", address)[1].strip())
    assert len(read_report(kept[1])) == 4
    errors.clear()
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *_, **__: (_ for _ in ()).throw(PermissionError("no")))
    assert f"{address} may not be read here (no): see who may." in do("--report", address)[1]
