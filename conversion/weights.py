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
"""Weights of a part in shards, written and compared piece by piece, so that no part need fit into memory."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import split_torch_state_dict_into_shards

from ..errors import LoomVideoError
from .checkpoints import FLOAT_DTYPES, Entry, Reader, list_tensors


DTYPE_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}


@dataclass
class Weights:
    """
    What a folder of weights will hold.

    Attributes:
        entries: where each tensor comes from, by its name here.
        dtypes: the precision of each here.
        files: for each file its tensors' names.
        index: name and content of the index of shards, or None if there is one file.
    """

    entries: dict[str, Entry]
    dtypes: dict[str, torch.dtype]
    files: dict[str, list[str]]
    index: tuple[str, str] | None

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each file's tensors."""
        return {
            file: sum(math.prod(self.entries[name].shape) * self.dtypes[name].itemsize for name in names)
            for file, names in self.files.items()
        }


def plan_weights(
    entries: dict[str, Entry],
    dtypes: dict[str, torch.dtype],
    stem: str,
    max_shard_size: int | str,
    variant: str | None,
) -> Weights:
    """
    Divides tensors into files as diffusers and transformers name them.

    Args:
        entries: the tensors, by name.
        dtypes: the precision that each shall have.
        stem: how the files begin, `model` or `diffusion_pytorch_model`.
        max_shard_size: bytes of a file at most, or with a unit, such as `5GB`.
        variant: goes before the suffix, such as `fp16`.
    """
    infix = "" if variant is None else f".{variant}"
    shapes = {name: torch.empty(entry.shape, dtype=dtypes[name], device="meta") for name, entry in entries.items()}
    split = split_torch_state_dict_into_shards(
        shapes, filename_pattern=f"{stem}{infix}{{suffix}}.safetensors", max_shard_size=max_shard_size
    )
    index = None
    if split.is_sharded:
        content = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        index = (f"{stem}.safetensors.index{infix}.json", json.dumps(content, indent=2, sort_keys=True) + "\n")
    return Weights(entries, dtypes, split.filename_to_tensors, index)


def write_weights(weights: Weights, folder: Path, progress: Callable[[int], None]) -> None:
    """
    Writes all files that are not there yet. What has its name is whole.

    `progress` is called with numbers of bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader = Reader()
    for file, names in weights.files.items():
        path, unfinished = folder / file, folder / f"{file}.unfinished"
        if path.exists():
            progress(weights.sizes[file])
            continue
        with open(unfinished, "wb") as output:
            _write(weights, names, reader, output, progress)
            output.flush()
            os.fsync(output.fileno())
        unfinished.replace(path)
    if weights.index is not None:
        name, content = weights.index
        (folder / name).write_text(content, encoding="utf-8")


def _write(
    weights: Weights, names: list[str], reader: Reader, output: BinaryIO, progress: Callable[[int], None]
) -> None:
    # The widest come first, so that all lie at multiples of their size.
    names = sorted(names, key=lambda name: (-weights.dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        shape, dtype = weights.entries[name].shape, weights.dtypes[name]
        end = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    output.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for piece in reader.pieces(weights.entries[name], weights.dtypes[name]):
            output.write(piece.contiguous().view(torch.uint8).numpy().data)
            progress(piece.nbytes)


def compare_weights(weights: Weights, folder: Path, progress: Callable[[int], None]) -> None:
    """
    Compares every tensor with its source, bit for bit in its precision here.

    Raises:
        LoomVideoError: if one differs, is missing, or is there though it should not be.
    """
    source_reader, reader = Reader(), Reader()
    for file, names in weights.files.items():
        path = folder / file
        if not path.is_file():
            raise LoomVideoError(f"{path} is missing: convert again, with --force.")
        written = list_tensors(path)
        if set(written) != set(names):
            raise LoomVideoError(f"{path} does not hold the tensors that it should: convert again, with --force.")
        for name in names:
            entry, dtype = weights.entries[name], weights.dtypes[name]
            is_same = written[name].shape == entry.shape and written[name].dtype == dtype
            if is_same:
                pairs = zip(source_reader.pieces(entry, dtype), reader.pieces(written[name], dtype), strict=True)
                for expected, piece in pairs:
                    # Compared as bits: zero and minus zero are not the same.
                    is_same = is_same and torch.equal(expected.view(torch.uint8), piece.view(torch.uint8))
                    progress(piece.nbytes)
            if not is_same:
                raise LoomVideoError(f"{name} in {path} is not what its source says: convert again, with --force.")
