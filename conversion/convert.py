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
"""Conversion of the three published sources of LoomVideo into one folder for diffusers, without loading a model."""

import inspect
import json
import os
import shutil
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, ModelMixin, UniPCMultistepScheduler
from huggingface_hub import ModelCard, snapshot_download
from transformers import Qwen3VLConfig, Qwen3VLModel, Qwen3VLProcessor

from ..errors import LoomVideoError
from ..hub.cards import CARD_FILE, RECORD_FILE, render_base_card, stated_license
from ..media.files import DiskFullError, lock_beside, reason_of_full_disk
from ..models.transformer_loomvideo import FLOAT32_MODULES, LoomVideoTransformer3DModel
from ..pipelines import LoomVideoPipeline
from ..pipelines.loomvideo_repository import write_remote_code
from ..progress import progress_bar
from .checkpoints import Entry, check_tensors, find_checkpoint, list_tensors, modified, name_transformer
from .weights import Weights, compare_weights, plan_weights, write_weights


STEMS = {
    "transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
}


@dataclass
class Source:
    """
    Where a part comes from.

    Attributes:
        path: the file or folder here.
        name: the repository, or of what is local the last part of its path.
        revision: the commit, of a repository.
        license: what its card states, as `stated_license` returns it.
    """

    path: Path
    name: str
    revision: str | None = None
    license: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """
    What a conversion will write.

    Attributes:
        weights: of each part.
        configs: the configuration of each part.
        sources: by what the arguments of `convert` call them.
        left_out: names of tensors that are not needed.
        record: what `conversion.json` will say.
        state: what changes when a source or a setting does.
    """

    weights: dict[str, Weights]
    configs: dict[str, Any]
    sources: dict[str, Source]
    left_out: list[str]
    record: dict[str, Any]
    state: list[Any] = field(default_factory=list)

    @property
    def files(self) -> dict[str, int]:
        """The files of weights and their bytes."""
        return {
            f"{part}/{file}": size for part, weights in self.weights.items() for file, size in weights.sizes.items()
        }

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())


def convert(
    loomvideo: str | os.PathLike,
    mllm: str | os.PathLike,
    wan: str | os.PathLike,
    output_dir: str | os.PathLike,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: int | str = "5GB",
    variant: str | None = None,
    use_ema: bool = True,
    license: str | None = None,
    force: bool = False,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Path:
    """
    Converts the published weights into a folder that `LoomVideoPipeline.from_pretrained` loads.

    Tensors are mapped from their files, cast and written piece by piece; no model is loaded. The folder appears when
    all of it is written, and not before. If a conversion is killed, the same one goes on with what it wrote; if the
    folder is there and was made by the same conversion, every tensor of it is compared with its source.

    Args:
        loomvideo: the transformer's weights: a file (`gen_model.pth`; the safetensors of a whole model, or in
            ComfyUI's names), a training folder, or a repository (released: `MSALab/LoomVideo`). A repository may be
            followed by `@` and a revision.
        mllm: folder or repository of the Qwen3-VL model (released: `Qwen/Qwen3-VL-8B-Instruct`).
        wan: folder or repository of Wan2.2 in the format of diffusers, for the VAE, the scheduler and the sizes of the
            transformer (released: `Wan-AI/Wan2.2-TI2V-5B-Diffusers`).
        output_dir: the folder to make; its parents are made too.
        dtype: precision of transformer and MLLM. The VAE keeps its own.
        max_shard_size: bytes of a file of weights at most, or with a unit.
        variant: goes into the names of the files of weights, such as `fp16`.
        use_ema: of a training folder, whether to prefer the moving average.
        license: what the card says, if the source states none; an identifier of the Hub, such as `apache-2.0`.
        force: replace what is in the folder.
        token, cache_dir: as in huggingface_hub.

    Returns:
        The folder.

    Raises:
        LoomVideoError: if a source lacks what is needed, is damaged or of other sizes, `output_dir` has other content,
            or another run is writing it.
        OSError: if there is no room.
    """
    sources = find_sources(loomvideo, mllm, wan, use_ema, token, cache_dir)
    write(plan_conversion(sources, dtype, max_shard_size, variant), output_dir, license, force)
    return Path(output_dir)


def find_sources(
    loomvideo: str | os.PathLike,
    mllm: str | os.PathLike,
    wan: str | os.PathLike,
    use_ema: bool = True,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, Source]:
    """Finds the three sources here, or downloads what is needed of them; arguments as in `convert`."""
    patterns = {
        "loomvideo": ["*.pth", "*.safetensors", "*.safetensors.index.json", "README.md"],
        "mllm": ["*.json", "*.jinja", "*.txt", "*.safetensors"],
        "wan": ["vae/*", "scheduler/*", "transformer/config.json"],
    }
    needed = {"mllm": "config.json", "wan": "vae/config.json"}
    sources = {}
    for name, given in {"loomvideo": loomvideo, "mllm": mllm, "wan": wan}.items():
        source = _find(given, patterns[name], token, cache_dir)
        if name in needed and not (source.path / needed[name]).is_file():
            raise LoomVideoError(f"{given} has no {needed[name]}: is it the right source?")
        card_file = (source.path if source.path.is_dir() else source.path.parent) / CARD_FILE
        if card_file.is_file():
            source.license = stated_license(ModelCard.load(card_file, ignore_metadata_errors=True))
        sources[name] = source
    sources["loomvideo"].path = find_checkpoint(sources["loomvideo"].path, use_ema)
    return sources


def _find(
    given: str | os.PathLike, patterns: list[str], token: str | bool | None, cache_dir: str | os.PathLike | None
) -> Source:
    path = Path(given)
    if path.exists():
        return Source(path, path.absolute().name)
    repo_id, _, revision = str(given).partition("@")
    if len(Path(repo_id).parts) != 2 or path.is_absolute():
        raise LoomVideoError(f"{given} is neither a file or folder here nor the name of a repository (OWNER/NAME).")
    folder = Path(
        snapshot_download(
            repo_id,
            revision=revision or None,
            allow_patterns=patterns,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
        )
    )
    return Source(folder, repo_id, folder.name)


def plan_conversion(
    sources: dict[str, Source], dtype: torch.dtype, max_shard_size: int | str, variant: str | None
) -> Plan:
    """Reads what the sources hold, checks that they fit together, and says what `convert` writes."""
    parts: dict[str, tuple[dict[str, Entry], dict[str, torch.dtype], Any]] = {}
    entries, config, left_out = _plan_transformer(sources["loomvideo"].path, sources["wan"].path)
    dtypes = {name: torch.float32 if any(module in name for module in FLOAT32_MODULES) else dtype for name in entries}
    parts["transformer"] = (entries, dtypes, config)

    entries, text_config, heads = _plan_text_encoder(sources["mllm"].path, config)
    text_config.dtype = dtype
    left_out += heads
    parts["text_encoder"] = (entries, dict.fromkeys(entries, dtype), text_config)

    entries, vae_config = _plan_vae(sources["wan"].path / "vae", config["in_channels"])
    parts["vae"] = (entries, {name: entry.dtype for name, entry in entries.items()}, vae_config)

    weights = {
        part: plan_weights(entries, dtypes, STEMS[part], max_shard_size, variant)
        for part, (entries, dtypes, _) in parts.items()
    }
    record = {
        "sources": {
            name: {"name": source.name, "revision": source.revision, "file": source.path.name}
            if source.path.is_file()
            else {"name": source.name, "revision": source.revision}
            for name, source in sources.items()
        },
        "dtype": str(dtype).removeprefix("torch."),
        "variant": variant,
        "versions": {name: version(name) for name in ("loomvideo-diffusers", "diffusers", "transformers", "torch")},
    }
    files = {entry.file for part in weights.values() for entry in part.entries.values()}
    state = [record, str(max_shard_size), sorted(modified(file) for file in files)]
    configs = {part: config for part, (*_, config) in parts.items()}
    return Plan(weights, configs, sources, left_out, record, state)


def _plan_transformer(checkpoint: Path, wan: Path) -> tuple[dict[str, Entry], dict[str, Any], list[str]]:
    config_file = wan / "transformer" / "config.json"
    if not config_file.is_file():
        raise LoomVideoError(f"{wan} has no transformer/config.json: is it the right source?")
    entries = list_tensors(checkpoint)
    wan_config = LoomVideoTransformer3DModel.load_config(wan, subfolder="transformer")
    arguments = inspect.signature(LoomVideoTransformer3DModel).parameters
    config = {name: value for name, value in wan_config.items() if name in arguments}
    norms = [entry for key, entry in entries.items() if str(key).endswith("mllm_embedder.norm.weight")]
    if all(isinstance(key, int) for key in entries):
        norms = list(entries.values())[-7:-6]  # a list, whose order ends with the embedder and the source's patches
    if norms:
        config["mllm_dim"] = norms[0].shape[0]
    with torch.device("meta"):
        model = LoomVideoTransformer3DModel.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    named, left_out = name_transformer(entries, expected)
    return named, dict(model.config), left_out


def _plan_text_encoder(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Entry], Qwen3VLConfig, list[str]]:
    try:
        text_config = Qwen3VLConfig.from_pretrained(folder)
        size, num_layers = text_config.text_config.hidden_size, text_config.text_config.num_hidden_layers
    except (OSError, ValueError, AttributeError) as error:
        raise LoomVideoError(f"{folder} is no Qwen3-VL ({error}).") from error
    if size != config["mllm_dim"] or num_layers < config["num_layers"]:
        raise LoomVideoError(
            f"{folder} is a Qwen3-VL of another size: expected one of width {config['mllm_dim']} with at least "
            f"{config['num_layers']} layers, but it is {size} wide and has {num_layers}."
        )
    entries = _list_folder(folder, "model")
    heads = [name for name in entries if name.startswith("lm_head.")]
    # Of a model for generation, the rest is called `model.`; of one without its head, nothing is.
    prefix = "model." if any(name.startswith("model.") for name in entries) else ""
    entries = {name.removeprefix(prefix): entry for name, entry in entries.items() if name not in heads}
    with torch.device("meta"):
        model = Qwen3VLModel(text_config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_tensors(entries, expected, "Qwen3-VL")
    text_config.architectures = [Qwen3VLModel.__name__]
    return entries, text_config, heads


def _plan_vae(folder: Path, in_channels: int) -> tuple[dict[str, Entry], dict[str, Any]]:
    with torch.device("meta"):
        model = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(folder))
    if model.config.z_dim != in_channels:
        raise LoomVideoError(
            f"{folder} is a VAE of another size: expected one of {in_channels} channels, but it has "
            f"{model.config.z_dim}."
        )
    entries = _list_folder(folder, "diffusion_pytorch_model")
    check_tensors(entries, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, "Wan VAE")
    return entries, dict(model.config)


def _list_folder(folder: Path, stem: str) -> dict[str, Entry]:
    for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors"):
        if (folder / name).is_file():
            return {str(key): entry for key, entry in list_tensors(folder / name).items()}
    raise LoomVideoError(f"{folder} has no {stem}.safetensors: is it the right source?")


def verify(plan: Plan, folder: Path) -> None:
    """
    Compares every tensor of a converted folder with its source, bit for bit in its precision.

    Raises:
        LoomVideoError: if one differs, or the folder was made from other sources or with other settings.
    """
    record_file = folder / RECORD_FILE
    if not record_file.is_file():
        raise LoomVideoError(f"{folder} has no {RECORD_FILE}: it was not made by this conversion.")
    record = json.loads(record_file.read_text(encoding="utf-8"))
    for name in ("sources", "dtype", "variant"):
        if record.get(name) != plan.record[name]:
            raise LoomVideoError(
                f"{folder} was made with other {name} ({json.dumps(record.get(name))} and not "
                f"{json.dumps(plan.record[name])}): choose another folder, or replace it with --force."
            )
    with progress_bar(total=plan.num_bytes, unit="B", unit_scale=True, desc="Comparing") as progress:
        for part, weights in plan.weights.items():
            compare_weights(weights, folder / part, progress.update)


def write(plan: Plan, output_dir: str | os.PathLike, license: str | None = None, force: bool = False) -> bool:
    """
    Carries a plan out, or if that was done before, verifies the folder; arguments and errors as of `convert`.

    It writes under a temporary name, from which a run that was killed goes on, and then gives the folder its own.

    Returns:
        Whether the folder was written now.
    """
    output_dir = Path(output_dir)
    with lock_beside(output_dir):
        return _write(plan, output_dir, license, force)


def _write(plan: Plan, output_dir: Path, license: str | None, force: bool) -> bool:
    unfinished = output_dir.with_name(f".unfinished-{output_dir.name}")
    removed = output_dir.with_name(f".removed-{output_dir.name}")
    # What a killed run had replaced already
    shutil.rmtree(removed, ignore_errors=True)
    is_there = output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir()))
    if is_there and not force:
        if not (output_dir / RECORD_FILE).is_file():
            raise LoomVideoError(f"{output_dir} has other content: choose another folder, or replace it with --force.")
        verify(plan, output_dir)
        return False
    state_file = unfinished / "state.json"
    state = json.dumps(plan.state)
    if unfinished.exists() and not (state_file.is_file() and state_file.read_text(encoding="utf-8") == state):
        shutil.rmtree(unfinished)
    try:
        unfinished.mkdir(exist_ok=True)
        free = shutil.disk_usage(unfinished).free + sum(file.stat().st_size for file in unfinished.rglob("*"))
        if free < plan.num_bytes:
            raise OSError(
                f"{output_dir} needs {plan.num_bytes / 1e9:.1f} GB, but there are {free / 1e9:.1f} GB: make room, or "
                "choose another disk."
            )
        state_file.write_text(state, encoding="utf-8")
        # Before the weights, which take long: a processor or a scheduler that is missing is found now.
        _write_configs(plan, unfinished, output_dir.absolute().name)
        with progress_bar(total=plan.num_bytes, unit="B", unit_scale=True) as progress:
            for part, weights in plan.weights.items():
                progress.set_description(f"Converting the {part.replace('_', ' ')}")
                write_weights(weights, unfinished / part, progress.update)
        stated = plan.sources["loomvideo"].license
        card = render_base_card(unfinished, None, {"license": license} if license else stated)
        (unfinished / CARD_FILE).write_text(card, encoding="utf-8")
        state_file.unlink()
        if output_dir.exists():
            output_dir.replace(removed)
            unfinished.replace(output_dir)
            shutil.rmtree(removed)
        else:
            unfinished.replace(output_dir)
    except Exception as error:
        reason = reason_of_full_disk(error, unfinished)
        shutil.rmtree(unfinished, ignore_errors=True)
        if reason is not None:
            raise DiskFullError(
                f"{output_dir} could not be written ({reason}): make room, or choose another disk."
            ) from error
        raise
    return True


def _write_configs(plan: Plan, folder: Path, name: str) -> None:
    for part, model_class in (("transformer", LoomVideoTransformer3DModel), ("vae", AutoencoderKLWan)):
        with torch.device("meta"):
            model: ModelMixin = model_class.from_config(plan.configs[part])
        model.save_config(folder / part)
    plan.configs["text_encoder"].save_pretrained(folder / "text_encoder")
    Qwen3VLProcessor.from_pretrained(plan.sources["mllm"].path).save_pretrained(folder / "processor")
    wan = plan.sources["wan"].path
    UniPCMultistepScheduler.from_pretrained(wan, subfolder="scheduler").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": LoomVideoPipeline.__name__,
        "text_encoder": ["transformers", Qwen3VLModel.__name__],
        "processor": ["transformers", Qwen3VLProcessor.__name__],
        "vae": ["diffusers", AutoencoderKLWan.__name__],
        "scheduler": ["diffusers", UniPCMultistepScheduler.__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    write_remote_code(folder, LoomVideoPipeline, LoomVideoTransformer3DModel)
    (folder / RECORD_FILE).write_text(json.dumps({"name": name} | plan.record, indent=2) + "\n", encoding="utf-8")
