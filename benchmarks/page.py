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
"""Makes `docs/benchmarks.md` from the results in `benchmarks/results`: `python -m benchmarks.page`."""

from pathlib import Path

from .results import RESULTS_DIR, Result, read_result


PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

HEAD = """# Measurements

Speed and memory, as measured. In a checkout, `python -m benchmarks`, `python -m benchmarks.levers`,
`python -m benchmarks.approximations` and, on a GPU, `python -m benchmarks.gpu` measure anew, the last in eight
minutes without weights or a network. Each writes a dated file into `benchmarks/results`, from which `make benchmarks`
makes this page.

![Times of steps](benchmarks.png)
"""


def main() -> None:
    PAGE.write_text(make_page(), encoding="utf-8")
    print(f"Wrote {PAGE}.")


def make_page(folder: Path = RESULTS_DIR) -> str:
    """The page in Markdown: a section for each result, the newest first."""
    results = [read_result(file) for file in sorted(folder.glob("*.json"))]
    results.sort(key=lambda result: result.date, reverse=True)
    return "\n".join([HEAD, *map(_section, results)])


def _section(result: Result) -> str:
    about = f"{result.date}, {result.method}. {result.machine}."
    return f"## {result.title}\n\n{about}\n\n{result.to_markdown()}\n"


if __name__ == "__main__":
    main()
