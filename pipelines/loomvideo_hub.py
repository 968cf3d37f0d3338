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
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download


class LoomVideoHubMixin:
    """
    Goes before `DiffusionPipeline` in a pipeline's bases.

    A saved folder holds the code that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` runs. The
    stock methods alone would record where a class was imported from, which differs from machine to machine.
    """

    # Where the installed package keeps its transformer, as (module, class): set by the package. With it a folder's own
    # code is never run, so no `trust_remote_code` is needed.
    _installed_transformer: tuple[str, str] | None = None

    @classmethod
    def load_config(cls, *args, **kwargs) -> dict[str, Any] | tuple:
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if cls._installed_transformer is not None:
            import_module(cls._installed_transformer[0])
            config["_class_name"] = cls.__name__
            if config.get("transformer", [None])[0] is not None:
                config["transformer"] = list(cls._installed_transformer)
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
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
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> DiffusionPipeline:
        """
        Makes this pipeline of the components of another, which they share.

        Components can be replaced by name, and `dtype` casts them all. Without it the shared weights stay as they are,
        where the stock method would cast them, and so the other pipeline's, to float32.
        """
        dtype = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", dtype)
        new_pipeline = cls(**(pipeline.components | kwargs))
        return new_pipeline if dtype is None else new_pipeline.to(dtype=dtype)

    def save_config(self, save_directory: str, push_to_hub: bool = False, **kwargs) -> None:
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        # `torch.compile` wraps a module in a class of its own.
        transformer = getattr(self.transformer, "_orig_mod", self.transformer)
        write_remote_code(save_directory, type(self), None if transformer is None else type(transformer))


def write_remote_code(folder: str, pipeline_class: type, transformer_class: type | None) -> None:
    """Copies the code of the pipelines and of the transformer into a pipeline's folder and names it in the index."""
    folder = Path(folder)
    # A user's subclass stays at home: its base is what others can load.
    pipeline_class = next(base for base in pipeline_class.__mro__ if "pipeline_loomvideo" in base.__module__)
    source = Path(inspect.getfile(pipeline_class))
    for file in [*source.parent.glob("pipeline_loomvideo*.py"), *source.parent.glob("loomvideo_*.py")]:
        shutil.copyfile(file, folder / file.name)

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["_class_name"] = [source.stem, pipeline_class.__name__]
    if transformer_class is not None:
        source = Path(inspect.getfile(transformer_class))
        (folder / "transformer").mkdir(exist_ok=True)
        shutil.copyfile(source, folder / "transformer" / source.name)
        index["transformer"] = [source.stem, transformer_class.__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
