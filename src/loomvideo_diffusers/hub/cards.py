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
"""Cards of models: what a converted one was made of, what it holds, and how to use it."""

import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open


CARD_FILE = "README.md"
RECORD_FILE = "conversion.json"
PRECISIONS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def render_base_card(folder: Path, location: str | None, license: dict[str, Any]) -> str:
    """
    The card of a folder that `convert` wrote.

    Args:
        folder: the folder, with its weights and its record.
        location: the repository that users load it from; None for the name that the folder was given when it was made.
        license: what `stated_license` returned, empty if none is known.
    """
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    location = location or record["name"]
    sources = record["sources"]
    repositories = [source["name"] for source in sources.values() if source["revision"] is not None]
    options = "" if record["dtype"] == "bfloat16" else f" --dtype {record['dtype']}"
    options += "" if record["variant"] is None else f" --variant {record['variant']}"
    command = ["loomvideo convert"]
    for name, source in sources.items():
        revision = "" if source["revision"] is None else f"@{source['revision']}"
        command.append(f"--{name} {source['name']}{revision}")
    card = ModelCard.from_template(
        ModelCardData(
            **license,
            library_name="diffusers",
            pipeline_tag="text-to-video",
            base_model=repositories or None,
            # What the Hub calls a copy of the same model in another format or precision
            base_model_relation="quantized" if repositories else None,
            tags=["text-to-video", "text-to-image", "video-to-video", "image-to-video", "diffusers", "loomvideo"],
        ),
        template_str=files("loomvideo_diffusers.model_cards").joinpath("base.md").read_text(encoding="utf-8"),
        origin=f"`{sources['loomvideo']['name']}`",
        parts=[measure_part(folder, part) for part in ("transformer", "text_encoder", "vae")],
        location=location,
        variant="" if record["variant"] is None else f'variant="{record["variant"]}", ',
        command=f"{' '.join(command)}{options} -o {record['name']}",
        sources=list(sources.values()),
    )
    return str(card)


def measure_part(folder: Path, part: str) -> dict[str, Any]:
    """The parameters, precisions and size of a part's weights, read from its files."""
    parameters, dtypes, size = 0, set(), 0
    for file in sorted((folder / part).glob("*.safetensors")):
        size += file.stat().st_size
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is not a dict
                tensor = tensors.get_slice(name)
                parameters += math.prod(tensor.get_shape())
                dtypes.add(PRECISIONS.get(tensor.get_dtype(), tensor.get_dtype()))
    unit, divisor = ("GB", 1e9) if size > 1e9 else ("MB", 1e6)
    return {
        "name": part,
        "parameters": parameters,
        "precision": " and ".join(sorted(dtypes)),
        "size": f"{size / divisor:.1f} {unit}",
    }


def stated_license(card: ModelCard) -> dict[str, Any]:
    """The licence that a card states, as its metadata do: an identifier, and of one of its own, name and address."""
    stated = {name: card.data.get(name) for name in ("license", "license_name", "license_link")}
    return {name: value for name, value in stated.items() if value is not None}
