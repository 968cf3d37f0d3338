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
"""What published checkpoints hold, in all forms that there are: tensors are listed first, and read one at a time."""

import json
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import LoomVideoError
from ..pipelines.loomvideo_lora_weights import LAYER_NAMES


PICKLED = (".pth", ".pt", ".bin", ".ckpt")
FLOAT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

# A file that was read so far is mapped anew, so that its pages do not pile up in memory.
MOST_MAPPED_BYTES = 2**29
PIECE_ELEMENTS = 2**19

# Where a training folder keeps its weights: the moving average, and the last ones
EMA_FILE = "ema/ema.pth"
LATEST_FILE = "latest/gen_model.pth"
RELEASED_FILE = "gen_model.pth"

# What may stand before the names: of a whole model, and of ComfyUI
PREFIXES = ("gen_model.", "model.diffusion_model.", "diffusion_model.")

# The T5 projection of Wan, which no block of LoomVideo reads
UNUSED = "condition_embedder.text_embedder."

# In which order the published training lists parameters, where that differs from the order of the modules here
TOP_ORDER = (
    "scale_shift_table",
    "patch_embedding",
    "condition_embedder",
    "blocks",
    "proj_out",
    "mllm_embedder",
    "source_patch_embedding",
)
BLOCK_ORDER = ("scale_shift_table", "attn1", "attn2", "norm2", "ffn")

# Names of Wan's original code for what is no linear layer; those of linear layers are the same as in its LoRAs.
ORIGINAL_NAMES = {
    "modulation": "scale_shift_table",
    "head.modulation": "scale_shift_table",
    "norm3": "norm2",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
}


@dataclass(frozen=True)
class Entry:
    """
    A tensor in a file.

    Attributes:
        file: the file.
        key: what the file calls it; a number where it is one of a list.
        shape, dtype: of the tensor.
    """

    file: Path
    key: str | int
    shape: tuple[int, ...]
    dtype: torch.dtype


def find_checkpoint(source: Path, use_ema: bool) -> Path:
    """
    The file of the transformer's weights in a folder: of a training the moving average, if that is wanted.

    Raises:
        LoomVideoError: if there is none.
    """
    if source.is_file():
        return source
    names = [*([EMA_FILE] if use_ema else []), LATEST_FILE, RELEASED_FILE]
    for name in names:
        if (source / name).is_file():
            return source / name
    found = sorted(source.glob("*.safetensors"))
    indexes = sorted(source.glob("*.safetensors.index.json"))
    if len(indexes) == 1 or len(found) == 1:
        return (indexes or found)[0]
    raise LoomVideoError(f"{source} has no {', '.join(names)} and no single .safetensors: name the file itself.")


def list_tensors(path: Path) -> dict[str | int, Entry]:
    """
    Lists the tensors of a file, or of all files that an index of shards names, without reading them.

    Raises:
        LoomVideoError: if it is damaged, holds anything but tensors, or an index names what is not beside it.
    """
    if path.name.endswith(".index.json"):
        entries: dict[str | int, Entry] = {}
        for shard in _read_index(path):
            entries |= list_tensors(shard)
        return entries
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
        tensors = {
            name: Entry(path, name, shape, FLOAT_DTYPES.get(dtype, dtype)) for name, (shape, dtype) in found.items()
        }
    elif path.suffix in PICKLED:
        loaded = load_pickled(path)
        items = enumerate(loaded) if isinstance(loaded, list) else loaded.items()
        tensors = {key: Entry(path, key, tuple(tensor.shape), tensor.dtype) for key, tensor in items}
    else:
        raise LoomVideoError(f"{path} is no checkpoint: it must end in .safetensors, {', '.join(PICKLED)}.")
    for key, entry in tensors.items():
        if entry.dtype not in FLOAT_DTYPES.values():
            raise LoomVideoError(f"{path} holds {key} as {entry.dtype}: convert from weights in 16 or 32 bits.")
    return tensors


def _read_index(path: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoomVideoError(f"{path} is no index of shards ({error}): download it again.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (path.parent / name).is_file():
            raise LoomVideoError(f"{path} names {name!r}, which is not beside it: download the whole folder again.")
    return [path.parent / name for name in names]


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise LoomVideoError(f"{path} is damaged ({error}): download it again.") from error


def load_pickled(path: Path) -> dict[str, torch.Tensor] | list[torch.Tensor]:
    """Loads a dict of tensors, or the list of a moving average, mapped from the file; code in it is never run."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LoomVideoError(
            f"{path} cannot be read as plain tensors, and no code in it is run ({reason})."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("shadow_params"), list):
        loaded = loaded["shadow_params"]
    values = loaded.values() if isinstance(loaded, dict) else loaded if isinstance(loaded, list) else [loaded]
    wrong = next((type(value).__name__ for value in values if not isinstance(value, torch.Tensor)), None)
    if wrong is not None or not isinstance(loaded, (dict, list)):
        raise LoomVideoError(
            f"{path} is not a LoomVideo checkpoint: it holds a {wrong or 'tensor'} where tensors belong."
        )
    return loaded


def name_transformer(
    entries: dict[str | int, Entry], expected: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Entry], list[str]]:
    """
    Gives the tensors of a checkpoint the names that the transformer has for them.

    A moving average has no names: its tensors are in the order of the published model's trainable parameters.

    Args:
        entries: what `list_tensors` returned.
        expected: names and shapes of the transformer, by order of its modules.

    Returns:
        The tensors by name, and the names of those that are left out: the unused T5 projection, and in the file of a
        whole model, all other parts.

    Raises:
        LoomVideoError: if one is missing, unknown or of another shape; the message lists them.
    """
    if entries and all(isinstance(key, int) for key in entries):
        order = sorted(expected, key=_published_place)
        if len(entries) == len(order) + 4:
            place = next(index for index, name in enumerate(order) if _published_place(name) > (2, 2))
            order[place:place] = [f"{UNUSED}linear_{layer}.{kind}" for layer in (1, 2) for kind in ("weight", "bias")]
        if len(entries) != len(order):
            raise LoomVideoError(
                f"The moving average has {len(entries)} tensors, but the transformer has {len(order)} parameters: it "
                "belongs to a model of another size."
            )
        named, left_out = dict(zip(order, entries.values())), []
    else:
        by_name = {str(key): entry for key, entry in entries.items()}
        prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in by_name)), "")
        left_out = [name for name in by_name if not name.startswith(prefix)]
        named = {_here(name.removeprefix(prefix)): by_name[name] for name in by_name if name.startswith(prefix)}
    left_out += [name for name in named if name.startswith(UNUSED)]
    named = {name: entry for name, entry in named.items() if not name.startswith(UNUSED)}
    check_tensors(named, expected, "LoomVideo")
    return {name: named[name] for name in expected}, left_out


def check_tensors(entries: dict[str, Entry], expected: dict[str, tuple[int, ...]], what: str) -> None:
    """Raises LoomVideoError if tensors are missing, unknown or of other shapes than a model has them."""
    problems = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in entries]
    problems += [f"{name} {list(entry.shape)} is unknown" for name, entry in entries.items() if name not in expected]
    problems += [
        f"{name} is {list(entries[name].shape)} and should be {list(shape)}"
        for name, shape in expected.items()
        if name in entries and entries[name].shape != shape
    ]
    if problems:
        listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise LoomVideoError(f"This is not a {what} checkpoint of the expected sizes: {listed}.")


def _published_place(name: str) -> tuple[int, ...]:
    top, *rest = name.split(".")
    place = (TOP_ORDER.index(top),)
    if top == "blocks":
        return (*place, int(rest[0]), BLOCK_ORDER.index(rest[1]))
    if top == "condition_embedder":
        return (*place, ("time_embedder", "time_proj").index(rest[0]))
    return place


def _here(name: str) -> str:
    """The name here of what Wan's original code may call otherwise."""
    block = re.match(r"blocks\.\d+\.", name)
    prefix = block[0] if block else ""
    layer, dot, kind = name.removeprefix(prefix).rpartition(".")
    if name.removeprefix(prefix) in ORIGINAL_NAMES:
        return prefix + ORIGINAL_NAMES[name.removeprefix(prefix)]
    layer = ORIGINAL_NAMES.get(layer) or LAYER_NAMES.get(layer.replace(".", "_")) or layer
    return f"{prefix}{layer}{dot}{kind}"


class Reader:
    """Reads tensors of files that are mapped into memory, and lets go of what was read."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._tensors: Any = None
        self._mapped_bytes = 0

    def pieces(self, entry: Entry, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """
        Yields a tensor in a precision, flat and in pieces.

        Raises:
            LoomVideoError: if the file is damaged, or a number is infinite or none (NaN), now or in this precision.
        """
        tensor = self._get(entry).reshape(-1)
        for piece in tensor.split(PIECE_ELEMENTS):
            piece = piece.to(dtype)
            # One NaN makes both NaN, in a fiftieth of the time of `isfinite`, which would be most of a conversion's.
            if not torch.stack(piece.aminmax()).isfinite().all():
                raise LoomVideoError(
                    f"{entry.key} in {entry.file} has values that are not finite in {str(dtype).split('.')[-1]}: the "
                    "file is damaged, or another --dtype is needed."
                )
            yield piece

    def _get(self, entry: Entry) -> torch.Tensor:
        if self._file != entry.file or self._mapped_bytes > MOST_MAPPED_BYTES:
            self._file, self._mapped_bytes, self._tensors = entry.file, 0, None
            is_safetensors = entry.file.suffix == ".safetensors"
            self._tensors = _open_safetensors(entry.file) if is_safetensors else load_pickled(entry.file)
        try:
            is_loaded = isinstance(self._tensors, (dict, list))
            tensor = self._tensors[entry.key] if is_loaded else self._tensors.get_tensor(entry.key)
        except (OSError, KeyError, IndexError, SafetensorError) as error:
            raise LoomVideoError(f"{entry.file} changed while it was read ({error}).") from error
        self._mapped_bytes += tensor.nbytes
        return tensor


def modified(path: Path) -> list[str | int]:
    """What changes when a file does: its name, its size, and when it was written."""
    status = os.stat(path)
    return [path.name, status.st_size, status.st_mtime_ns]
