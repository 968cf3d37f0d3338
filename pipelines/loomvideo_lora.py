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
"""LoRA adapters: loading them from files in any of the spellings in use, saving and fusing them."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LoraBaseMixin
from diffusers.models.model_loading_utils import load_state_dict
from diffusers.utils import USE_PEFT_BACKEND, logging
from diffusers.utils.peft_utils import _create_lokr_config
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from .loomvideo_errors import LoomVideoInputError


logger = logging.get_logger(__name__)

SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
USUAL_NAMES = ("pytorch_lora_weights", "adapter_model")
PEFT_CONFIG = "adapter_config.json"

# Of each layer here, the names that it has elsewhere: in Wan's original code, and in old adapters of diffusers.
BLOCK_LAYERS = {
    f"{attention}.{layer}": [f"{name}.{part}" for name in (attention, original) for part in (layer, *parts)]
    for attention, original in (("attn1", "self_attn"), ("attn2", "cross_attn"))
    for layer, parts in (("to_q", ["q"]), ("to_k", ["k"]), ("to_v", ["v"]), ("to_out.0", ["to_out", "o"]))
} | {
    "ffn.net.0.proj": ["ffn.net.0.proj", "ffn.0"],
    "ffn.net.2": ["ffn.net.2", "ffn.2"],
}
OUTER_LAYERS = {
    "condition_embedder.time_embedder.linear_1": ["condition_embedder.time_embedder.linear_1", "time_embedding.0"],
    "condition_embedder.time_embedder.linear_2": ["condition_embedder.time_embedder.linear_2", "time_embedding.2"],
    "condition_embedder.time_proj": ["condition_embedder.time_proj", "time_projection.1"],
    "proj_out": ["proj_out", "head.head"],
    "patch_embedding": ["patch_embedding"],
    "source_patch_embedding": ["source_patch_embedding"],
    "mllm_embedder.linear_1": ["mllm_embedder.linear_1"],
    "mllm_embedder.linear_2": ["mllm_embedder.linear_2"],
}
# What Wan has and LoomVideo has not: the projections of T5's embeddings and of an image's.
BLOCK_LAYERS_OF_WAN = [
    f"{attention}.{layer}"
    for attention in ("attn2", "cross_attn")
    for layer in ("add_k_proj", "add_v_proj", "norm_added_k", "norm_added_q", "k_img", "v_img", "norm_k_img")
]
OUTER_LAYERS_OF_WAN = [
    *(f"condition_embedder.text_embedder.linear_{number}" for number in (1, 2)),
    *(f"text_embedding.{number}" for number in (0, 2)),
    *(f"condition_embedder.image_embedder.{layer}" for layer in ("ff.net.0.proj", "ff.net.2", "norm1", "norm2")),
    *(f"img_emb.proj.{number}" for number in (0, 1, 3, 4)),
]


def _layers_by_name(layers: dict[str, list[str]], layers_of_wan: list[str]) -> dict[str, str | None]:
    """What a layer of each name, with underscores, is called here: None if it is not here."""
    named = {name.replace(".", "_"): layer for layer, names in layers.items() for name in names}
    return named | {name.replace(".", "_"): None for name in layers_of_wan}


BLOCK_NAMES = _layers_by_name(BLOCK_LAYERS, BLOCK_LAYERS_OF_WAN)
OUTER_NAMES = _layers_by_name(OUTER_LAYERS, OUTER_LAYERS_OF_WAN)
LAYER_NAMES = BLOCK_NAMES | OUTER_NAMES
BLOCK_PATTERN, OUTER_PATTERN = ("|".join(names).replace("_", "[._]") for names in (BLOCK_NAMES, OUTER_NAMES))
# As little as may be stands before, so that the longest name counts.
LAYER = re.compile(
    rf"(?P<before>|.*?[._])(?:blocks[._](?P<block>\d+)[._](?P<inner>{BLOCK_PATTERN})|(?P<outer>{OUTER_PATTERN}))"
)
# Words before a layer's name, where it is one of another model, or the end of another name, as in `vace_blocks_0`.
OTHER_MODELS = {"te", "te1", "te2", "te3", "encoder", "clip", "vae", "controlnet", "vace"}
OTHER_BLOCKS = {"single", "double", "joint", "dual", "up", "down", "mid", "control", "fuser", "face", "audio"}
WRAPPERS = {"lora", "lycoris", "unet", "model", "dit"}
OTHER_BLOCKS |= {"motion", "refiner", "text", "context", "image", "img"}

# The parts of an adapter by their names. A name of the adapter may stand within, and `weight` at the end.
END = r"(?:\.(?!weight|bias)[^.]+)?(?:[._]weight)?"
PARTS = {
    part: re.compile(rf"(?P<layer>.+?)[._](?:{pattern})", re.IGNORECASE)
    for part, pattern in {
        "lora_A": rf"lora(?:_linear_layer)?[._](?:a|down){END}",
        "lora_B": rf"lora(?:_linear_layer)?[._](?:b|up){END}",
        "bias": r"lora(?:_linear_layer)?[._](?:b|up)(?:\.(?!bias)[^.]+)?[._]bias",
        "magnitude": rf"(?:lora_magnitude_vector|dora_scale){END}",
        "alpha": r"(?:lora[._])?alpha",
        "diff": "diff",
        "diff_b": "diff_b",
        **{f"hada_w{number}_{half}": f"hada_w{number}_{half}{END}" for number in (1, 2) for half in "ab"},
        **{f"lokr_w{number}{half}": f"lokr_w{number}{half}{END}" for number in (1, 2) for half in ("", "_a", "_b")},
    }.items()
}

# What stands within names of layers and is no part of them
WRAPPER_NAMES = re.compile(r"\.(?:processor|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")

# Settings of PEFT's configuration under which tensors mean something that is not known here
UNKNOWN_SETTINGS = (
    *("use_qalora", "layer_replication", "use_bdlora", "arrow_config", "monteclora_config", "kasa_config"),
    *("velora_config", "alora_invocation_tokens", "modules_to_save", "trainable_token_indices"),
)
# Others change the model's own weights before they train.
INITS = (None, True, False, "gaussian", "eva", "orthogonal")
# Of others PEFT makes no layers: those of 8 bits are for storing.
# What float16, which trainers save in, can hold
LARGEST_NUMBER = 65504

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PARTS_OF_KINDS = {
    "lora": ["lora_A", "lora_B"],
    "hada": ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
    "diff": ["diff"],
}


# Files


def _read(source: str, options: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """The tensors of a LoRA as the file has them, and the settings in its metadata or in `adapter_config.json`."""
    weight_name, use_safetensors = options.get("weight_name"), options.get("use_safetensors")
    is_pickled = (weight_name or source).endswith(PICKLE_SUFFIXES) if use_safetensors is None else not use_safetensors
    folder = Path(source, options.get("subfolder") or "")
    if Path(source).is_file():
        path = Path(source)
        siblings = _weights_among(os.listdir(path.parent), is_pickled)
    elif Path(source).is_dir():
        names = [path.name for path in folder.glob("*") if path.is_file()]
        if weight_name is not None and Path(folder, weight_name).is_file():
            names.append(weight_name)  # which may be in a folder within
        name, siblings = _choose(names, weight_name, is_pickled)
        path = folder / name
    else:
        path, siblings = _download(source, weight_name, is_pickled, options)
    state_dict, metadata = _read_tensors(path, is_pickled)
    settings, config = metadata.get(LORA_ADAPTER_METADATA_KEY), path.parent / PEFT_CONFIG
    # Among other files it may be another's.
    if settings is None and config.is_file() and (path.stem == "adapter_model" or siblings == [path.name]):
        path, settings = config, config.read_bytes()
    try:
        settings = None if settings is None else json.loads(settings)
        if not isinstance(settings, dict | None):
            raise LoomVideoInputError("it is no JSON object")
    except ValueError as error:
        raise LoomVideoInputError(
            f"the configuration of the adapter in {path.name} cannot be read: {error}."
        ) from error
    if path == config:
        settings = {f"transformer.{name}": value for name, value in settings.items()}
    return state_dict, settings


def _read_tensors(path: Path, is_pickled: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file, and a safetensors file's metadata."""
    is_safetensors = path.suffix == SUFFIX
    if not is_safetensors and not is_pickled:
        raise LoomVideoInputError(f"{path.name} is no safetensors file: name one.")
    try:
        state_dict = load_state_dict(path)
        with open(path, "rb") as file:
            metadata = _read_header(file).get("__metadata__", {}) if is_safetensors else {}
    except Exception as error:  # what damaged files raise is of many classes
        kind = "safetensors: is it complete?" if is_safetensors else "tensors by their names: use a safetensors file."
        raise LoomVideoInputError(f"{path.name} cannot be read as {kind}") from error
    if isinstance(state_dict, dict) and isinstance(state_dict.get("state_dict"), dict):
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise LoomVideoInputError(f"{path.name} holds more than tensors by their names: use a safetensors file.")
    return state_dict, metadata


def _read_header(file: BinaryIO) -> dict[str, Any]:
    """The header of a safetensors file."""
    return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def _weights_among(names: Iterable[str], is_pickled: bool) -> list[str]:
    """Those of the wanted kind that are in no folder within."""
    return sorted(
        name for name in names if "/" not in name and name.endswith(PICKLE_SUFFIXES if is_pickled else SUFFIX)
    )


def _choose(names: list[str], weight_name: str | None, is_pickled: bool) -> tuple[str, list[str]]:
    """The file of the LoRA in a folder, and all of the wanted kind that are beside it."""
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
        advice = f"name its {pickled[0]} to load a pickled file" if pickled else "name the file of a LoRA"
        raise LoomVideoInputError(f"it has no pytorch_lora_weights.safetensors or other safetensors file: {advice}.")
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
    where = {name: options.get(name) for name in ("revision", "token", "cache_dir")}
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


# Names


def parse_lora_name(name: str) -> tuple[str | None, str, str] | None:
    """
    What a tensor of a LoRA is, by its name in any of the spellings in use.

    Returns:
        The layer's name here, or None if Wan has this layer and LoomVideo has not; the part of the adapter, such as
        `lora_A`; and the layer's name in its own model. None if the name tells no layer or no part.
    """
    matches = ((part, pattern.fullmatch(name)) for part, pattern in PARTS.items())
    part, match = next(((part, match) for part, match in matches if match), (None, None))
    layer = None if match is None else LAYER.fullmatch(WRAPPER_NAMES.sub("", match["layer"]))
    if layer is None or not _may_stand_before(layer["before"], layer[0]):
        return None
    ours = LAYER_NAMES[(layer["outer"] or layer["inner"]).replace(".", "_")]
    if ours is not None and layer["block"]:
        ours = f"blocks.{layer['block']}.{ours}"
    return ours, part, layer[0].removeprefix(layer["before"])


def _may_stand_before(before: str, name: str) -> bool:
    """Whether what ends a name is a layer of the transformer, not of another model, nor of longer named blocks."""
    *words, last = re.split("[._]", before[:-1])
    if any(word.isdecimal() or word in OTHER_MODELS for word in (*words, last)):
        return False
    if not before.endswith("_"):
        return True
    if last == "transformer":
        return set(words) <= {"lora", "lycoris"}  # else they are `transformer_blocks`, as other models have
    is_underscored = name.startswith(f"{before}blocks_") or words[:1] in (["lora"], ["lycoris"]) or last in WRAPPERS
    return is_underscored and last not in OTHER_BLOCKS


# Tensors


def prepare_lora(
    state_dict: dict[str, torch.Tensor],
    settings: dict[str, Any] | None,
    transformer: torch.nn.Module,
    allow_partial: bool = False,
    allow_zero: bool = True,
    title: str = "The LoRA",
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None, str | None]:
    """
    Checks the tensors of a LoRA in any spelling, and gives them the names and the form that PEFT loads.

    Args:
        state_dict: the tensors by the file's names.
        settings: those of PEFT's configuration, each after `transformer.`, or None.
        transformer: only the names and sizes of its layers count: it may be on the meta device.
        allow_partial: whether to leave out what cannot be applied.
        allow_zero: whether to warn of one that changes nothing, as before the training, rather than refuse it.
        title: what messages call the LoRA.

    Returns:
        The tensors `transformer.LAYER.lora_A.weight` and so on, PEFT's configuration (None for a LoKr, whose
        tensors tell it), and a sentence about what is left out, or None.

    Raises:
        LoomVideoInputError: in one sentence, for all that cannot be applied as it was meant.
    """
    modules = {
        name: module.get_base_layer() if hasattr(module, "get_base_layer") else module
        for name, module in transformer.named_modules()
    }
    layers, sources, names_there, of_wan, unknown = {}, {}, {}, {}, []
    for name, tensor in state_dict.items():
        parsed = parse_lora_name(name)
        if name.endswith((".diff", ".diff_b")) and not tensor.float().any():
            continue  # changes nothing, whatever layer it is of: some tools write these of all norms
        if parsed is not None and parsed[0] is None:
            of_wan[parsed[2]] = None
        elif parsed is None or parsed[0] not in modules:
            unknown.append(name)
        else:
            layer, part, names_there[layer] = parsed
            if part in layers.setdefault(layer, {}):
                raise LoomVideoInputError(
                    f"{title} has two tensors for one part of a layer, {sources[layer, part]} and {name}: keep one."
                )
            layers[layer][part], sources[layer, part] = tensor, name
    if not layers and not (unknown or of_wan):
        raise LoomVideoInputError(
            f"{title} has no effect: {'all its weights are zero' if state_dict else 'it is empty'}."
        )
    if not layers and not any(pattern.fullmatch(name) for name in state_dict for pattern in PARTS.values()):
        raise LoomVideoInputError(
            f"{title} is no LoRA: it holds no tensor named as parts of one are, such as `lora_A.weight`."
        )
    if not layers:
        first = next(iter([*unknown, *of_wan]))
        raise LoomVideoInputError(
            f"{title} has no effect: none of its layers is in LoomVideo's transformer, such as {first}."
        )
    if unknown and not allow_partial:
        raise LoomVideoInputError(
            f"{title} has tensors that match no layer of LoomVideo or cannot be applied to one, {_some(unknown)}: "
            "`allow_partial=True` (`--lora-partial`) leaves them out."
        )
    settings = {name.removeprefix("transformer."): value for name, value in (settings or {}).items()}
    _check_settings(settings, title)
    adapters = {}
    for layer, parts in layers.items():
        try:
            adapters[layer] = _make_adapter(parts, modules[layer], settings, (layer, names_there[layer]))
        except ValueError as error:
            raise LoomVideoInputError(f"{title} {error} in the layer {layer}.") from error
    if not any(_has_effect(adapter) for adapter in adapters.values()):
        if not allow_zero:
            raise LoomVideoInputError(f"{title} has no effect: all its weights are zero.")
        logger.warning(f"{title} has no effect: all its weights are zero.")
    tensors, config = _pack(adapters, bool(settings.get("use_dora")), title)
    left_out = [f"{_some([*of_wan])} (layers of Wan that LoomVideo does not have)"] if of_wan else []
    left_out += [f"{_some(unknown)} (no layers of LoomVideo, or no parts that can be applied)"] if unknown else []
    sentence = f"Left out of {title[:1].lower()}{title[1:]}: {'; '.join(left_out)}."
    return tensors, config, sentence if left_out else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_settings(settings: dict[str, Any], title: str) -> None:
    kind = settings.get("peft_type") or "LORA"
    if kind not in ("LORA", "LOHA", "LOKR"):
        raise LoomVideoInputError(f"{title} is an adapter of the kind {kind}: only LoRA, LoHa and LoKr can be loaded.")
    try:
        for name in ("r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern"):
            value = settings.get(name)
            numbers = (value or {}).values() if name.endswith("pattern") else [] if value is None else [value]
            if not all(math.isfinite(number) for number in numbers):
                raise LoomVideoInputError("it is not finite")
        for pattern in (*(settings.get("rank_pattern") or ()), *(settings.get("alpha_pattern") or ())):
            re.compile(pattern)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise LoomVideoInputError(
            f"{title} cannot be loaded: its configuration has no good {name} ({error})."
        ) from error
    unknown = [name for name in UNKNOWN_SETTINGS if settings.get(name)]
    if unknown:
        raise LoomVideoInputError(f"{title} cannot be loaded: its configuration has {', '.join(unknown)}.")
    if settings.get("init_lora_weights") not in INITS:
        raise LoomVideoInputError(
            f"{title} fits weights that {settings['init_lora_weights']} changed before the training: save it "
            "anew with PEFT's `path_initial_model_for_weight_conversion`."
        )


def _setting(settings: dict[str, Any], pattern: str, default: str, names: tuple[str, str]) -> Any:
    """One layer's, by PEFT's rule for patterns, which may tell the layer by its name here or there."""
    for key, value in (settings.get(pattern) or {}).items():
        if any(re.match(rf"(.*\.)?({key})$", name) for name in names):
            return value
    return settings.get(default)


def _make_adapter(
    parts: dict[str, torch.Tensor], module: torch.nn.Module, settings: dict[str, Any], names: tuple[str, str]
) -> dict[str, Any]:
    """
    Makes the adapter of one layer: `lora_A` and `lora_B`, maybe `bias` and `magnitude`, or `lokr_w1` and `lokr_w2`;
    and `scale`, by which it counts. What it raises stands between the LoRA's name and "in the layer NAME".
    """
    for part, tensor in parts.items():
        if tensor.is_complex() or (part != "alpha" and not tensor.is_floating_point()):
            raise LoomVideoInputError(f"has numbers of the type {str(tensor.dtype).removeprefix('torch.')}")
        if not (tensor.float().abs() <= LARGEST_NUMBER).all():
            raise LoomVideoInputError("has numbers that are no numbers, infinite, or too large to be right")
    parts = {part: tensor if tensor.dtype in DTYPES else tensor.float() for part, tensor in parts.items()}
    alpha, magnitude, bias, bias_difference = (
        parts.pop(part, None) for part in ("alpha", "magnitude", "bias", "diff_b")
    )
    kinds = {part.split("_")[0] for part in parts}
    if len(kinds) > 1 or (bias is not None and bias_difference is not None):
        raise LoomVideoInputError("has parts of different kinds")
    if not kinds and bias_difference is None:
        raise LoomVideoInputError("is incomplete: it has no lora_A and no lora_B")
    kind = kinds.pop() if kinds else "bias"
    missing = [part for part in PARTS_OF_KINDS.get(kind, []) if part not in parts]
    if missing:
        raise LoomVideoInputError(f"is incomplete: it has no {' and no '.join(missing)}")

    is_convolution = isinstance(module, torch.nn.Conv3d)
    if not is_convolution and not hasattr(module, "in_features"):
        raise LoomVideoInputError("changes what is no linear layer and no convolution")
    sizes = (module.out_channels, module.in_channels) if is_convolution else (module.out_features, module.in_features)
    kernel = module.kernel_size if is_convolution else ()
    sizes = (sizes[0], sizes[1] * math.prod(kernel))
    adapter, rank = {}, None
    if kind == "lokr":
        if is_convolution or magnitude is not None or bias is not None or bias_difference is not None:
            raise LoomVideoInputError(
                "is a LoKr of a convolution, or with magnitudes or biases, which cannot be loaded,"
            )
        (first, rank_1), (second, rank_2) = (_kronecker_factor(parts, number) for number in (1, 2))
        rank = rank_2 or rank_1
        adapter = {"lokr_w1": first, "lokr_w2": second}
        actual = (first.shape[0] * second.shape[0], first.shape[1] * second.shape[1])
    else:
        up, down, rank = _halves(kind, parts, sizes)
        actual = (up.shape[0], down.shape[1])
    for width, expected in zip(actual, sizes, strict=True):
        if width != expected:
            raise LoomVideoInputError(f"was trained for another model: it has {width} channels instead of {expected}")

    scale = 1.0
    if kind in ("lora", "hada", "lokr"):
        if kind == "lora" and _setting(settings, "rank_pattern", "r", names) not in (None, rank):
            raise LoomVideoInputError(f"has rank {rank}, and its configuration says another,")
        if alpha is not None and alpha.numel() != 1:
            raise LoomVideoInputError("has more than one alpha")
        scale = _scale(kind, rank, None if alpha is None else alpha.item(), settings, names)
    if kind == "lokr":
        return adapter | {"scale": scale}

    if bias_difference is not None:
        # A bias of PEFT is multiplied by the scale; this one must not be.
        up, scale, bias = up.float() * scale, 1.0, bias_difference
    for part in (bias, magnitude):
        if part is not None and part.numel() != sizes[0]:
            raise LoomVideoInputError(
                f"was trained for another model: it has {part.numel()} channels instead of {sizes[0]}"
            )
    if bias is not None and magnitude is not None:
        raise LoomVideoInputError("has a magnitude and a bias, which cannot be loaded together,")
    if magnitude is not None:
        # Of rows, as PEFT has them; some trainers can have them of columns, which are `[1, in_features]`.
        expected = (sizes[0], *(1 for _ in range(magnitude.ndim - 1)))
        if magnitude.shape != expected and not (is_convolution and magnitude.shape[:2] == (1, sizes[0])):
            raise LoomVideoInputError("has a magnitude of another direction than PEFT has, which cannot be loaded,")
        magnitude = magnitude.reshape((1, sizes[0], 1, 1, 1) if is_convolution else (sizes[0],))
    if is_convolution:
        up = up[..., None, None, None]
        down = down.unflatten(1, (module.in_channels, *kernel))
    bias = None if bias is None else bias.flatten()
    return {"lora_A": down, "lora_B": up, "bias": bias, "magnitude": magnitude, "scale": scale}


def _scale(
    kind: str, rank: int | None, alpha: float | None, settings: dict[str, Any], names: tuple[str, str]
) -> float:
    """Alpha over rank, of the layer's tensors or by PEFT's configuration; LyCORIS has no rank of whole factors."""
    if alpha is not None:
        return alpha / rank if rank else 1.0
    alpha = _setting(settings, "alpha_pattern", "lora_alpha" if kind == "lora" else "alpha", names)
    rank = _setting(settings, "rank_pattern", "r", names) or rank
    if alpha is None or rank is None:
        return 1.0
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _has_effect(adapter: dict[str, Any]) -> bool:
    """Whether an adapter changes anything; one that has not been trained does not."""
    if "lokr_w1" in adapter:
        factors = [adapter["lokr_w1"], adapter["lokr_w2"]]
    elif adapter["magnitude"] is not None or (adapter["bias"] is not None and adapter["bias"].any()):
        return True
    else:
        factors = [adapter["lora_A"], adapter["lora_B"]]
    return adapter["scale"] != 0 and all(factor.any() for factor in factors)


def _halves(
    kind: str, parts: dict[str, torch.Tensor], sizes: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The two matrices of which the difference of a layer's weights is the product, and their rank."""
    if any(part.ndim < 2 for part in parts.values()):
        raise LoomVideoInputError("has parts that are no matrices")
    matrices = {part: tensor.flatten(1) for part, tensor in parts.items()}
    if kind == "bias":
        return torch.zeros(sizes[0], 1), torch.zeros(1, sizes[1]), 1
    if kind == "diff":
        difference = matrices["diff"]
        if difference.shape[0] < difference.shape[1]:
            return torch.eye(difference.shape[0], dtype=difference.dtype), difference, difference.shape[0]
        return difference, torch.eye(difference.shape[1], dtype=difference.dtype), difference.shape[1]
    if kind == "lora":
        pairs = [(matrices["lora_B"], matrices["lora_A"])]
    else:
        pairs = [(matrices[f"hada_w{number}_a"].float(), matrices[f"hada_w{number}_b"].float()) for number in (1, 2)]
    ranks = {rank for up, down in pairs for rank in (up.shape[1], down.shape[0])}
    if len(ranks) > 1 or 0 in ranks:
        raise LoomVideoInputError(f"has halves that do not fit each other, of the ranks {sorted(ranks)},")
    if kind == "lora":
        return *pairs[0], ranks.pop()
    # A LoHa multiplies two products element by element: that is the product of all pairs of columns and of rows.
    (up_1, down_1), (up_2, down_2) = pairs
    if up_1.shape[0] != up_2.shape[0] or down_1.shape[1] != down_2.shape[1]:
        raise LoomVideoInputError("has factors of different sizes")
    up = torch.einsum("oi,oj->oij", up_1, up_2).flatten(1)
    down = torch.einsum("in,jn->ijn", down_1, down_2).flatten(0, 1)
    return up, down, ranks.pop()


def _kronecker_factor(parts: dict[str, torch.Tensor], number: int) -> tuple[torch.Tensor, int | None]:
    """One of the two factors of a LoKr, and its rank if it is a product itself."""
    whole, up, down = (parts.get(f"lokr_w{number}{half}") for half in ("", "_a", "_b"))
    if whole is None and (up is None or down is None):
        raise LoomVideoInputError(f"is incomplete: it has no lokr_w{number}, or only a half of it,")
    if any(factor is not None and factor.ndim != 2 for factor in (whole, up, down)):
        raise LoomVideoInputError("has parts that are no matrices")
    if whole is not None:
        return whole, None
    if up.shape[1] != down.shape[0]:
        raise LoomVideoInputError(
            f"has halves that do not fit each other, of the ranks {[up.shape[1], down.shape[0]]},"
        )
    return up.float() @ down.float(), down.shape[0]


def _pack(
    adapters: dict[str, dict[str, Any]], use_dora: bool, title: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """The tensors of all layers as PEFT has them, and its configuration: None if its own of the tensors will do."""
    is_lokr = {"lokr_w1" in adapter for adapter in adapters.values()}
    if len(is_lokr) > 1:
        raise LoomVideoInputError(
            f"{title} is a LoRA in some layers and a LoKr in others, which cannot be loaded together."
        )
    if is_lokr.pop():
        return _pack_lokr(adapters, title)
    has_magnitude = {adapter["magnitude"] is not None for adapter in adapters.values()}
    if len(has_magnitude) > 1:
        raise LoomVideoInputError(f"{title} is a DoRA with magnitudes of some layers only, which cannot be loaded.")
    has_bias = any(adapter["bias"] is not None for adapter in adapters.values())
    if use_dora and False in has_magnitude:
        raise LoomVideoInputError(f"{title} is a DoRA by its configuration, but without magnitudes: it is incomplete.")
    if has_bias and True in has_magnitude:
        raise LoomVideoInputError(f"{title} has magnitudes and biases, which cannot be loaded together.")
    # PEFT multiplies by alpha / rank. All layers get one such scale, and what it is not goes into their weights, in
    # float32, where nothing underflows: adapters that are swapped in place need that.
    scale = Counter(adapter["scale"] for adapter in adapters.values() if adapter["scale"]).most_common(1)
    scale = scale[0][0] if scale else 1.0
    ranks = {layer: adapter["lora_A"].shape[0] for layer, adapter in adapters.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    tensors = {}
    for layer, adapter in adapters.items():
        tensors[f"transformer.{layer}.lora_A.weight"] = adapter["lora_A"]
        tensors[f"transformer.{layer}.lora_B.weight"] = adapter["lora_B"]
        if has_bias:
            bias = adapter["bias"]
            zeros = torch.zeros(len(adapter["lora_B"]), dtype=adapter["lora_B"].dtype)
            tensors[f"transformer.{layer}.lora_B.bias"] = zeros if bias is None else bias
        if adapter["magnitude"] is not None:
            tensors[f"transformer.{layer}.lora_magnitude_vector"] = adapter["magnitude"]
        _multiply(tensors, f"transformer.{layer}", adapter["scale"] / scale)
    others = {f"^{layer}": other for layer, other in ranks.items() if other != rank}
    return tensors, {
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": others,
        "alpha_pattern": {layer: scale * other for layer, other in others.items()},
        "target_modules": sorted(adapters),
        "use_dora": True in has_magnitude,
        "lora_bias": has_bias,
    }


def _multiply(tensors: dict[str, torch.Tensor], layer: str, factor: float) -> None:
    """Multiplies what an adapter adds to a layer."""
    for name in (f"{layer}.lora_B.weight", f"{layer}.lora_B.bias"):
        if factor != 1 and name in tensors:
            tensors[name] = tensors[name].float() * factor


def _pack_lokr(adapters: dict[str, dict[str, Any]], title: str) -> tuple[dict[str, torch.Tensor], None]:
    tensors = {}
    for layer, adapter in adapters.items():
        first = adapter["lokr_w1"] if adapter["scale"] == 1 else adapter["lokr_w1"].float() * adapter["scale"]
        tensors |= {f"transformer.{layer}.lokr_w1": first, f"transformer.{layer}.lokr_w2": adapter["lokr_w2"]}
    try:
        _create_lokr_config(tensors, None)  # PEFT's configuration has one number for the sizes of all factors
    except ValueError as error:
        raise LoomVideoInputError(f"{title} is a LoKr whose factors have sizes that PEFT does not know.") from error
    return tensors, None


def _fit_slot(
    transformer: torch.nn.Module,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any] | None,
    adapter_name: str | None,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Gives an adapter the ranks, the scale and the settings of another whose place it takes, so that it fits."""
    old = getattr(transformer, "peft_config", {}).get(adapter_name)
    if old is None:
        raise LoomVideoInputError(
            f"There is no adapter {adapter_name} to take the place of: load one with `hotswap=False`."
        )
    layers = {
        name: module
        for name, module in transformer.named_modules()
        if hasattr(module, "lora_A") and adapter_name in module.lora_A
    }
    is_lora = config is not None and old.peft_type == "LORA" and not config["use_dora"] and not old.use_dora
    others = [layer for layer in config["target_modules"] if layer not in layers] if is_lora else []
    if others or not is_lora or config["lora_bias"] > old.lora_bias:
        raise LoomVideoInputError(
            f"The LoRA cannot take the place of {adapter_name}, which has other layers or is of another kind"
            f"{f', such as {others[0]}' if others else ''}: use `hotswap=False`."
        )
    if any(adapter_name in module.merged_adapters for module in layers.values()):
        raise LoomVideoInputError(
            f"{adapter_name} is fused: call `unfuse_lora()` before another LoRA takes its place."
        )
    first = next(iter(layers.values()))
    scale = first.lora_alpha[adapter_name] / first.r[adapter_name] ** (0.5 if old.use_rslora else 1)
    for layer in config["target_modules"]:
        name = f"transformer.{layer}"
        _multiply(tensors, name, config["lora_alpha"] / config["r"] / scale)
        for half, axis in (("lora_A", 0), ("lora_B", 1)):
            tensor = tensors[f"{name}.{half}.weight"]
            missing = getattr(layers[layer], half)[adapter_name].weight.shape[axis] - tensor.shape[axis]
            if missing > 0:
                shape = [missing if index == axis else size for index, size in enumerate(tensor.shape)]
                tensors[f"{name}.{half}.weight"] = torch.cat([tensor, tensor.new_zeros(shape)], dim=axis)
    settings = {name: getattr(old, name) for name in ("use_rslora", "lora_dropout", "alpha_pattern")}
    lora_alpha = scale * config["r"] ** (0.5 if old.use_rslora else 1)
    return tensors, config | settings | {"lora_alpha": lora_alpha, "rank_pattern": {}}


def _load(
    transformer: torch.nn.Module,
    state_dict: dict[str, torch.Tensor],
    config: dict[str, Any] | None,
    adapter_name: str | None,
    hotswap: bool,
    low_cpu_mem_usage: bool,
    pipeline: Any,
) -> None:
    """Loads what `prepare_lora` returned."""
    if adapter_name is not None and ("." in adapter_name or not adapter_name):
        raise LoomVideoInputError(f"An adapter cannot be called {adapter_name!r}: choose a name without dots.")
    if hotswap:
        state_dict, config = _fit_slot(transformer, state_dict, config, adapter_name)
    transformer.load_lora_adapter(
        state_dict,
        adapter_name=adapter_name,
        metadata=config and {f"transformer.{name}": value for name, value in config.items()},
        _pipeline=pipeline,
        low_cpu_mem_usage=low_cpu_mem_usage,
        hotswap=hotswap,
    )


def _sort_metadata(path: Path) -> None:
    """Gives the metadata of a safetensors file, which are written in any order, their own."""
    with open(path, "r+b") as file:
        header = _read_header(file)
        size = file.tell() - 8
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


class LoomVideoLoraLoaderMixin(LoraBaseMixin):
    """Loads LoRA adapters into a pipeline's transformer. Those of Wan2.2-TI2V-5B fit, layer by layer."""

    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor], **kwargs
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        r"""
        Reads the tensors of a LoRA, by the names that they have there.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A file, a folder, a repository (OWNER/NAME, or OWNER/NAME/FILE), or the tensors themselves.
            weight_name (`str`, *optional*):
                The file in the repository or folder; by default `pytorch_lora_weights.safetensors`,
                `adapter_model.safetensors`, or the only one.
            use_safetensors (`bool`, *optional*):
                By default only safetensors are looked for, and a pickled file (read by torch's `weights_only`) has to
                be asked for by its name or by `False`.
            return_lora_metadata (`bool`, defaults to `False`):
                Whether to return the adapter's configuration too: from the file's metadata, else from PEFT's
                `adapter_config.json` beside it, else None.
            kwargs (*optional*):
                The Hub's: `subfolder`, `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            LoomVideoInputError: if the file is not there, is one of several, or cannot be read.
        """
        return_lora_metadata = kwargs.pop("return_lora_metadata", False)
        source = pretrained_model_name_or_path_or_dict
        try:
            state_dict, metadata = (source, None) if isinstance(source, dict) else _read(os.fspath(source), kwargs)
        except ValueError as error:
            raise LoomVideoInputError(f"The LoRA {source} cannot be loaded: {error}") from error
        return (state_dict, metadata) if return_lora_metadata else state_dict

    @classmethod
    def check_lora_weights(
        cls,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        transformer: torch.nn.Module,
        allow_partial: bool = False,
        **kwargs,
    ) -> str | None:
        r"""
        Checks whether a LoRA can be loaded, before a model's weights are.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                As for `lora_state_dict`.
            transformer (`torch.nn.Module`):
                The transformer; one on the meta device, without weights, does.
            allow_partial (`bool`, defaults to `False`):
                As for `load_lora_weights`.
            kwargs (*optional*):
                As for `lora_state_dict`.

        Returns:
            A sentence about what would be left out, or None.

        Raises:
            LoomVideoInputError: if `load_lora_weights` would refuse it, or if all its weights are zero.
        """
        source = pretrained_model_name_or_path_or_dict
        return cls._prepare(source, transformer, allow_partial, allow_zero=False, options=kwargs)[2]

    @classmethod
    def _prepare(
        cls, source: Any, transformer: torch.nn.Module, allow_partial: bool, allow_zero: bool, options: dict[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None, str | None]:
        state_dict, settings = cls.lora_state_dict(source, **options, return_lora_metadata=True)
        title = "The LoRA" if isinstance(source, dict) else f"The LoRA {os.fspath(source)}"
        return prepare_lora(state_dict, settings, transformer, allow_partial, allow_zero, title)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        allow_partial: bool = False,
        **kwargs,
    ) -> None:
        r"""
        Loads a LoRA into the transformer and makes it the active one: all of it, or nothing.

        Names are those of any trainer. Layers of Wan that LoomVideo does not have (of LoRAs trained for
        Wan2.2-TI2V-5B, those that read T5) are left out, and a warning lists them.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A file, a folder, a repository (OWNER/NAME, or OWNER/NAME/FILE), or the tensors themselves.
            adapter_name (`str`, *optional*):
                What `set_adapters` and the others are to call it.
            hotswap (`bool`, defaults to `False`):
                Whether to replace the weights of the adapter of that name in place, which a compiled transformer does
                not notice. Call `enable_lora_hotswap` first if ranks differ.
            low_cpu_mem_usage (`bool`, defaults to `True`):
                Whether to leave out the initialization of weights that are loaded anyway.
            allow_partial (`bool`, defaults to `False`):
                Whether to leave out also what matches no layer, such as a text encoder's LoRA, or cannot be applied,
                such as changes of norms; the warning lists it.
            kwargs (*optional*):
                As for `lora_state_dict`.

        Raises:
            LoomVideoInputError: if PEFT is missing, or the file cannot be read, is no LoRA, is damaged or incomplete,
                has other sizes, or holds what cannot be applied. The pipeline stays as it was.
        """
        if not USE_PEFT_BACKEND:
            raise LoomVideoInputError("LoRA adapters need PEFT: install it with `pip install peft`.")
        transformer = getattr(self.transformer, "_orig_mod", self.transformer)
        if any(getattr(module, "fused_projections", False) for module in transformer.modules()):
            raise LoomVideoInputError(
                "A LoRA does not fit fused projections: call `pipe.transformer.unfuse_qkv_projections()` first."
            )
        state_dict, config, left_out = self._prepare(
            pretrained_model_name_or_path_or_dict, transformer, allow_partial, allow_zero=True, options=kwargs
        )
        if left_out:
            logger.warning(left_out)
        _load(transformer, state_dict, config, adapter_name, hotswap, low_cpu_mem_usage, self)

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: dict[str, torch.Tensor],
        transformer: torch.nn.Module,
        adapter_name: str | None = None,
        _pipeline: Any = None,
        low_cpu_mem_usage: bool = False,
        hotswap: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Loads tensors, in any spelling, into a transformer; `metadata` is what `lora_state_dict` returns."""
        state_dict, config, left_out = prepare_lora(state_dict, metadata, transformer)
        if left_out:
            logger.warning(left_out)
        _load(transformer, state_dict, config, adapter_name, hotswap, low_cpu_mem_usage, _pipeline)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike,
        transformer_lora_layers: dict[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        r"""
        Saves a LoRA as `load_lora_weights` reads it: of the same LoRA the same file, to the byte.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder; made if needed.
            transformer_lora_layers (`dict[str, torch.Tensor]`):
                What `peft.get_peft_model_state_dict(pipe.transformer)` returns.
            is_main_process (`bool`, defaults to `True`):
                False in the other processes of a distributed run, which write nothing.
            weight_name (`str`, *optional*):
                The file's name, by default `pytorch_lora_weights.safetensors`.
            save_function (`Callable`, *optional*):
                What writes the file, called with the tensors and its path.
            safe_serialization (`bool`, defaults to `True`):
                Whether to write safetensors; else a pickled file.
            transformer_lora_adapter_metadata (`dict`, *optional*):
                The adapter's configuration, `pipe.transformer.peft_config[name].to_dict()`, for the file's metadata.
        """
        if not transformer_lora_layers:
            raise LoomVideoInputError(
                "There is nothing to save: pass the LoRA's tensors as `transformer_lora_layers`."
            )
        if not is_main_process:
            return
        metadata = {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in (transformer_lora_adapter_metadata or {}).items()
        }
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={cls.transformer_name: transformer_lora_layers},
            lora_metadata={cls.transformer_name: metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )
        if save_function is None and safe_serialization:
            _sort_metadata(Path(save_directory, weight_name or "pytorch_lora_weights.safetensors"))

    def fuse_lora(
        self,
        components: list[str] = ["transformer"],
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs,
    ) -> None:
        """Adds adapters, by default the active ones, to the transformer's weights; `unfuse_lora` takes them out."""
        super().fuse_lora(
            components=components,
            lora_scale=lora_scale,
            safe_fusing=safe_fusing,
            adapter_names=adapter_names,
            **kwargs,
        )

    def unfuse_lora(self, components: list[str] = ["transformer"], **kwargs) -> None:
        """Takes fused adapters out of the transformer's weights again."""
        super().unfuse_lora(components=components, **kwargs)
