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
"""Files of tensors, LoRAs most of all: which one it is in a folder or a repository, and what it holds."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.models.model_loading_utils import load_state_dict
from diffusers.utils import logging
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .loomvideo_errors import LoomVideoInputError


logger = logging.get_logger(__name__)

SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
USUAL_NAMES = ("pytorch_lora_weights", "adapter_model")
PEFT_CONFIG = "adapter_config.json"


def read_lora_file(source: str, options: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """The tensors of a LoRA as the file has them, and the settings in its metadata or in `adapter_config.json`."""
    path, siblings, is_pickled = find_file(source, options)
    state_dict, metadata = read_tensors(path, is_pickled)
    text: str | bytes | None = metadata.get(LORA_ADAPTER_METADATA_KEY)
    config = path.parent / PEFT_CONFIG
    # Among other files it may be another's.
    if text is None and config.is_file() and (path.stem == "adapter_model" or siblings == [path.name]):
        path, text = config, config.read_bytes()
    if text is None:
        return state_dict, None
    try:
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise LoomVideoInputError("it is no JSON object")
    except ValueError as error:
        raise LoomVideoInputError(
            f"the configuration of the adapter in {path.name} cannot be read: {error}."
        ) from error
    if path == config:
        settings = {f"transformer.{name}": value for name, value in settings.items()}
    return state_dict, settings


def find_file(source: str, options: dict[str, Any]) -> tuple[Path, list[str], bool]:
    """
    Finds the one file of tensors that a file, a folder, a repository or OWNER/NAME/FILE names.

    Returns:
        The file, the names of all of its kind beside it, and whether they are pickled.
    """
    weight_name, use_safetensors = options.get("weight_name"), options.get("use_safetensors")
    is_pickled = (weight_name or source).endswith(PICKLE_SUFFIXES) if use_safetensors is None else not use_safetensors
    folder = Path(source, options.get("subfolder") or "")
    if Path(source).is_file():
        path = Path(source)
        return path, _weights_among(os.listdir(path.parent), is_pickled), is_pickled
    if Path(source).is_dir():
        names = [path.name for path in folder.glob("*") if path.is_file()]
        if weight_name is not None and Path(folder, weight_name).is_file():
            names.append(weight_name)  # which may be in a folder within
        name, siblings = _choose(names, weight_name, is_pickled)
        return folder / name, siblings, is_pickled
    path, siblings = _download(source, weight_name, is_pickled, options)
    return path, siblings, is_pickled


def read_tensors(path: Path, is_pickled: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file, and a safetensors file's metadata."""
    is_safetensors = path.suffix == SUFFIX
    if not is_safetensors and not is_pickled:
        raise LoomVideoInputError(f"{path.name} is no safetensors file: name one.")
    try:
        state_dict = load_state_dict(path)
        with open(path, "rb") as file:
            metadata = read_safetensors_header(file).get("__metadata__", {}) if is_safetensors else {}
    except Exception as error:  # what damaged files raise is of many classes
        kind = "safetensors: is it complete?" if is_safetensors else "tensors by their names: use a safetensors file."
        raise LoomVideoInputError(f"{path.name} cannot be read as {kind}") from error
    if isinstance(state_dict, dict) and isinstance(state_dict.get("state_dict"), dict):
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise LoomVideoInputError(f"{path.name} holds more than tensors by their names: use a safetensors file.")
    return state_dict, metadata


def read_safetensors_header(file: BinaryIO) -> dict[str, Any]:
    """The header of a safetensors file."""
    return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def _weights_among(names: Iterable[str], is_pickled: bool) -> list[str]:
    """Those of the wanted kind that are in no folder within."""
    return sorted(
        name for name in names if "/" not in name and name.endswith(PICKLE_SUFFIXES if is_pickled else SUFFIX)
    )


def _choose(names: list[str], weight_name: str | None, is_pickled: bool) -> tuple[str, list[str]]:
    """The file in a folder, and all of the wanted kind that are beside it."""
    candidates = _weights_among(names, is_pickled)
    if weight_name is not None:
        if weight_name not in names:
            raise LoomVideoInputError(f"it has no {weight_name}, but {', '.join(candidates) or 'no such file'}.")
        return weight_name, candidates
    for name in candidates:
        if Path(name).stem in USUAL_NAMES:
            return name, candidates
    if len(candidates) > 1:
        raise LoomVideoInputError(f"it holds several files, {', '.join(candidates)}: name one of them.")
    if not candidates:
        pickled = _weights_among(names, True)
        advice = f"name its {pickled[0]} to load a pickled file" if pickled else "name a file"
        raise LoomVideoInputError(f"it has no safetensors file: {advice}.")
    return candidates[0], candidates


def _download(
    source: str, weight_name: str | None, is_pickled: bool, options: dict[str, Any]
) -> tuple[Path, list[str]]:
    """Fetches the file, and the `adapter_config.json` beside it, from OWNER/NAME, or the file OWNER/NAME/FILE."""
    match = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+))?", source)
    if match is None or (match[2] is None and source.endswith((SUFFIX, *PICKLE_SUFFIXES))):
        raise LoomVideoInputError("it is no file or folder here, and not the name of a repository (OWNER/NAME).")
    repository = match[1]
    weight_name = weight_name or match[2]
    subfolder = f"{options['subfolder'].strip('/')}/" if options.get("subfolder") else ""
    revision, token = options.get("revision"), options.get("token")
    where: dict[str, Any] = {name: options.get(name) for name in ("revision", "token", "cache_dir")}
    names = None
    try:
        if not options.get("local_files_only"):
            try:
                names = HfApi(token=token).list_repo_files(repository, revision=revision)
            except HfHubHTTPError:
                raise
            except (HTTPError, OSError):
                logger.debug("The Hub cannot be reached: what is in its cache counts.")
        if names is None:
            folder = Path(snapshot_download(repository, local_files_only=True, **where))
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        names = [name.removeprefix(subfolder) for name in names if name.startswith(subfolder)]
        name, siblings = _choose(names, weight_name, is_pickled)
        where |= {"local_files_only": options.get("local_files_only", False)}
        where |= {"force_download": options.get("force_download", False)}
        config = (Path(name).parent / PEFT_CONFIG).as_posix()
        if config in names:
            hf_hub_download(repository, subfolder + config, **where)
        return Path(hf_hub_download(repository, subfolder + name, **where)), siblings
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise LoomVideoInputError(f"it is no file or folder here, and cannot be had from the Hub: {reason}") from error
