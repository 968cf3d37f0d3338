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
"""What is built of the package, and that it works where there is nothing but what it asks for."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import loomvideo_diffusers
from loomvideo_diffusers.media import read_video


ROOT = Path(__file__).parent.parent
ROOTS = {"src/loomvideo_diffusers": "", "pipelines": ".pipelines", "conversion": ".conversion"}
ROOTS["model_cards"] = ".model_cards"
# The card's pictures, which stay in the checkout
LEFT_OUT = "src/loomvideo_diffusers/nano/loomvideo-nano/samples"


def read_settings():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    return settings


def test_every_package_is_listed():
    """Setuptools finds none of them by itself, as they have several roots."""
    listed = read_settings()["options"]["packages"].split()
    found = []
    for root, name in ROOTS.items():
        for file in (ROOT / root).rglob("__init__.py"):
            inner = file.parent.relative_to(ROOT / root).parts
            found.append(".".join([f"loomvideo_diffusers{name}", *inner]))
    assert sorted(listed) == sorted(found)


def copy_dependencies(name, folder):
    """Links what a distribution needs, and what that needs, as far as it is installed here, into an empty folder."""
    folder.mkdir()
    waiting, done = [(text, {""}) for text in distribution(name).requires], set()
    while waiting:
        text, extras = waiting.pop()
        requirement = Requirement(text)
        is_needed = requirement.marker is None or any(requirement.marker.evaluate({"extra": one}) for one in extras)
        if not is_needed or (requirement.name, *requirement.extras) in done:
            continue
        done.add((requirement.name, *requirement.extras))
        found = distribution(requirement.name)
        waiting += [(text, {"", *requirement.extras}) for text in found.requires or []]
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(found.locate_file(top))


@pytest.mark.slow
def test_installed_from_what_was_built(tmp_path):
    """The wheel is built from the sdist, and installed where only its dependencies are, far from any checkout."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in ROOTS:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}

    def run(*command):
        arguments = [str(argument) for argument in command]
        result = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "built", source)
    (wheel,), (sdist,) = (list((tmp_path / "built").glob(f"*.{suffix}")) for suffix in ("whl", "tar.gz"))
    names = {name.removeprefix("loomvideo_diffusers/") for name in zipfile.ZipFile(wheel).namelist()}
    expected = {
        file.relative_to(ROOT).as_posix().removeprefix("src/loomvideo_diffusers/")
        for root in ROOTS
        for file in (ROOT / root).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and ROOT / LEFT_OUT not in file.parents
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/samples/" in name]

    venv.create(tmp_path / "venv")
    bin_dir = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = bin_dir / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-index", "--no-deps", wheel)
    copy_dependencies("loomvideo-diffusers", tmp_path / "dependencies")
    (site / "dependencies.pth").write_text(f"{tmp_path / 'dependencies'}\n")
    assert "No broken requirements found" in run(*pip, "check")
    where, others = json.loads(
        run(
            python,
            "-c",
            "import importlib.util as u, json, loomvideo_diffusers as l;"
            "print(json.dumps([l.__file__, [m for m in ('pytest', 'peft', 'torchao') if u.find_spec(m)]]))",
        )
    )
    assert Path(where).is_relative_to(site)
    assert others == []
    assert f"loomvideo-diffusers  {loomvideo_diffusers.__version__}" in run(bin_dir / "loomvideo", "info")
    run(bin_dir / "loomvideo", "generate", "a red heart moves right", "--seed", "0", "-o", "heart.mp4")
    assert read_video(tmp_path / "heart.mp4").shape == (17, 96, 96, 3)
