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
A plugin for pytest (`-p coverage_map`): which tests run which lines, and how long each takes.

Every process of a test run, and every Python process that a test starts, leaves a file in the folder
`LOOMVIDEO_COVERAGE`; `read` puts them together. Lines of code that a model folder carries count as those of the file
that it is a copy of.
"""

import json
import os
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

import coverage
import pytest


FOLDER = os.environ.get("LOOMVIDEO_COVERAGE")
ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = (ROOT / "pipelines", ROOT / "src" / "loomvideo_diffusers" / "models")


def start(context: str = "") -> coverage.Coverage:
    """Measures this process, as part of a test if it is one that the test started."""
    folders = [*(f"{ROOT / name}/*" for name in ("src", "pipelines", "conversion")), "*/diffusers_modules/*"]
    measured = coverage.Coverage(
        data_file=f"{FOLDER}/lines", data_suffix=True, include=folders, config_file=False, context=context or None
    )
    measured._warn_no_data = False
    measured.start()
    return measured


def read(folder: Path) -> tuple[dict[str, dict[int, list[str]]], dict[str, float], list[str]]:
    """Returns the tests that run each line of each file, the processor seconds of each, and the modules imported."""
    lines = defaultdict(lambda: defaultdict(set))
    for path in folder.glob("lines.*"):
        data = coverage.CoverageData(path)
        data.read()
        for file in data.measured_files():
            if (name := _name(Path(file))) is None:
                continue
            for line, tests in data.contexts_by_lineno(file).items():
                lines[name][line].update(tests)
    seconds, modules = {}, {}
    for path in folder.glob("process.*.json"):
        process = json.loads(path.read_text())
        seconds |= process["seconds"]
        modules |= dict.fromkeys(process["modules"])
    covered = {file: {line: sorted(tests) for line, tests in of.items()} for file, of in lines.items()}
    return covered, seconds, list(modules)


def _name(file: Path) -> str | None:
    """The file's name in the repository, if it is part of it or, which may be gone by now, a copy of a part."""
    if file.is_relative_to(ROOT):
        return str(file.relative_to(ROOT))
    originals = (folder / file.name for folder in PUBLISHED)
    return next((str(original.relative_to(ROOT)) for original in originals if original.is_file()), None)


def _libraries() -> list[str]:
    """The modules that this process imported and that belong to no repository."""
    folders = sysconfig.get_path("stdlib"), "site-packages", "dist-packages"
    return [
        name
        for name, module in sys.modules.items()
        if any(folder in str(getattr(module, "__file__", None)) for folder in folders)
        and name.partition(".")[0] not in ("coverage", "sitecustomize", "usercustomize", "xdist", "execnet")
    ]


class _Recorder:
    def __init__(self) -> None:
        self.coverage = start()
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.coverage.switch_context(item.nodeid)
        start = sum(os.times()[:4])
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = sum(os.times()[:4]) - start
            self.coverage.switch_context("")

    def pytest_runtest_logreport(self, report):
        if not report.passed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self):
        self.coverage.stop()
        self.coverage.save()
        passed = {test: seconds for test, seconds in self.seconds.items() if test not in self.failed}
        process = {"seconds": passed, "modules": _libraries()}
        Path(FOLDER, f"process.{os.getpid()}.json").write_text(json.dumps(process))


if FOLDER and not os.environ.get("PYTEST_CURRENT_TEST"):
    _recorder = _Recorder()

    def pytest_configure(config):
        config.pluginmanager.register(_recorder)
