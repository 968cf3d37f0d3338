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
"""The miniature checkpoint, what the published implementation computed with it, and a converted copy."""

import atexit
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import Hub, start_hub
from safetensors import safe_open


# Before the Hub's client is imported, which reads then where the Hub and its cache are; who imports it earlier has to
# say where they are to be.
PORT, _, FOLDER = os.environ.pop("LOOMVIDEO_TEST_HUB", "0:").partition(":")
HUB = start_hub(int(PORT))
HOME = Path(FOLDER or tempfile.mkdtemp())
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
ENVIRONMENT = {"HF_ENDPOINT": HUB.address, "HF_HOME": str(HOME), "HF_TOKEN": "hf_mine", "HF_HUB_DISABLE_XET": "1"}
os.environ |= ENVIRONMENT
if "PYTEST_XDIST_WORKER" in os.environ:
    # The processes share the processors.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

from loomvideo_diffusers import LoomVideoEditPipeline, LoomVideoPipeline, LoomVideoTransformer3DModel  # noqa: E402
from loomvideo_diffusers.conversion import convert  # noqa: E402
from loomvideo_diffusers.media import sample_frame_indices  # noqa: E402


FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = FIXTURES / "golden"


def load_case(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the metadata of a recorded case."""
    with safe_open(GOLDEN / "cases" / f"{name}.safetensors", "pt") as file:
        metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118, it is not a dict


def case_names(prefix: str) -> list[str]:
    return sorted(path.stem for path in (GOLDEN / "cases").glob(f"{prefix}_*.safetensors"))


def references_of(case: dict[str, torch.Tensor], kind: str = "reference_latents") -> list[torch.Tensor]:
    return [case[key] for key in sorted(case) if key.startswith(f"{kind}.")]


def messages(stderr: str) -> list[str]:
    """The lines that a command printed, without what PyTorch and Diffusers print about an installed torchao."""
    return [line for line in stderr.splitlines() if "torch/utils/_pytree.py" not in line and "torchao" not in line]


def call_inputs(name: str) -> dict[str, Any]:
    """The arguments of a pipeline call as recorded."""
    case, metadata = load_case(name)
    inputs = {key: metadata[key] for key in metadata if key != "source_fps"} | {"latents": case["noise"]}
    if references := references_of(case, "reference_image"):
        inputs["reference_images"] = [reference.numpy() for reference in references]
    if "source_image" in case:
        inputs["image"] = case["source_image"].numpy()
    if "source_frames" in case:
        frames = case["source_frames"].numpy()
        inputs["video"] = frames[sample_frame_indices(len(frames), metadata["source_fps"])]
    return inputs


def transformer_inputs(name: str, num_layers: int = 4) -> dict[str, Any]:
    """The arguments of a transformer call as recorded."""
    case, _ = load_case(name)
    return {
        "hidden_states": case["hidden_states"],
        "timestep": case["timestep"],
        "encoder_hidden_states": case["mllm_hidden_states"].transpose(0, 1)[:, -num_layers:],
        "source_hidden_states": case["source_latents"],
        "source_scale": case["source_scale"],
        "reference_hidden_states": references_of(case),
    }


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """The miniature checkpoint, converted. Not to be changed."""
    return convert(
        GOLDEN / "LoomVideo",
        GOLDEN / "Qwen3-VL",
        GOLDEN / "Wan2.2-TI2V",
        tmp_path_factory.mktemp("converted") / "loomvideo-5b",
        torch.float32,
    )


@pytest.fixture
def transformer(model_folder) -> LoomVideoTransformer3DModel:
    return LoomVideoTransformer3DModel.from_pretrained(model_folder, subfolder="transformer")


@pytest.fixture
def pipe(model_folder) -> LoomVideoPipeline:
    pipe = LoomVideoPipeline.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def edit(model_folder) -> LoomVideoEditPipeline:
    pipe = LoomVideoEditPipeline.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def clip() -> np.ndarray:
    """A clip of 9 frames in which every pixel and frame differs."""
    return np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def hub() -> Hub:
    """A Hub on this machine in the place of the real one: empty, with an account that may write; nothing is cached."""
    HUB.reset()
    shutil.rmtree(HOME / "hub", ignore_errors=True)
    return HUB
