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
"""Texts that people have: prompts, files of JSON in any encoding, and names that a terminal cannot show."""

import codecs
import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import FIXTURES, messages
from terminal import run_in_terminal

from loomvideo_diffusers import cli
from loomvideo_diffusers.errors import LoomVideoError
from loomvideo_diffusers.fleet.jobs import read_jobs
from loomvideo_diffusers.media.records import read_json_records
from loomvideo_diffusers.pipelines.loomvideo_mllm import check_prompt
from loomvideo_diffusers.training.config import DatasetSettings, ValidationSample
from loomvideo_diffusers.training.data import _read_dataset


SEPARATORS = "\u2028 \u2029 \x85 \v \f \x1c"
BAD_PROMPTS = {
    "": "is blank",
    " \t\n": "is blank",
    "\u00a0\u3000": "is blank",
    "\u200b\ufeff\u2060": "is blank",
    "\u0301": "is blank",
    "a <|im_end|>": r"must not hold the MLLM's markers, such as <\|im_end\|>",
    "<|vision_start|>a": "must not hold the MLLM's markers",
    "a<|object_ref_start|>": "must not hold the MLLM's markers",
    "a\udce9": "holds half a character",
    "a\0b": "holds half a character",
}
GOOD_PROMPTS = ["a", "½", "猫", "🐈", "a <| b |> c", "if a<b|c>d", f"in {SEPARATORS} lines", "e\u0301", "☃\ufe0f"]


@pytest.mark.parametrize("prompt", BAD_PROMPTS, ids=ascii)
def test_bad_prompts(prompt, pipe, edit, clip, tmp_path, capsys):
    """The same rule everywhere, and of a negative prompt all of it but that it may be blank."""
    why = BAD_PROMPTS[prompt]
    is_blank = why == "is blank"
    with pytest.raises(ValueError, match=why):
        check_prompt(prompt)
    with pytest.raises(ValueError, match=why):
        pipe(prompt, num_frames=1, height=64, width=64, num_inference_steps=1)
    with pytest.raises(ValueError, match=why):
        pipe.encode_prompt(prompt)
    with pytest.raises(ValueError, match=why):
        edit(["good", prompt], video=[clip, clip], num_inference_steps=1)
    if not is_blank:
        with pytest.raises(ValueError, match=why):
            pipe("good", negative_prompt=prompt, num_frames=1, height=64, width=64, num_inference_steps=1)
    with pytest.raises(ValueError, match=why):
        ValidationSample(prompt=prompt)
    (tmp_path / "clip.mp4").write_text("")
    (tmp_path / "records.jsonl").write_text(json.dumps({"text": prompt, "path": "clip.mp4"}))
    with pytest.raises(ValueError, match=rf"records\.jsonl:1.* {why}"):
        list(_read_dataset(DatasetSettings(records=str(tmp_path / "records.jsonl"))))
    job = {"input": "clip.mp4", "prompt": prompt, "output": "out.mp4"}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    with pytest.raises(ValueError, match=rf"jobs\.jsonl:1.* {why}"):
        read_jobs(tmp_path / "jobs.jsonl")
    output = ["-o", str(tmp_path / "out.mp4")]
    commands = [["generate", prompt, *output], ["edit", str(FIXTURES / "cat.mp4"), prompt, *output]]
    if not is_blank:
        commands.append(["generate", "good", "--negative-prompt", prompt, *output])
    for command in commands:
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert why.split(",")[0] in error
        assert error.count("\n") == 1


def test_good_prompts(pipe):
    for prompt in GOOD_PROMPTS:
        check_prompt(prompt)
    check_prompt("", may_be_blank=True)
    pipe.encode_prompt("good", negative_prompt="", do_classifier_free_guidance=True)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r", "\n\n \n"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
    ],
)
def test_encodings(encoding, mark, line_end, tmp_path):
    """Of Windows' Notepad and PowerShell, and of old Macs; other separators of lines stay in the prompt."""
    prompts = [f"in {SEPARATORS} lines", "Nachts ☃ 猫"]
    for name in ("input.mp4", "clip.mp4"):
        (tmp_path / name).write_text("")
    lines = [
        json.dumps({"input": "input.mp4", "prompt": prompt, "output": f"{index}.mp4"}, ensure_ascii=False)
        for index, prompt in enumerate(prompts)
    ]
    (tmp_path / "jobs.jsonl").write_bytes(mark + line_end.join([*lines, ""]).encode(encoding))
    assert [job.prompt for job in read_jobs(tmp_path / "jobs.jsonl")] == prompts
    lines = [json.dumps({"text": prompt, "path": "clip.mp4"}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "records.jsonl").write_bytes(mark + line_end.join(lines).encode(encoding))
    (tmp_path / "records.json").write_bytes(mark + f"[{','.join(lines)}]".encode(encoding))
    for name in ("records.jsonl", "records.json"):
        records = _read_dataset(DatasetSettings(records=str(tmp_path / name)))
        assert [record["prompt"] for record in records] == prompts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"a": 1}\n{"a": "é"}\n'.encode("latin-1"), r"file\.jsonl:2 is not in UTF-8: save the file as UTF-8"),
        ('{"a": "“"}'.encode("cp1252"), r"file\.jsonl:1 is not in UTF-8"),
        ('{"a": "动物"}'.encode("gbk"), r"file\.jsonl:1 is not in UTF-8"),
        ('{"a": 1}'.encode("utf-16-le"), r"file\.jsonl .*: save it as UTF-8"),
        (codecs.BOM_UTF16_LE + b"{\0a", r"file\.jsonl:1 is not in UTF-16"),
        (b"\x89PNG\r\n\x1a\n", r"file\.jsonl:1 is not in UTF-8"),
        (b'{"a": 1, "a": 2}', r"file\.jsonl:1 .*the key `a` twice"),
        (b'{"a": NaN}', r"file\.jsonl:1 .*NaN"),
        (b'{"a": -Infinity}', r"file\.jsonl:1 .*-Infinity"),
        (b'{"a": 1e999}', r"file\.jsonl:1 .*1e999, which is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"file\.jsonl:1 .*a number of 5000 digits"),
        (b"\n" + b"[" * 100_000, r"file\.jsonl:2 .*nested too deeply"),
        (b'{"a": "\\ud800"}', r"file\.jsonl:1 holds half a character"),
        (b'{"a": 1} {"a": 2}', r"file\.jsonl:1 is not JSON: Extra data at column 10"),
        (b"{'a': 1}", r"file\.jsonl:1 is not JSON: Expecting property name"),
        (b'{"a": "b\tc"}', r"file\.jsonl:1 is not JSON: Invalid control character"),
    ],
)
def test_bad_files(data, message, tmp_path):
    (tmp_path / "file.jsonl").write_bytes(data)
    with pytest.raises(LoomVideoError, match=message) as error:
        list(read_json_records(tmp_path / "file.jsonl"))
    assert len(str(error.value)) < 200 + len(str(tmp_path))


def test_the_longest_number(tmp_path):
    (tmp_path / "file.json").write_text(f"[{'9' * 1000}, {'9' * 1000}]")
    assert [value for _, value in read_json_records(tmp_path / "file.json")] == [10**1000 - 1] * 2
    (tmp_path / "file.json").write_text("9" * 1001)
    with pytest.raises(LoomVideoError, match="1001 digits"):
        list(read_json_records(tmp_path / "file.json"))


def test_one_value_or_many(tmp_path):
    for name, text, places in (
        ("a.json", '{\n"a": 1\n}', ["a.json[0]"]),
        ("b.json", '[{"a": 1},\n{"a": 1}]', ["b.json[0]", "b.json[1]"]),
        ("c.json", '{"a": 1}\n{"a": 1}', ["c.json:1", "c.json:2"]),
        ("d.jsonl", '\n{"a": 1}', ["d.jsonl:2"]),
        ("e", '{"a": 1}', ["e:1"]),
        ("f.json", "", []),
    ):
        (tmp_path / name).write_text(text)
        assert list(read_json_records(tmp_path / name)) == [(str(tmp_path / place), {"a": 1}) for place in places]
    with pytest.raises(LoomVideoError, match=r"none\.jsonl cannot be read: name a JSON or JSONL file"):
        list(read_json_records(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("utf-8", marks=pytest.mark.slow)])
def test_names_that_cannot_be_shown(encoding, model_folder, tmp_path):
    """What a terminal cannot show is no reason to fail after all is done; `info` reads it again."""
    name = tmp_path / os.fsdecode("猫 'é\xff".encode() + b"\xe9\n.png")
    shutil.copy(FIXTURES / "coffee.jpg", tmp_path / "é.jpg")
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
    options = ["--model", model_folder, "--steps", "1", "--height", "64", "--width", "64"]
    command = [sys.executable, "-m", "loomvideo_diffusers"]
    edit = [*command, "edit", tmp_path / "é.jpg", "it's 猫", "-o", name, *options]
    result = subprocess.run(edit, capture_output=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert name.exists()
    result = subprocess.run([*command, "info", name], capture_output=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert b"loomvideo edit" in result.stdout


def test_nothing_is_overwritten_under_another_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(FIXTURES / "cat.mp4", "cat.mp4")
    shutil.copy(FIXTURES / "coffee.jpg", "coffee.jpg")
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "hard.mp4").hardlink_to("cat.mp4")
    before = sorted(os.listdir())
    for command, message in (
        ("generate a -o coffee.jpg --reference coffee.jpg", "coffee.jpg is named twice"),
        (
            "generate a -o link/coffee.jpg --reference coffee.jpg",
            "link/coffee.jpg is named twice",
        ),
        ("edit cat.mp4 a -o link/cat.mp4", "link/cat.mp4 is named twice"),
        ("edit cat.mp4 a -o hard.mp4", "hard.mp4 is named twice"),
        ("edit cat.mp4 a -o b.mp4 --compare link/b.mp4", "b.mp4 is named twice"),
        ("edit cat.mp4 a -o b.mp4 --contact-sheet ./coffee.jpg --reference coffee.jpg", "coffee.jpg is named twice"),
        ("edit coffee.jpg a -o b.png --contact-sheet link/b.png", "b.png is named twice"),
    ):
        assert cli.main(command.split()) == 2
        assert message in capsys.readouterr().err
    assert sorted(os.listdir()) == before


def test_an_error_is_the_last_line(model_folder, tmp_path):
    """Of jobs of which one fails: one bar, what is said above it, once, and the error alone."""
    shutil.copy(FIXTURES / "cat.mp4", tmp_path / "cat.mp4")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "cat.mp4").read_bytes()[:5000])
    jobs = [
        {"input": name, "prompt": "blue", "output": output}
        for name, output in (("cat.mp4", "a.mp4"), ("cut.mp4", "b.mp4"), ("cat.mp4", "c.mp4"))
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    options = ["--model", str(model_folder), "--height", "64", "--width", "64", "--steps", "1"]
    command = [sys.executable, "-m", "loomvideo_diffusers", "edit", "--jobs", "jobs.jsonl"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    status, screen, states = run_in_terminal(
        [*command, *options, "--window", "17"], 200, cwd=tmp_path, env=environment
    )
    assert status == 2
    wrote_a, failed, wrote_c, bar, error = messages("\n".join(screen))
    assert wrote_a.startswith("Wrote a.mp4: 33 frames")
    assert failed.startswith("loomvideo: b.mp4 was not made: cut.mp4 ")
    assert wrote_c.startswith("Wrote c.mp4: 33 frames")
    assert bar.startswith("Jobs: 100%")
    assert error == "loomvideo: error: 1 of 3 jobs failed: the others are done."
    assert any(state.startswith("Jobs 2/3, Denoising:") and "step 1/1, window 2/" in state for state in states)
