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
"""Publishing a model folder, or a LoRA, on the Hub."""

from pathlib import Path

from huggingface_hub import ModelCard

from ..errors import LoomVideoError
from ..pipelines.loomvideo_repository import push_folder
from .cards import CARD_FILE, RECORD_FILE, render_base_card, stated_license


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
    Uploads a folder with its card, whose snippets name the repository then.

    Args:
        folder: a converted model, a LoRA, or what else has a card that says `library_name: diffusers`.
        license: an identifier of the Hub, such as `apache-2.0`, for a card that states none.
        repo_id, private, revision, create_pr, token: as in `push_folder`.

    Returns:
        The address of what was uploaded.

    Raises:
        LoomVideoError: if the folder has no card, or the card states no licence and none is given.
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
    return push_folder(folder, repo_id, private, revision, create_pr, token=token, card=text)
