# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Named tensors and a model in; nothing out if they fit, else one error with all reasons.

A hint names the keywords that have to change; a model built with them takes the file.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CheckpointError
from .dinov3 import Settled
from .files import listing
from .formats import ADAPTER_PREFIXES, Recognized, without_wrappers
from .joined import Weight
from .size import PATCH_KERNEL, ViTSize, vit_size

# Parts of the detectors and segmentors that the original is trained in, under OpenMMLab's names.
_SEGMENTOR = frozenset({"decode_head", "auxiliary_head"})
_DETECTOR = frozenset(
    {"neck", "rpn_head", "roi_head", "bbox_head", "mask_head", "panoptic_head", "query_head"}
)
# What DINOv3's segmentor has beside its adapter.
_DINOV3_SEGMENTOR = "segmentation_model."
_FIRST = "interactions.0."
_VALUES = _FIRST + "extractor.attn.value_proj.weight"
_POINTS = _FIRST + "extractor.attn.attention_weights.weight"
_CFFN = _FIRST + "extractor.ffn.fc1.weight"
_EXTRA = ".extra_extractors."
_UNKNOWN_FFN = re.compile(r"blocks\.0\.mlp\.(?!(fc1|fc2|w12|w3)\.(weight|bias)$).+")
# That an extractor samples for each head, in all published configs.
_NUM_POINTS = 4


def check_fit(settled: Settled, model: nn.Module, recognized: Recognized, path: Path) -> None:
    """Raise CheckpointError unless every tensor has its place in the model and means the same.

    Args:
        settled: Tensors under ViTAdapter's names, and what else is wrong with them.
        model: A ViTAdapter.
        recognized: What the tensors are of.
        path: Their file, for messages.
    """
    state = without_wrappers(model.state_dict())
    tensors = settled.tensors

    def is_optional(name: str) -> bool:
        is_of_adapter = name.startswith(ADAPTER_PREFIXES)
        if recognized.format in ("upstream", "dinov3_adapter", "adapter"):
            # torch counts batches since 0.4.1; nothing here reads the count.
            is_without_vit = recognized.format == "adapter" and not is_of_adapter
            return is_without_vit or name.endswith(".num_batches_tracked")
        return is_of_adapter

    def as_text(tensor: Weight) -> str:
        kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
        return f"{tuple(tensor.shape)}{kind}"

    missing = [name for name in state if name not in tensors and not is_optional(name)]
    unexpected = [name for name in tensors if name not in state]
    misshaped = [
        f"{name} is {as_text(tensor)} for {as_text(state[name])}"
        for name, tensor in tensors.items()
        if name in state
        and (
            tensor.shape != state[name].shape
            or tensor.is_floating_point() != state[name].is_floating_point()
        )
    ]
    causes = _other_variant(recognized, model) + _other_heads(settled, model)
    if not (missing or unexpected or misshaped or causes or settled.problems):
        return
    if missing or unexpected or misshaped:
        causes = _likely_causes(tensors, state, recognized, model) + causes
    lines = [f"{path}: this {recognized.format} checkpoint does not fit; nothing was loaded"]
    lines += [f"  likely cause: {cause}" for cause in causes]
    lines += [f"  {problem}" for problem in settled.problems]
    groups = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped}
    lines += [
        f"  {kind} ({len(names)}): {listing(names)}" for kind, names in groups.items() if names
    ]
    raise CheckpointError("\n".join(lines))


def _build_with(**keywords: Any) -> str:
    return "build the model with " + ", ".join(
        f"{name}={json.dumps(value) if isinstance(value, str) else value}"
        for name, value in keywords.items()
    )


def _other_variant(recognized: Recognized, model: nn.Module) -> list[str]:
    """Tell if the adapter was trained to add the ViT's maps otherwise; no weight shows it."""
    wanted = getattr(model, "vit_features", None)
    if not getattr(model, "add_vit_feature", False):
        return []
    heads = (name.startswith(_DINOV3_SEGMENTOR) for name in recognized.ignored)
    if recognized.format == "dinov3_adapter" or (recognized.format == "adapter" and any(heads)):
        if wanted == "stages":
            return []
        return [
            "the file is of DINOv3's own adapter, which adds the map of each stage to a level of "
            f"the pyramid; {_build_with(vit_features='stages')}"
        ]
    if recognized.format != "upstream":
        return []
    parts = {part for name in recognized.ignored for part in name.split(".")}
    segmentor, detector = sorted(parts & _SEGMENTOR), sorted(parts & _DETECTOR)
    if segmentor and not detector and wanted == "last":
        found, kind, added, features = segmentor, "segmentation", "the map of each stage", "stages"
    elif detector and not segmentor and wanted == "stages":
        found, kind, added, features = detector, "detection", "the ViT's last map", "last"
    else:
        return []
    return [
        f"the file was trained for {kind} ({found[0]}.* is in it), where the original adds {added} "
        f"to a level of the pyramid; {_build_with(vit_features=features)}; if it was trained with "
        f'"{wanted}", save the state dict of its backbone alone and load that'
    ]


def _other_heads(settled: Settled, model: nn.Module) -> list[str]:
    """Tell if the ViT has other heads than the model's; of the weights none shows it."""
    channels = getattr(getattr(model, "rope", None), "head_channels", None)
    kernel = settled.tensors.get(PATCH_KERNEL)
    dim = getattr(model, "embed_dim", None)
    if settled.head_channels is None or channels is None or kernel is None:
        return []
    if settled.head_channels == channels or kernel.dim() == 0 or kernel.shape[0] != dim:
        return []
    heads, rest = divmod(kernel.shape[0], settled.head_channels)
    return [
        f"the file's heads have {settled.head_channels} channels, as its rotary periods tell, the "
        f"model's {channels}" + ("" if rest else f"; {_build_with(num_heads=heads)}")
    ]


def _likely_causes(
    tensors: Mapping[str, Weight],
    state: Mapping[str, Weight],
    recognized: Recognized,
    model: nn.Module,
) -> list[str]:
    in_file, in_model = vit_size(tensors), vit_size(state)
    if in_model is None:
        return [f"the model has no {PATCH_KERNEL}; pass the ViTAdapter itself, not what holds it"]
    if recognized.format == "adapter":
        return _causes_in_adapter(tensors, state, in_model.embed_dim)
    # What lacks its position table is no DINOv3 ViT by that.
    if in_file is None or in_file.is_rotary != recognized.is_dinov3:
        return []
    if in_file.is_rotary != in_model.is_rotary:
        builder = in_file.builder or f"trunk={json.dumps(in_file.trunk)}"
        return [
            f"the file is a {in_file.family} {in_file}; the model is a {in_model.family} "
            f"{in_model}; build the model with {builder}"
        ]
    if (in_file.embed_dim, in_file.depth) != (in_model.embed_dim, in_model.depth):
        builder = f"; build the model with {in_file.builder}" if in_file.builder else ""
        return [f"the file is a {in_file.family} {in_file}; the model is a {in_model}{builder}"]
    return [
        *_causes_in_vit(tensors, state, in_file, in_model),
        *_causes_in_tokens(tensors, state, model),
        *_causes_in_feed_forward(tensors, state, in_file, in_model),
        *_causes_in_adapter(tensors, state, in_file.embed_dim),
    ]


def _causes_in_vit(
    tensors: Mapping[str, Weight], state: Mapping[str, Weight], file: ViTSize, model: ViTSize
) -> list[str]:
    causes = []
    side = math.isqrt(max(file.num_positions - 1, 0))
    if file.num_positions != model.num_positions and side > 0:
        size = side * model.patch_hw[0]
        if side**2 == file.num_positions - 1:
            advice = _build_with(pretrain_size=size, img_size=size)
            causes.append(f"the file has {side} x {side} positions; {advice}")
        else:
            causes.append(
                f"the file's {file.num_positions} positions are not a square and one for the cls "
                "token"
            )
    if file.patch_hw != model.patch_hw:
        causes.append(
            f"the file's patch size is {file.patch_hw[0]}, the model's {model.patch_hw[0]}; only "
            "files without an adapter are resized"
        )
    channels = tensors[PATCH_KERNEL].shape[1]
    if channels != state[PATCH_KERNEL].shape[1]:
        causes.append(
            f"the file has {channels} input channels, the model {state[PATCH_KERNEL].shape[1]}; "
            + _build_with(in_chans=channels)
        )
    for name, keyword in ((".gamma1", "layer_scale"), (".attn.qkv.bias", "qkv_bias")):
        has_it, is_wanted = (
            any(each.endswith(name) for each in names) for names in (tensors, state)
        )
        if has_it != is_wanted:
            causes.append(
                f"the file has {'' if has_it else 'no '}blocks.*{name}; "
                + _build_with(**{keyword: has_it})
            )
    return causes


def _causes_in_tokens(
    tensors: Mapping[str, Weight], state: Mapping[str, Weight], model: nn.Module
) -> list[str]:
    def registers(names: Mapping[str, Weight]) -> int:
        tokens = names.get("register_tokens")
        return tokens.shape[1] if tokens is not None and tokens.dim() == 3 else 0

    causes = []
    if registers(tensors) != registers(state):
        keywords: dict[str, Any] = {"num_register_tokens": registers(tensors)}
        blocks = [getattr(block, "attn", None) for block in getattr(model, "blocks", [])]
        if any(getattr(attention, "window_size", None) for attention in blocks):
            keywords["window_attn"] = False
        causes.append(
            f"the file has {registers(tensors)} register tokens, the model {registers(state)}; "
            + _build_with(**keywords)
        )
    if ("norm.weight" in tensors) != ("norm.weight" in state):
        has_it = "norm.weight" in tensors
        causes.append(
            f"the file has {'the' if has_it else 'no'} final norm; {_build_with(final_norm=has_it)}"
        )
    if any(name.startswith("cls_norm.") for name in tensors):
        causes.append(
            "the file has a norm of its own for the cls token (cls_norm), which ViTAdapter has not"
        )
    return causes


def _causes_in_feed_forward(
    tensors: Mapping[str, Weight], state: Mapping[str, Weight], file: ViTSize, model: ViTSize
) -> list[str]:
    in_file, in_model = _hidden(tensors, file), _hidden(state, model)
    unknown = sorted(name for name in tensors if _UNKNOWN_FFN.fullmatch(name))
    if unknown:
        return [f"the file's feed-forward is none that ViTAdapter has: {listing(unknown)}"]
    if in_file is None or in_model is None or (file.ffn, in_file) == (model.ffn, in_model):
        return []
    ratio = _ratio(in_model, file.embed_dim, is_swiglu=model.ffn == "swiglu")
    keywords: dict[str, Any] = {} if file.ffn == model.ffn else {"ffn": file.ffn}
    is_swiglu = file.ffn == "swiglu"
    if ratio is None or _hidden_channels(ratio, file.embed_dim, is_swiglu=is_swiglu) != in_file:
        ratio = _ratio(in_file, file.embed_dim, is_swiglu=is_swiglu)
        if ratio is None:
            return [f"the file's SwiGLU has {in_file} hidden channels, which 8 does not divide"]
        keywords["mlp_ratio"] = ratio
    return [
        f"the file's feed-forward is {file.ffn!r} with {in_file} hidden channels, the model's "
        f"{model.ffn!r} with {in_model}; {_build_with(**keywords)}"
    ]


def _hidden_channels(ratio: float, dim: int, *, is_swiglu: bool = False) -> int:
    return (int(dim * ratio * 2 / 3) + 7) // 8 * 8 if is_swiglu else int(dim * ratio)


def _ratio(hidden: int, dim: int, *, is_swiglu: bool = False) -> float | None:
    """The shortest number that gives a model so many hidden channels."""
    exact = hidden / dim * (1.5 if is_swiglu else 1.0)
    for digits in range(1, 17):
        for ratio in (round(exact, digits), round(exact + 10.0**-digits, digits)):
            if _hidden_channels(ratio, dim, is_swiglu=is_swiglu) == hidden:
                return ratio
    return None


def _hidden(tensors: Mapping[str, Weight], size: ViTSize) -> int | None:
    """Hidden channels of the first block's feed-forward, None if a part of it is missing."""
    last = tensors.get(f"blocks.0.mlp.{'w3' if size.ffn == 'swiglu' else 'fc2'}.weight")
    first = tensors.get(f"blocks.0.mlp.{'w12' if size.ffn == 'swiglu' else 'fc1'}.weight")
    if first is None or last is None or last.dim() != 2:
        return None
    return last.shape[1]


def _causes_in_adapter(
    tensors: Mapping[str, Weight], state: Mapping[str, Weight], embed_dim: int
) -> list[str]:
    if not any(name.startswith(ADAPTER_PREFIXES) for name in tensors):
        return []

    def rows(name: str) -> tuple[int, int] | None:
        """Rows of a matrix in the file, and in the model, where they differ."""
        if name not in tensors or name not in state or tensors[name].dim() == 0:
            return None
        both = tensors[name].shape[0], state[name].shape[0]
        return both if both[0] != both[1] else None

    def num_stages(names: Iterable[str]) -> int:
        return len({name.split(".")[1] for name in names if name.startswith("interactions.")})

    def has(names: Iterable[str], part: str) -> bool:
        return any(part in name for name in names)

    causes = []
    if num_stages(tensors) != num_stages(state):
        causes.append(
            f"the file has {num_stages(tensors)} stages, the model {num_stages(state)}; build the "
            "model with the interaction_indexes that the file was trained with"
        )
    if found := rows(_VALUES):
        causes.append(
            f"the file's deformable attention has {found[0]} value channels, the model's "
            f"{found[1]}; {_build_with(deform_ratio=_ratio(found[0], embed_dim))}"
        )
    if (found := rows(_POINTS)) and found[0] % _NUM_POINTS == 0:
        heads = found[0] // _NUM_POINTS
        causes.append(
            f"the file's deformable attention samples {found[0]} points for a query, the model's "
            f"{found[1]}; {_build_with(deform_num_heads=heads, n_points=_NUM_POINTS)} "
            f"(all published configs have {_NUM_POINTS}, and no weight shows it)"
        )
    if found := rows("spm.stem.0.weight"):
        causes.append(
            f"the file's spatial prior has {found[0]} channels, the model's {found[1]}; "
            + _build_with(conv_inplane=found[0])
        )
    if found := rows(_CFFN):
        causes.append(
            f"the file's extractors have {found[0]} hidden channels, the model's {found[1]}; "
            + _build_with(cffn_ratio=_ratio(found[0], embed_dim))
        )
    for part, keyword, what in (
        (".extractor.ffn.", "with_cffn", "a feed-forward in its extractors"),
        (_EXTRA, "use_extra_extractor", "extra extractors"),
        (".injector.", "injectors", "injectors"),
    ):
        if has(tensors, part) != has(state, part):
            has_it = has(tensors, part)
            causes.append(
                f"the file has {'' if has_it else 'not '}{what}; {_build_with(**{keyword: has_it})}"
            )
    if has(tensors, ".running_mean") != has(state, ".running_mean"):
        norm = "BN" if has(tensors, ".running_mean") else "GN"
        causes.append(f"the file's norms are {norm}; {_build_with(norm=norm)}")
    return causes
