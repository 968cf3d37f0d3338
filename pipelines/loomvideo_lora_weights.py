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
"""Weights of LoRAs: from any trainer's names and forms of the parts to those that PEFT loads."""

import math
import re
from collections import Counter
from typing import Any

import torch
from diffusers.utils import logging

from .loomvideo_errors import LoomVideoInputError


logger = logging.get_logger(__name__)

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


def parse_lora_name(name: str) -> tuple[str | None, str, str] | None:
    """
    What a tensor of a LoRA is, by its name in any of the spellings in use.

    Returns:
        The layer's name here, or None if Wan has this layer and LoomVideo has not; the part of the adapter, such as
        `lora_A`; and the layer's name in its own model. None if the name tells no layer or no part.
    """
    matches = ((part, pattern.fullmatch(name)) for part, pattern in PARTS.items())
    part, match = next(((part, match) for part, match in matches if match), ("", None))
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
    layers, names_there, of_wan, unknown = _sort_tensors(state_dict, modules, title)
    if not layers:
        raise LoomVideoInputError(f"{title} {_why_nothing_fits(state_dict, unknown, of_wan)}")
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
        except LoomVideoInputError as error:
            raise LoomVideoInputError(f"{title} {error} in the layer {layer}.") from error
    if not any(_has_effect(adapter) for adapter in adapters.values()):
        if not allow_zero:
            raise LoomVideoInputError(f"{title} has no effect: all its weights are zero.")
        logger.warning(f"{title} has no effect: all its weights are zero.")
    tensors, config = _pack(adapters, bool(settings.get("use_dora")), title)
    left_out = [f"{_some(of_wan)} (layers of Wan that LoomVideo does not have)"] if of_wan else []
    left_out += [f"{_some(unknown)} (no layers of LoomVideo, or no parts that can be applied)"] if unknown else []
    sentence = f"Left out of {title[:1].lower()}{title[1:]}: {'; '.join(left_out)}."
    return tensors, config, sentence if left_out else None


def _sort_tensors(
    state_dict: dict[str, torch.Tensor], modules: dict[str, torch.nn.Module], title: str
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, str], list[str], list[str]]:
    """
    Sorts tensors by what they are of.

    Returns:
        The parts of each layer's adapter; what each layer is called in the file; the layers that only Wan has; and the
        tensors that are none of these.
    """
    layers, sources, names_there, of_wan, unknown = {}, {}, {}, {}, []
    for name, tensor in state_dict.items():
        parsed = parse_lora_name(name)
        if name.endswith((".diff", ".diff_b")) and not tensor.float().any():
            continue  # changes nothing, whatever layer it is of: some tools write these of all norms
        layer, part, name_there = parsed or ("", "", "")
        if layer is None:
            of_wan[name_there] = None
        elif layer not in modules or parsed is None:
            unknown.append(name)
        else:
            names_there[layer] = name_there
            if part in layers.setdefault(layer, {}):
                raise LoomVideoInputError(
                    f"{title} has two tensors for one part of a layer, {sources[layer, part]} and {name}: keep one."
                )
            layers[layer][part], sources[layer, part] = tensor, name
    return layers, names_there, [*of_wan], unknown


def _why_nothing_fits(state_dict: dict[str, torch.Tensor], unknown: list[str], of_wan: list[str]) -> str:
    """Says of a file without a tensor that fits what it is."""
    if not unknown and not of_wan:
        return f"has no effect: {'all its weights are zero' if state_dict else 'it is empty'}."
    if not any(pattern.fullmatch(name) for name in state_dict for pattern in PARTS.values()):
        return "is no LoRA: it holds no tensor named as parts of one are, such as `lora_A.weight`."
    first = next(iter([*unknown, *of_wan]))
    return f"has no effect: none of its layers is in LoomVideo's transformer, such as {first}."


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
    _check_numbers(parts)
    parts = {part: tensor if tensor.dtype in DTYPES else tensor.float() for part, tensor in parts.items()}
    alpha, magnitude, bias, bias_difference = (
        parts.pop(part, None) for part in ("alpha", "magnitude", "bias", "diff_b")
    )
    kind = _find_kind(parts, bias, bias_difference)
    sizes, kernel = _matrix_sizes(module)
    if kind == "lokr":
        if kernel or magnitude is not None or bias is not None or bias_difference is not None:
            raise LoomVideoInputError(
                "is a LoKr of a convolution, or with magnitudes or biases, which cannot be loaded,"
            )
        (first, rank_1), (second, rank_2) = (_kronecker_factor(parts, number) for number in (1, 2))
        _check_sizes((first.shape[0] * second.shape[0], first.shape[1] * second.shape[1]), sizes)
        scale = _scale(kind, rank_2 or rank_1, alpha, settings, names)
        return {"lokr_w1": first, "lokr_w2": second, "scale": scale}

    up, down, rank = _halves(kind, parts, sizes)
    _check_sizes((up.shape[0], down.shape[1]), sizes)
    scale = _scale(kind, rank, alpha, settings, names)
    if bias_difference is not None:
        # A bias of PEFT is multiplied by the scale; this one must not be.
        up, scale, bias = up.float() * scale, 1.0, bias_difference
    if bias is not None and magnitude is not None:
        raise LoomVideoInputError("has a magnitude and a bias, which cannot be loaded together,")
    for part in (bias, magnitude):
        if part is not None:
            _check_sizes((part.numel(),), sizes[:1])
    if magnitude is not None:
        magnitude = _turn_magnitude(magnitude, sizes[0], bool(kernel))
    if kernel:
        up = up[..., None, None, None]
        down = down.unflatten(1, (module.in_channels, *kernel))
    bias = None if bias is None else bias.flatten()
    return {"lora_A": down, "lora_B": up, "bias": bias, "magnitude": magnitude, "scale": scale}


def _check_numbers(parts: dict[str, torch.Tensor]) -> None:
    for part, tensor in parts.items():
        if tensor.is_complex() or (part != "alpha" and not tensor.is_floating_point()):
            raise LoomVideoInputError(f"has numbers of the type {str(tensor.dtype).removeprefix('torch.')}")
        if not (tensor.float().abs() <= LARGEST_NUMBER).all():
            raise LoomVideoInputError("has numbers that are no numbers, infinite, or too large to be right")
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise LoomVideoInputError("has more than one alpha")


def _find_kind(parts: dict[str, torch.Tensor], bias: torch.Tensor | None, bias_difference: torch.Tensor | None) -> str:
    """`lora`, `hada` (LoHa), `lokr`, `diff` (the whole difference), or `bias` if that alone is changed."""
    kinds = {part.split("_")[0] for part in parts}
    if len(kinds) > 1 or (bias is not None and bias_difference is not None):
        raise LoomVideoInputError("has parts of different kinds")
    if not kinds and bias_difference is None:
        raise LoomVideoInputError("is incomplete: it has no lora_A and no lora_B")
    kind = kinds.pop() if kinds else "bias"
    missing = [part for part in PARTS_OF_KINDS.get(kind, []) if part not in parts]
    if missing:
        raise LoomVideoInputError(f"is incomplete: it has no {' and no '.join(missing)}")
    return kind


def _matrix_sizes(module: Any) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Rows and columns of a layer's weights as a matrix, and the kernel if it is a convolution, or else ()."""
    if isinstance(module, torch.nn.Conv3d):
        kernel = module.kernel_size
        return (module.out_channels, module.in_channels * math.prod(kernel)), kernel
    if not hasattr(module, "in_features"):
        raise LoomVideoInputError("changes what is no linear layer and no convolution")
    return (module.out_features, module.in_features), ()


def _check_sizes(actual: tuple[int, ...], expected: tuple[int, ...]) -> None:
    for width, expected_width in zip(actual, expected, strict=True):
        if width != expected_width:
            raise LoomVideoInputError(
                f"was trained for another model: it has {width} channels instead of {expected_width}"
            )


def _turn_magnitude(magnitude: torch.Tensor, num_rows: int, is_convolution: bool) -> torch.Tensor:
    """Gives a DoRA's magnitude the shape that PEFT has it in."""
    # Of rows, as PEFT has them; some trainers can have them of columns, which are `[1, in_features]`.
    expected = (num_rows, *(1 for _ in range(magnitude.ndim - 1)))
    if magnitude.shape != expected and not (is_convolution and magnitude.shape[:2] == (1, num_rows)):
        raise LoomVideoInputError("has a magnitude of another direction than PEFT has, which cannot be loaded,")
    return magnitude.reshape((1, num_rows, 1, 1, 1) if is_convolution else (num_rows,))


def _scale(
    kind: str, rank: int | None, alpha: torch.Tensor | None, settings: dict[str, Any], names: tuple[str, str]
) -> float:
    """Alpha over rank, of the layer's tensors or by PEFT's configuration; LyCORIS has no rank of whole factors."""
    if kind not in ("lora", "hada", "lokr"):
        return 1.0
    if kind == "lora" and _setting(settings, "rank_pattern", "r", names) not in (None, rank):
        raise LoomVideoInputError(f"has rank {rank}, and its configuration says another,")
    if alpha is not None:
        return alpha.item() / rank if rank else 1.0
    lora_alpha = _setting(settings, "alpha_pattern", "lora_alpha" if kind == "lora" else "alpha", names)
    rank = _setting(settings, "rank_pattern", "r", names) or rank
    if lora_alpha is None or rank is None:
        return 1.0
    return lora_alpha / (rank**0.5 if settings.get("use_rslora") else rank)


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
    if any(factor is not None and factor.ndim != 2 for factor in (whole, up, down)):
        raise LoomVideoInputError("has parts that are no matrices")
    if whole is not None:
        return whole, None
    if up is None or down is None:
        raise LoomVideoInputError(f"is incomplete: it has no lokr_w{number}, or only a half of it,")
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
    scales = Counter(adapter["scale"] for adapter in adapters.values() if adapter["scale"]).most_common(1)
    scale = scales[0][0] if scales else 1.0
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
        multiply_adapter(tensors, f"transformer.{layer}", adapter["scale"] / scale)
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


def multiply_adapter(tensors: dict[str, torch.Tensor], layer: str, factor: float) -> None:
    """Multiplies what an adapter adds to a layer."""
    for name in (f"{layer}.lora_B.weight", f"{layer}.lora_B.bias"):
        if factor != 1 and name in tensors:
            tensors[name] = tensors[name].float() * factor


def _pack_lokr(adapters: dict[str, dict[str, Any]], title: str) -> tuple[dict[str, torch.Tensor], None]:
    try:
        from diffusers.utils.peft_utils import _create_lokr_config
    except ImportError as error:
        raise LoomVideoInputError(f"{title} is a LoKr, which needs diffusers 0.42 ({error}).") from error

    tensors = {}
    for layer, adapter in adapters.items():
        first = adapter["lokr_w1"] if adapter["scale"] == 1 else adapter["lokr_w1"].float() * adapter["scale"]
        tensors |= {f"transformer.{layer}.lokr_w1": first, f"transformer.{layer}.lokr_w2": adapter["lokr_w2"]}
    try:
        _create_lokr_config(tensors, None)  # PEFT's configuration has one number for the sizes of all factors
    except ValueError as error:
        raise LoomVideoInputError(f"{title} is a LoKr whose factors have sizes that PEFT does not know.") from error
    return tensors, None
