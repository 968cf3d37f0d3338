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
Makes small mistakes in the code, one at a time, and counts those that the tests notice. `make mutants` runs it.

Of all mistakes that `operators` knows, a seed draws 100: from each part of the code as many as `ROOMS` says, and in
a part of each kind equally often. Each is made in a copy of the repository, where the tests run that run its line, the
fastest first, until one fails that passes without it. Verdicts are written as they come, and a run that was stopped
goes on.

`coverage_map` says which tests run which lines. That takes a run of all tests, once; when only tests have changed, of
those files alone.
"""

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import queue
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from operators import Change, changes_of, compiles, enclosing_function, names_defined  # noqa: E402


BUILD = ROOT / "build" / "mutation"
VERDICTS = HERE / "verdicts.json"
EXCUSES = HERE / "excuses.json"
PACKAGE = "src/loomvideo_diffusers"
# How many of 100 mistakes are made in which part
ROOMS = {
    "pipelines": (24, ["pipelines"]),
    "models": (12, [f"{PACKAGE}/models"]),
    "media": (14, [f"{PACKAGE}/media"]),
    "footage": (16, [f"{PACKAGE}/footage", f"{PACKAGE}/fleet"]),
    "training": (14, [f"{PACKAGE}/training"]),
    "command line": (10, [f"{PACKAGE}/cli"]),
    "hub": (10, [f"{PACKAGE}/hub", "conversion"]),
}
SMALLEST_SHARE, MOST_EXCUSED = 0.85, 5
# What is run for one mistake at most, as it took when nothing was wrong
MAX_TESTS, MAX_SECONDS = 100, 60.0
# A test hangs that takes so many times as long as it did, and so many seconds more.
HANGS = 20.0, 60.0
GIVEN_UP = 400.0


@dataclass
class Verdict:
    """
    What the tests said about a mistake: `caught` by a test, `hung` where a test that runs the line never ended,
    `missed`, or `given up` when the tests took too long for an answer. `reason` says why a miss is excused.
    """

    room: str
    file: str
    line: int
    operator: str
    before: str
    after: str
    verdict: str
    test: str | None = None
    seconds: float = 0.0
    num_tests: int = 0
    reason: str | None = None

    @property
    def key(self) -> str:
        return f"{self.file}: {self.before} => {self.after}"


@dataclass(frozen=True)
class Mutant:
    room: str
    file: str
    change: Change
    before: str
    after: str

    @property
    def key(self) -> str:
        return f"{self.file}: {self.before} => {self.after}"


def draw(number: int, seed: int) -> list[Mutant]:
    """Draws mistakes, in random order."""
    rng = random.Random(seed)
    total = sum(share for share, _ in ROOMS.values())
    mutants = []
    for room, (share, folders) in ROOMS.items():
        by_operator = defaultdict(list)
        for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
            source = path.read_bytes()
            for change in changes_of(source):
                by_operator[change.operator].append((path, source, change))
        drawn = {}
        while by_operator and len(drawn) < max(1, round(number * share / total)):
            operator = rng.choice(sorted(by_operator))
            choices = by_operator[operator]
            path, source, change = choices.pop(rng.randrange(len(choices)))
            if not choices:
                del by_operator[operator]
            if not compiles(change.apply(source)):
                continue
            file = str(path.relative_to(ROOT))
            mutant = Mutant(room, file, change, *_shown(source, change))
            drawn.setdefault(mutant.key, mutant)
        mutants += drawn.values()
    rng.shuffle(mutants)
    return mutants


def _shown(source: bytes, change: Change) -> tuple[str, str]:
    """The lines that change, before and after."""
    start = source.rfind(b"\n", 0, change.start) + 1
    end = source.find(b"\n", change.end)
    after = source[start : change.start] + change.new + source[change.end : end]
    return tuple(" ".join(text.decode().split()) for text in (source[start:end], after))


class CoverageMap:
    """Which tests run a line, how many lines each runs, and how long it takes."""

    def __init__(self, recorded: dict) -> None:
        self.covered = {
            file: {int(line): tests for line, tests in of.items()} for file, of in recorded["covered"].items()
        }
        self.seconds = recorded["seconds"]
        self.modules = recorded["modules"]
        self.reach = Counter(test for of in self.covered.values() for tests in of.values() for test in tests)

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run a line, or what is computed by it if it runs as its module is imported."""
        lines = self.covered.get(mutant.file, {})
        tree = ast.parse((ROOT / mutant.file).read_bytes())
        line, function = mutant.change.line, enclosing_function(tree, mutant.change.line)
        last = line + mutant.before.count("\n")
        tests = {test for at in range(line, last + 1) for test in lines.get(at, ()) if test}
        tests = tests or self._tests_of_statement(tree, line, lines)
        if function is None:
            # Some test imports the module first; those are meant that use what it defines.
            tests = self._tests_that_read(set(names_defined(tree, line))) or tests
            tests = tests or {test for of in lines.values() for test in of if test}
        elif not tests and line in lines:
            body = range(function.body[0].lineno, function.end_lineno + 1)
            tests = {test for at in body for test in lines.get(at, ()) if test}
        return self._spread(tests)

    def _tests_of_statement(self, tree: ast.Module, line: int, lines: dict[int, list[str]]) -> set[str]:
        """Coverage counts the first lines of the parts of a long statement, not all of its lines."""
        around = [
            node for node in ast.walk(tree)
            if isinstance(node, ast.stmt) and not hasattr(node, "body") and node.lineno <= line <= node.end_lineno
        ]  # fmt: skip
        return {test for node in around for at in range(node.lineno, line + 1) for test in lines.get(at, ()) if test}

    def _tests_that_read(self, names: set[str]) -> set[str]:
        tests = set()
        for file, lines in self.covered.items() if names else ():
            for number, text in enumerate((ROOT / file).read_text().splitlines(), 1):
                if any(re.search(rf"\b{name}\b", text) for name in names):
                    tests.update(test for test in lines.get(number, ()) if test)
        return tests

    def _spread(self, tests: set[str]) -> list[str]:
        """
        As many as may run, the fastest first: one of each function, then the next of each, and rather those that run
        few lines, as they look at what these do.
        """
        turns: Counter[str] = Counter()
        ranked = []
        for test in sorted(tests & self.seconds.keys(), key=lambda test: (self.reach[test], test)):
            function = test.partition("[")[0]
            ranked.append((turns[function], self.reach[test], test))
            turns[function] += 1
        chosen, seconds = [], 0.0
        for *_, test in sorted(ranked):
            if len(chosen) < MAX_TESTS and (not chosen or seconds + self.seconds[test] <= MAX_SECONDS):
                chosen.append(test)
                seconds += self.seconds[test]
        return sorted(chosen, key=lambda test: self.seconds[test])


def _digests(folders: list[str], pattern: str) -> dict[str, str]:
    files = sorted(path for folder in folders for path in (ROOT / folder).rglob(pattern))
    return {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_map() -> CoverageMap:
    """Reads the coverage map, after the tests ran that are new or changed: all, if the code has changed."""
    path = BUILD / "map.json"
    sources = _digests(["src", "pipelines", "conversion"], "*.py") | _digests(["tests"], "conftest.py")
    tests = _digests(["tests"], "test_*.py")
    known = json.loads(path.read_text()) if path.exists() else {"sources": None}
    if known["sources"] != sources:
        known = {"sources": sources, "tests": {}, "covered": {}, "seconds": {}, "modules": []}
    changed = sorted(file for file in tests if tests[file] != known["tests"].get(file))
    if changed:
        print(f"Running the tests of {len(changed)} files to see which lines they run ...", flush=True)
        start = time.monotonic()
        new, seconds, modules = _measure(changed)
        gone = set(changed) | (set(known["tests"]) - set(tests))
        merged = defaultdict(lambda: defaultdict(set))
        for covered in (_without(known["covered"], gone), new):
            for file, lines in covered.items():
                for line, names in lines.items():
                    merged[file][str(line)].update(names)
        known |= {
            "tests": tests,
            "covered": {file: {line: sorted(names) for line, names in of.items()} for file, of in merged.items()},
            "seconds": {test: t for test, t in known["seconds"].items() if test.partition("::")[0] not in gone}
            | seconds,
            "modules": modules if len(modules) > len(known["modules"]) else known["modules"],
        }
        path.write_text(json.dumps(known))
        print(f"That took {time.monotonic() - start:.0f} s.", flush=True)
    return CoverageMap(known)


def _without(covered: dict, files: set[str]) -> dict:
    return {
        file: {line: [test for test in tests if test.partition("::")[0] not in files] for line, tests in lines.items()}
        for file, lines in covered.items()
    }


def _measure(files: list[str]) -> tuple[dict, dict[str, float], list[str]]:
    folder = BUILD / "measured"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = [str(HERE), str(HERE / "subprocesses"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "LOOMVIDEO_COVERAGE": str(folder)}
    command = [sys.executable, "-m", "pytest", "-p", "coverage_map", "-n", "2", "--dist", "worksteal", "-q", *files]
    log = folder / "log.txt"
    with open(log, "w") as output:
        status = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, check=False
        ).returncode
    if status not in (0, 1):
        sys.exit(f"The tests did not run: see {log}.")
    import coverage_map

    return coverage_map.read(folder)


class Worker:
    """A process that has a copy of the repository and has imported what the tests need of others."""

    def __init__(self, number: int, coverage_map: CoverageMap) -> None:
        self.folder = BUILD / f"worker-{number}"
        self.tree = self.folder / "tree"
        self.map = coverage_map
        self.sound: dict[str, bool] = {}
        self._copy()
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        for name in ("PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "LOOMVIDEO_COVERAGE"):
            os.environ.pop(name, None)
        os.environ |= {
            "PYTHONPATH": str(self.tree / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            # The Hub's client reads this once, and it is imported before the tests start their Hub.
            "LOOMVIDEO_TEST_HUB": f"{port}:{self.folder / 'home'}",
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(self.folder / "home"),
            "HF_TOKEN": "hf_mine",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }
        sys.dont_write_bytecode = True
        for name in self.map.modules:
            try:
                import_module(name)
            except Exception as error:
                print(f"{name} is imported by the tests alone: {error}", file=sys.stderr)
        sys.path[:] = [str(self.tree), str(self.tree / "tests"), str(self.tree / "src"), *sys.path[1:]]
        os.chdir(self.tree)

    def _copy(self) -> None:
        """Copies what git knows, and links the package's parts into it, so that one path is enough to import it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.tree / name)
        for name in ("pipelines", "conversion", "model_cards"):
            (self.tree / PACKAGE / name).symlink_to(self.tree / name)
        subprocess.run([sys.executable, "-m", "compileall", "-q", self.tree / PACKAGE], check=False)

    def judge(self, mutant: Mutant) -> Verdict:
        verdict = Verdict(
            mutant.room, mutant.file, mutant.change.line, mutant.change.operator, mutant.before, mutant.after, "missed"
        )
        tests = self.map.tests_of(mutant)
        start = time.monotonic()
        while tests:
            verdict.num_tests = len(tests)
            with self._made(mutant):
                verdict.verdict, verdict.test = self._run(tests)
            # A test, or those of a file that cannot be imported, or all when pytest came to an end before them
            blamed = [test for test in tests if test == verdict.test]
            blamed = blamed or [test for test in tests if test.startswith(verdict.test or "")] or tests
            if verdict.verdict in ("missed", "given up") or self._is_sound(blamed[0]):
                break
            # It fails when nothing is wrong too.
            tests = [test for test in tests if test not in blamed]
            verdict.verdict, verdict.test, verdict.num_tests = "missed", None, len(tests)
        verdict.seconds = round(time.monotonic() - start, 1)
        return verdict

    @contextmanager
    def _made(self, mutant: Mutant) -> Iterator[None]:
        """Makes a mistake in the copy, for a while."""
        path = self.tree / mutant.file
        source, times = path.read_bytes(), path.stat()
        path.write_bytes(mutant.change.apply(source))
        try:
            yield
        finally:
            path.write_bytes(source)
            # What was compiled of it holds again.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    def _is_sound(self, test: str) -> bool:
        """Whether a test passes when nothing is wrong."""
        if test not in self.sound:
            self.sound[test] = self._run([test])[0] == "missed"
        return self.sound[test]

    def _run(self, tests: list[str]) -> tuple[str, str | None]:
        progress = self.folder / "progress.json"
        progress.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "home", ignore_errors=True)
        child = os.fork()
        if child == 0:
            _run_tests(tests, progress, self.folder)
        start = time.monotonic()
        while not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.05)
            state = _read(progress)
            name, since = state.get("running"), state.get("since", start)
            factor, least = HANGS
            took = time.monotonic() - since
            if (name and took > least + factor * self.map.seconds.get(name, 0)) or (not name and took > 180):
                return self._stop(child, "hung", name)
            if time.monotonic() - start > GIVEN_UP:
                return self._stop(child, "given up", None)
        state = _read(progress)
        self._stop(None, "", None, group=child)
        if state.get("failed"):
            return "caught", state["failed"]
        # Else pytest itself, or the process, came to an end: at a test, or before them.
        return ("missed", None) if state.get("done") else ("caught", state.get("running"))

    def _stop(self, child: int | None, verdict: str, test: str | None, group: int | None = None):
        """Ends the process of the tests and all that they started."""
        with suppress(ProcessLookupError):
            os.killpg(child or group, signal.SIGKILL)
        if child:
            os.waitpid(child, 0)
        return verdict, test


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


class _Progress:
    """A plugin that writes down which test runs, and which failed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = {"since": time.monotonic()}

    def write(self, **state) -> None:
        self.state |= state
        self.path.with_suffix(".new").write_text(json.dumps(self.state))
        os.replace(self.path.with_suffix(".new"), self.path)

    def pytest_runtest_logstart(self, nodeid):
        self.write(running=nodeid, since=time.monotonic())

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.write(failed=report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed and report.nodeid:
            self.write(failed=report.nodeid)


def _run_tests(tests: list[str], progress: Path, folder: Path) -> None:
    """The child: runs tests and never returns."""
    os.setsid()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        import pytest

        recorder = _Progress(progress)
        recorder.write()
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-n", "0", "--tb=short"]
        options.append(f"--basetemp={folder / 'temporary'}")
        status = int(pytest.main([*options, *tests], plugins=[recorder]))
        recorder.write(done=status == 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


def _work(number: int, recorded: CoverageMap, waiting, verdicts) -> None:
    # What libraries say as they are imported
    os.dup2(os.open(BUILD / f"worker-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    worker = Worker(number, recorded)
    while True:
        try:
            mutant = waiting.get(timeout=1)
        except queue.Empty:
            return
        verdicts.put(worker.judge(mutant))


def judge_all(mutants: list[Mutant], known: dict[str, Verdict], num_workers: int) -> None:
    """Judges mistakes in several processes, and writes each verdict down as it comes."""
    recorded = read_map()
    context = multiprocessing.get_context("fork")
    waiting, verdicts = context.Queue(), context.Queue()
    for mutant in mutants:
        waiting.put(mutant)
    workers = [
        context.Process(target=_work, args=(number, recorded, waiting, verdicts), daemon=False)
        for number in range(min(num_workers, len(mutants)))
    ]
    for worker in workers:
        worker.start()
    num_done = 0
    while num_done < len(mutants):
        try:
            verdict = verdicts.get(timeout=5)
        except queue.Empty:
            if not any(worker.is_alive() for worker in workers):
                sys.exit("The workers ended before all was done.")
            continue
        num_done += 1
        known[verdict.key] = verdict
        write(known)
        caught_by = f" by {verdict.test}" if verdict.test else f" by {verdict.num_tests} tests"
        print(
            f"[{num_done}/{len(mutants)}] {verdict.verdict}{caught_by}, {verdict.seconds:.0f} s: "
            f"{verdict.file}:{verdict.line} {verdict.operator}\n    {verdict.before}\n    {verdict.after}",
            flush=True,
        )
    for worker in workers:
        worker.join()


def write(verdicts: dict[str, Verdict]) -> None:
    ordered = sorted(verdicts.values(), key=lambda verdict: (verdict.file, verdict.line, verdict.after))
    text = json.dumps([asdict(verdict) for verdict in ordered], indent=1, ensure_ascii=False) + "\n"
    new = VERDICTS.with_suffix(".new")
    new.write_text(text)
    new.replace(VERDICTS)


def summarize(verdicts: list[Verdict]) -> bool:
    """Prints what was caught, missed and excused, and returns whether that is good enough."""
    rooms = defaultdict(Counter)
    for verdict in verdicts:
        name = "excused" if verdict.reason and verdict.verdict == "missed" else verdict.verdict
        rooms[verdict.room][name] += 1
        rooms["all"][name] += 1
    print(f"\n{'':14}{'caught':>8}{'hung':>8}{'missed':>8}{'given up':>10}{'excused':>9}")
    for room in (*ROOMS, "all"):
        counts = rooms[room]
        print(
            f"{room:14}{counts['caught']:8}{counts['hung']:8}{counts['missed']:8}"
            f"{counts['given up']:10}{counts['excused']:9}"
        )
    counts = rooms["all"]
    share = (counts["caught"] + counts["hung"]) / max(1, counts.total() - counts["excused"])
    print(f"\n{share:.0%} of those that are not excused were noticed; {SMALLEST_SHARE:.0%} are asked for.")
    return share >= SMALLEST_SHARE and counts["excused"] <= MOST_EXCUSED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--number", type=int, default=100, help="how many mistakes to make")
    parser.add_argument("--seed", type=int, default=0, help="which to draw")
    parser.add_argument("--workers", type=int, default=2, help="how many processes judge them")
    parser.add_argument("--again", action="store_true", help="judge those anew that were not caught")
    parser.add_argument("--list", action="store_true", help="list the mistakes, and make none")
    arguments = parser.parse_args()
    mutants = draw(arguments.number, arguments.seed)
    if arguments.list:
        for mutant in mutants:
            print(
                f"{mutant.file}:{mutant.change.line} {mutant.change.operator}\n    {mutant.before}\n    {mutant.after}"
            )
        return 0
    BUILD.mkdir(parents=True, exist_ok=True)
    known = [Verdict(**fields) for fields in json.loads(VERDICTS.read_text())] if VERDICTS.exists() else []
    keys = {mutant.key for mutant in mutants}
    kept = {verdict.key: verdict for verdict in known if verdict.key in keys}
    if arguments.again:
        kept = {key: verdict for key, verdict in kept.items() if verdict.verdict in ("caught", "hung")}
    if waiting := [mutant for mutant in mutants if mutant.key not in kept]:
        judge_all(waiting, kept, arguments.workers)
    excuses = json.loads(EXCUSES.read_text()) if EXCUSES.exists() else {}
    for verdict in kept.values():
        verdict.reason = excuses.get(verdict.key)
    write(kept)
    return 0 if summarize(list(kept.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
