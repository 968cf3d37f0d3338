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
Makes `docs/benchmarks.md` of the results in `benchmarks/results`, and the tables of the README and of
`docs/performance.md` of the newest on a GPU: `python -m benchmarks.page`.
"""

import re
from pathlib import Path
from typing import Any

from .results import RESULTS_DIR, Result, Table, read_result


ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- of the newest result on a GPU -->\n\n", "\n\n<!-- to here -->"

STAGES = {
    "Encode the prompt": "encode_branches",
    "Encode the source": "prepare_clip_latents",
    "Decode": "decode_latents",
}
WAYS = {
    "published code": "Published implementation",
    "bare Wan": "`WanTransformer3DModel` of Diffusers, without LoomVideo's additions",
    "eager": "This package",
    "compiled": "This package, compiled blocks",
    "float8, compiled": "The same in float8",
}

HEAD = """# Measurements

Speed and memory, as measured. In a checkout, `python -m benchmarks`, `python -m benchmarks.levers`,
`python -m benchmarks.approximations` and, on a GPU, `python -m benchmarks.gpu` measure anew, the last in eight
minutes without weights or a network. Each writes a dated file into `benchmarks/results`, from which `make benchmarks`
makes this page.

![Times of steps](benchmarks.png)
"""


def main() -> None:
    tables = make_tables(newest_on_a_gpu())
    for path in tables:
        path.write_text(fill_in(path.read_text(encoding="utf-8"), tables[path]), encoding="utf-8")
    PAGE.write_text(make_page(), encoding="utf-8")
    print(f"Wrote {', '.join(map(str, [PAGE, *tables]))}.")


def newest_on_a_gpu(folder: Path = RESULTS_DIR) -> Result:
    results = [read_result(file) for file in folder.glob("*.json") if "small" not in file.name]
    return max((result for result in results if "forwards" in result.measured), key=lambda result: result.date)


def fill_in(text: str, tables: list[Table]) -> str:
    """Replaces what is between the marks of a document."""
    filled = "\n\n".join(table.to_markdown() for table in tables)
    return re.sub(f"(?<={re.escape(BEGIN)}).*?(?={re.escape(END)})", lambda match: filled, text, flags=re.DOTALL)


def make_tables(result: Result) -> dict[Path, list[Table]]:
    """The tables of each document."""
    measured = result.measured
    eager = next(row for row in measured["edit"] if row["way"] == "eager")
    rows = [[name, f"{eager[stage]:.2f} s", ""] for name, stage in STAGES.items()]
    denoising = {row["way"]: f"{row['denoise'] / row['steps'] * 50:.3g} s" for row in measured["edit"]}
    rows.insert(2, ["Denoise, 50 steps with three branches of guidance", denoising["eager"], ""])
    if "compiled" in denoising:
        rows.insert(3, ["The same with compiled blocks", denoising["compiled"], ""])
    rows.append(["Everything on the GPU", "", f"{eager['gigabytes']:.1f} GB"])
    edit = Table(["Edit of 97 frames at 480 × 832", "time", "peak memory"], rows)

    shapes = {"97 frames, 480 × 832": "480x832x97, L 512", "121 frames, 704 × 1280": "704x1280x121, L 512"}
    seconds = {(row["way"], row["shape"]): f"{row['seconds']:.3f} s" for row in measured["forwards"]}
    forwards = Table(
        ["One forward of the transformer", *shapes],
        [[words, *(seconds.get((way, shape), "") for shape in shapes.values())] for way, words in WAYS.items()],
    )
    header = ["97 frames of 480 × 832", "time", "peak memory"]
    memory = Table(header, [_memory_row(row) for row in measured.get("memory", []) if "way" in row])
    return {ROOT / "README.md": [edit, forwards], ROOT / "docs" / "performance.md": [memory]}


def _memory_row(row: dict[str, Any]) -> list[str]:
    seconds = row.get("seconds", row.get("seconds of 50 steps"))
    counted = f", counted {row['counted']:.1f} GB" if "counted" in row else ""
    return [row["way"], "" if seconds is None else f"{seconds:.3g} s", f"{row['gigabytes']:.1f} GB{counted}"]


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
