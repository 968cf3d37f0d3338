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
"""LoomVideo's page on a Space of Hugging Face: on ZeroGPU, on a GPU of its own, or on CPUs."""

import json
from pathlib import Path

import spaces  # before PyTorch, which it prepares for ZeroGPU
from loomvideo_diffusers.app import Models, gpu_seconds, launch


SETTINGS = json.loads((Path(__file__).parent / "settings.json").read_text(encoding="utf-8"))


def main() -> None:
    models = Models(SETTINGS["models"], SETTINGS["loras"])
    # On ZeroGPU, each run is in a process of its own, which has what was loaded before it began.
    models.load(models.names[0], ())

    def on_gpu(work):
        return spaces.GPU(duration=lambda plan, *_: gpu_seconds(plan))(work)

    launch(models, host="0.0.0.0", wrap=on_gpu)


if __name__ == "__main__":
    main()
