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
"""Loading and saving that keeps a folder usable with the package, and without it as remote code."""

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.utils import logging
from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)


logger = logging.get_logger(__name__)

PIPELINE_FILES = ("pipeline_loomvideo.py", "pipeline_loomvideo_edit.py")

# What Modular Diffusers reads of a folder: which blocks it has, and what components
MODULAR_BLOCKS_FILE, MODULAR_INDEX_FILE = "modular_config.json", "modular_model_index.json"
MODULAR_CODE, MODULAR_BLOCKS = "modular_loomvideo", "LoomVideoAutoBlocks"


# Diffusers takes the one subclass of `DiffusionPipeline` that an entry file has for the pipeline of that file.
if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Pipeline
else:
    Pipeline = object


class LoomVideoHubMixin(Pipeline):
    """
    Goes before `DiffusionPipeline` in a pipeline's bases.

    A saved folder holds the code that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` runs. The
    stock methods alone would record where a class was imported from, which differs from machine to machine.
    """

    transformer: Any
    vae_decoder: Any
    vae_chunk_size: int | None
    branch_group: Any
    is_leader: bool

    # Where the installed package keeps its transformer, as (module, class): set by the package. With it a folder's own
    # code is never run, so no `trust_remote_code` is needed.
    _installed_transformer: tuple[str, str] | None = None

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> dict[str, Any] | tuple:
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if cls._installed_transformer is not None:
            import_module(cls._installed_transformer[0])
            config["_class_name"] = cls.__name__
            if config.get("transformer", [None])[0] is not None:
                config["transformer"] = list(cls._installed_transformer)
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Downloads a repository for `from_pretrained`; with the installed package, all of it but its code."""
        if cls._installed_transformer is None:
            return super().download(pretrained_model_name, **kwargs)
        hub_options = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        return snapshot_download(
            pretrained_model_name,
            allow_patterns=["*.json", "*.jinja", "*.txt", "*.safetensors"],
            **{name: kwargs[name] for name in hub_options if kwargs.get(name) is not None},
        )

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> DiffusionPipeline:
        """
        Makes this pipeline of the components of another, which they share.

        Components can be replaced by name, and `dtype` casts them all. Without it the shared weights stay as they are,
        where the stock method would cast them, and so the other pipeline's, to float32.
        """
        dtype = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", dtype)
        options = {"default_options": pipeline.config.get("default_options")}
        new_pipeline = cls(**(pipeline.components | options | kwargs))
        for name in ("vae_decoder", "vae_chunk_size", "branch_group", "is_leader"):
            setattr(new_pipeline, name, getattr(pipeline, name, getattr(cls, name)))
        return new_pipeline if dtype is None else new_pipeline.to(dtype=dtype)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """
        Saves the pipeline, with its code. Of adapters, what was fused is part of the weights, and no other is saved.
        """
        transformer = self.transformer
        if getattr(transformer, "peft_config", None):
            self.transformer = _without_adapters(transformer)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.transformer = transformer

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        revision: str | None = None,
    ) -> str:
        """
        Uploads the pipeline to a repository on the Hub that loads with the package and without it.

        The card is that of where the pipeline was loaded from, whose snippets name the repository then, or else that
        of the repository. `revision` is a branch, which is made if it is not there; the other arguments are those of
        the stock method.

        Returns:
            The address of what was uploaded, which is printed too.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            card = self._origin_card(repo_id)
            if card is None:
                card = str(
                    populate_model_card(load_or_create_model_card(repo_id, token=token or None, is_pipeline=True))
                )
            (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            files = {file.relative_to(folder).as_posix(): file for file in Path(folder).rglob("*") if file.is_file()}
            message = commit_message or f"Upload {type(self).__name__}"
            commit = commit_files(files, repo_id, private, revision, create_pr, message, token)
        url = commit.pr_url or f"{commit.repo_url}/tree/{commit.oid}"
        print(f"Pushed: {url}")
        return url

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        # `torch.compile` wraps a module in a class of its own.
        transformer = getattr(self.transformer, "_orig_mod", self.transformer)
        transformer_class = None if transformer is None else type(transformer)
        if transformer is None and self._installed_transformer is not None:
            module, name = self._installed_transformer
            transformer_class = getattr(import_module(module), name)
        write_remote_code(save_directory, type(self), transformer_class, self._find_code(transformer))

    def _find_code(self, transformer: ModelMixin | None) -> Path | None:
        """
        The folder that remote code came from, with all of it.

        What runs is a copy of what was needed, in a folder where the code of another repository may have replaced it.
        """
        if self._installed_transformer is not None:
            return None
        folder = self._origin(transformer)
        # In the Hub's cache, only the pipeline that was loaded is there.
        found = [] if folder is None else [_fetch(folder, name) for name in PIPELINE_FILES]
        return folder if any(found) else None

    def _origin(self, transformer: ModelMixin | None) -> Path | None:
        """The folder that the pipeline was loaded from, in the Hub's cache if it was a repository."""
        folders = [Path(str(self.config.get("_name_or_path")))]
        if transformer is not None:
            folders.append(Path(str(transformer.config.get("_name_or_path"))).parent)
        return next((folder for folder in folders if (folder / "model_index.json").is_file()), None)

    def _origin_card(self, repo_id: str) -> str | None:
        """The card of where the pipeline was loaded from, with another name of the model in its snippets."""
        folder = self._origin(getattr(self.transformer, "_orig_mod", self.transformer))
        card = folder and _fetch(folder, "README.md")
        if folder is None or card is None:
            return None
        name = _repository(folder) or folder.absolute().name
        text = card.read_text(encoding="utf-8")
        return text.replace(f'"{name}"', f'"{repo_id}"').replace(f"--model {name}", f"--model {repo_id}")


def _repository(folder: Path) -> str | None:
    """The repository whose folder in the Hub's cache this is, or None."""
    if folder.parent.name != "snapshots":
        return None
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/")


def _fetch(folder: Path, name: str) -> Path | None:
    """A file of a folder; of one in the Hub's cache, it is downloaded if it is not there yet."""
    repository = _repository(folder)
    if repository is not None and not (folder / name).is_file():
        try:
            hf_hub_download(repository, name, revision=folder.name, cache_dir=folder.parents[2])
        except OSError as error:
            logger.warning(f"{name} of {repository} cannot be downloaded, and is not saved: {error}")
    return folder / name if (folder / name).is_file() else None


def _without_adapters(transformer: ModelMixin) -> ModelMixin:
    """The same weights, as they are, in layers that PEFT has not wrapped: the stock way would save the wrapping."""
    if not any(getattr(module, "merged", False) for module in transformer.modules()):
        logger.warning(
            "Adapters that are not fused are not saved: call `fuse_lora()` first, or `save_lora_weights()`."
        )
    with torch.device("meta"):
        plain = type(transformer).from_config(transformer.config)
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in transformer.state_dict().items()}
    plain.load_state_dict({name: tensors[name] for name in plain.state_dict()}, assign=True)
    return plain


def commit_files(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload",
    token: str | bool | None = None,
    repo_type: str = "model",
) -> CommitInfo:
    """
    Uploads files to a repository on the Hub, which is made if it is not there.

    There is one commit, so that nobody loads half of a model; huggingface_hub's `upload_folder` divides what takes
    long. Weights that are on the Hub in one file and are sent in several, or the other way round, are deleted there,
    as a loader might take them.

    Args:
        files: what to upload, by name in the repository.
        repo_id: `OWNER/NAME`.
        private: whether a new repository is private.
        revision: the branch, which is made if it is not there.
        create_pr: open a pull request instead of changing the branch.
        commit_message: of the commit.
        token: of the account; by default that of `hf auth login` or of `HF_TOKEN`.
        repo_type: `model`, or `space` for a Space of Gradio's.
    """
    api = HfApi(token=token)
    sdk = "gradio" if repo_type == "space" else None
    made = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk)
    repo_id = made.repo_id
    if MODULAR_INDEX_FILE in files:
        files = {**files, MODULAR_INDEX_FILE: _name_repository(files[MODULAR_INDEX_FILE], repo_id)}
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
    names = api.list_repo_files(repo_id, revision=revision, repo_type=repo_type)
    replaced = {_other_form(name) for name in files} & set(names)
    return api.create_commit(
        repo_id,
        repo_type=repo_type,
        operations=[
            *(CommitOperationAdd(name, content) for name, content in files.items()),
            *(CommitOperationDelete(name) for name in sorted(replaced - files.keys())),
        ],
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message,
    )


def _name_repository(index: Path | bytes, repo_id: str) -> bytes:
    """The index of components with the repository that they are in, which a folder needs not say."""
    content = json.loads(index if isinstance(index, bytes) else index.read_bytes())
    for value in content.values():
        if isinstance(value, list) and value[2]["pretrained_model_name_or_path"] is None:
            value[2]["pretrained_model_name_or_path"] = repo_id
    return _to_json(content).encode()


def _other_form(name: str) -> str:
    """What weights in one file are called if they are in several, by their index, and the other way round."""
    index = ".index.json"
    return name.removesuffix(index) if name.endswith(f".safetensors{index}") else f"{name}{index}"


def write_remote_code(
    folder: str | os.PathLike, pipeline_class: type, transformer_class: type | None, origin: Path | None = None
) -> None:
    """
    Copies the code of the pipelines and of the transformer into a pipeline's folder and names it in the index.

    Args:
        folder: the pipeline's folder.
        pipeline_class: what the index names.
        transformer_class: likewise, unless the index says that there is no transformer.
        origin: a folder of a pipeline to take the code from; by default it is taken from where the classes are.
    """
    folder = Path(folder)
    # A user's subclass stays at home: its base is what others can load.
    pipeline_class = next(base for base in pipeline_class.__mro__ if "pipeline_loomvideo" in base.__module__)
    source = Path(inspect.getfile(pipeline_class))
    code = origin or source.parent
    for pattern in ("pipeline_loomvideo*.py", f"{MODULAR_CODE}.py", "loomvideo_*.py"):
        for file in code.glob(pattern):
            _copy(file, folder / file.name)

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["_class_name"] = [source.stem, pipeline_class.__name__]
    # Also of a pipeline that has no transformer, as the entry files name some of it.
    transformer_code = None if origin is None else origin / "transformer"
    if transformer_class is not None:
        source = Path(inspect.getfile(transformer_class))
        if transformer_code is None or not (transformer_code / source.name).is_file():
            transformer_code = source.parent
        if index.get("transformer") != [None, None]:
            index["transformer"] = [source.stem, transformer_class.__name__]
            index["auto_map"] = {"AutoModel": ".".join(index["transformer"])}
    (folder / "transformer").mkdir(exist_ok=True)
    for file in [] if transformer_code is None else transformer_code.glob("transformer_loomvideo*.py"):
        _copy(file, folder / "transformer" / file.name)
    (folder / "model_index.json").write_text(_to_json(index), encoding="utf-8")
    auto_map = {"ModularPipelineBlocks": f"{MODULAR_CODE}.{MODULAR_BLOCKS}"}
    blocks = {"_class_name": MODULAR_BLOCKS, "auto_map": auto_map}
    (folder / MODULAR_BLOCKS_FILE).write_text(_to_json(blocks), encoding="utf-8")
    (folder / MODULAR_INDEX_FILE).write_text(_to_json(_modular_index(index)), encoding="utf-8")


def _modular_index(index: Mapping[str, Any]) -> dict[str, Any]:
    """The index of components for Modular Diffusers, by that for pipelines."""
    modular: dict[str, Any] = {
        "_class_name": "ModularPipeline",
        "_blocks_class_name": MODULAR_BLOCKS.rpartition(".")[2],
    }
    for name, value in index.items():
        if not isinstance(value, list) or name.startswith("_") or value[0] is None:
            continue
        # It finds a class that comes with a repository by this one.
        kind = ["diffusers", "AutoModel"] if name == "transformer" else value
        place = {"pretrained_model_name_or_path": None, "subfolder": name, "variant": None, "revision": None}
        modular[name] = [*kind, {"type_hint": kind} | place]
    return modular


def _to_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _copy(source: Path, target: Path) -> None:
    # A pipeline may be saved to where it was loaded from.
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
