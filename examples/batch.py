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
"""Runs many edits. Run generate.py first. `accelerate launch examples/batch.py` divides them over several GPUs."""

import json
from pathlib import Path

from loomvideo_diffusers.cli import main


MODEL = "nano"  # a folder that `loomvideo convert` made, or a repository
JOBS = [
    {"input": "heart.mp4", "prompt": "make the heart green", "output": "green.mp4", "seed": 0},
    {"input": "heart.png", "prompt": "make the heart purple", "output": "purple.png", "seed": 0},
]

if __name__ == "__main__":
    Path("jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in JOBS), encoding="utf-8")
    raise SystemExit(main(["edit", "--jobs", "jobs.jsonl", "--model", MODEL]))
