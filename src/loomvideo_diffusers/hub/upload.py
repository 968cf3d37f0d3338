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
"""Uploads of model folders and of LoRAs, checked when they have arrived."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects

from ..errors import LoomVideoError
from ..models.transformer_loomvideo import LoomVideoTransformer3DModel
from ..pipelines import LoomVideoEditPipeline, LoomVideoPipeline
from ..pipelines.loomvideo_repository import MODULAR_INDEX_FILE, commit_files, write_remote_code
from .cards import CARD_FILE, RECORD_FILE, render_base_card, stated_license


# How often the Hub is asked, and the seconds before the second time, which double after that. This is for what its
# client asks for only once: to make repositories, branches and commits. It sends files again by itself.
NUM_TRIES = 5
FIRST_WAIT = 1.0

Result = TypeVar("Result")


def push(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    token: str | bool | None = None,
) -> str:
    """
    Uploads a folder with its card, whose snippets name the repository then, and a model with its code.

    Args:
        folder: a model, a LoRA, or what else has a card that says `library_name: diffusers`.
        license: an identifier of the Hub, such as `apache-2.0`, for a card that states none.
        repo_id, private, revision, create_pr, token: as in `push_folder`.

    Returns:
        The address of what was uploaded.

    Raises:
        LoomVideoError: if the folder has no card or one that the Hub refuses, or the card states no licence and none
            is given.
        OSError: if the Hub refuses or cannot be reached, or has other files than were sent.
    """
    folder = Path(folder)
    card_file = folder / CARD_FILE
    if not card_file.is_file():
        raise LoomVideoError(f"{folder} has no {CARD_FILE}: push what `loomvideo convert` or `loomvideo train` wrote.")
    card = ModelCard.load(card_file)
    stated = stated_license(card)
    if not stated and license is None:
        raise LoomVideoError(
            f"The card of {folder} states no licence: say which one with --license, such as apache-2.0."
        )
    # A card that nobody has changed is made anew, for the repository; of another, only the licence is set.
    is_ours = (folder / RECORD_FILE).is_file() and card_file.read_text(encoding="utf-8") == render_base_card(
        folder, None, stated
    )
    if license is not None:
        stated = {"license": license}
        card.data.license, card.data.license_name, card.data.license_link = license, None, None
    text = render_base_card(folder, repo_id, stated) if is_ours else str(card)
    changed = _missing_code(folder) | {CARD_FILE: text.encode()}
    return push_folder(folder, repo_id, private, revision, create_pr, token=token, changed=changed)


def _missing_code(folder: Path) -> dict[str, bytes]:
    """The code of a model that is kept without it, as nano is in the package, and the index that names the code."""
    index = folder / "model_index.json"
    name = json.loads(index.read_text(encoding="utf-8")).get("_class_name") if index.is_file() else None
    pipeline_class = next((each for each in (LoomVideoPipeline, LoomVideoEditPipeline) if each.__name__ == name), None)
    if pipeline_class is None:
        return {}
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy(index, copy)
        write_remote_code(copy, pipeline_class, LoomVideoTransformer3DModel)
        files = [file for file in Path(copy).rglob("*") if file.is_file()]
        return {file.relative_to(copy).as_posix(): file.read_bytes() for file in files}


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | bool | None = None,
    patterns: list[str] | None = None,
    changed: dict[str, bytes] | None = None,
    repo_type: str = "model",
) -> str:
    """
    Uploads a folder to a repository on the Hub, and checks what has arrived.

    What fails for want of a network is tried again. Files that arrived are not sent again, by a later call neither.

    Args:
        folder: what to upload, but for hidden files.
        repo_id, private, revision, create_pr, token: as in `commit_files`.
        commit_message: of the one commit.
        patterns: of the names of files to upload, such as `*.safetensors`; by default all.
        changed: contents by name that go along, or in the place of the folder's files.
        repo_type: `model`, or `space` for a Space of Gradio's.

    Returns:
        The address of what was uploaded.

    Raises:
        OSError: if the Hub refuses or cannot be reached, or has other files than were sent.
    """
    folder = Path(folder)
    changed = changed or {}
    paths = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    names = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    unchanged = [name for name in filter_repo_objects(names, allow_patterns=patterns) if name not in changed]
    files: dict[str, Path | bytes] = {name: folder / name for name in unchanged}
    files |= changed
    message = commit_message or f"Upload {folder.name}"
    commit = _try_again(
        lambda: commit_files(files, repo_id, private, revision, create_pr, message, token, repo_type),
        f"The upload of {folder.name} to {repo_id}",
    )
    found = _try_again(
        lambda: HfApi(token=token).verify_repo_checksums(
            commit.repo_url.repo_id, revision=commit.oid, local_dir=folder, repo_type=repo_type
        ),
        f"Checking the upload of {folder.name} to {repo_id}",
    )
    wrong = {mismatch["path"] for mismatch in found.mismatches} | set(found.extra_paths)
    # The index says on the Hub in which repository it is.
    for name in sorted(wrong.intersection(unchanged) - {MODULAR_INDEX_FILE}):
        raise OSError(f"{name} on the Hub is not what was sent: push again.")
    return commit.pr_url or f"{commit.repo_url}/tree/{commit.oid}"


def _try_again(call: Callable[[], Result], what: str) -> Result:
    """Calls, and again while that may help: without a network, and if the Hub is overloaded or fails."""
    attempt = 1
    while True:
        try:
            return call()
        except OfflineModeIsEnabled as error:
            raise OSError(f"{what} failed, as HF_HUB_OFFLINE is set.") from error
        except ValueError as error:  # the card, or the repository's name, cannot be one
            raise LoomVideoError(f"{what} failed: {error}") from error
        except (HTTPError, RuntimeError) as error:
            # The client raises RuntimeError for a file that it has sent in vain, many times.
            may_pass = isinstance(error, HTTPError)
            if isinstance(error, HfHubHTTPError):
                may_pass = error.response.status_code >= 500 or error.response.status_code in (408, 429)
            if not may_pass or attempt == NUM_TRIES:
                raise OSError(f"{what} failed: {error}") from error
        time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        attempt += 1
