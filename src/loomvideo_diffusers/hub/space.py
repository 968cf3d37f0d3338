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
"""Makes a Space of the page: its code, its settings, and the package as a wheel, since no index has it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import RepoCard

from ..errors import LoomVideoError
from ..loading import find_model
from .upload import push_folder


# The checkout that the package was installed from, if it was
CHECKOUT = Path(__file__).parent.parent.parent.parent


def push_space(
    repo_id: str,
    models: Sequence[str],
    loras: Sequence[str] = (),
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """
    Uploads the page as a Space, and checks what has arrived.

    Args:
        repo_id: `OWNER/NAME`.
        models: repositories, or `nano`, that can be chosen on it, the first of them by default.
        loras: repositories of LoRAs that can be chosen.
        private: whether a new Space is private.
        token: as in `push_folder`.

    Returns:
        The address of what was uploaded.

    Raises:
        LoomVideoError: if a model is a folder, which a Space could not read, or this is no checkout.
        OSError: if the Hub refuses or cannot be reached, or the wheel cannot be built.
    """
    for name in (*models, *loras):
        if Path(name).exists():
            raise LoomVideoError(f"{name} is a file or a folder here: push it to the Hub, and name its repository.")
    for model in models:
        find_model(model)
    if not (CHECKOUT / "spaces" / "app.py").is_file():
        raise LoomVideoError("A Space is made from a checkout: clone the repository, and `pip install -e .` there.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        for file in (CHECKOUT / "spaces").iterdir():
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
        requirements = (folder / "requirements.txt").read_text(encoding="utf-8")
        (folder / "requirements.txt").write_text(f"{requirements}./{wheel.name}[app]\n", encoding="utf-8")
        settings = {"models": list(models), "loras": list(loras)}
        (folder / "settings.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
        card = RepoCard.load(folder / "README.md", ignore_metadata_errors=True)
        card.data.sdk_version = version("gradio")
        card.data.models = [name for name in (*models, *loras) if name != "nano"]
        card.save(folder / "README.md")
        return push_folder(folder, repo_id, private, commit_message="Upload the page", token=token, repo_type="space")


def build_wheel(folder: Path) -> Path:
    """
    Builds the wheel of this checkout.

    Raises:
        OSError: if it cannot be built.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(CHECKOUT)]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = " ".join(result.stderr.split())[-500:]
        raise OSError(f"The wheel of {CHECKOUT} cannot be built ({reason}): build it with pip to see why.")
    return wheels[0]
