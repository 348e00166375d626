# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What a file holds in, one set of weights out, with the name of what was taken and of what not.

Trainers save several: averaged weights (EMA) beside the trained ones, a teacher beside a student,
an optimizer beside all. They nest them under keys, or in one dict under prefixes.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import listing
from .formats import find_vits

# Where one set of weights lies, if there is nothing else to tell.
_USUAL = ("state_dict", "model", "model_state_dict", "teacher", "module", "network")
# What lies beside it, in files of timm, torchvision, mmengine, Lightning, d2go, DINO and others.
_BESIDE = re.compile(r"(.+[._])?(ema|averaged?|student|momentum|current)([._].+)?")
# Pickles can hold dicts that hold themselves.
_MAX_DEPTH = 8

_log = logging.getLogger("vitadapter_fast")


@dataclass(frozen=True)
class Weights:
    """One set of weights out of a file.

    Attributes:
        path: The file.
        tensors: By name, in the file's order.
        taken: Where they lay: keys joined by dots, or the prefix of their names; "" if the file
            holds nothing else.
        left: Where other tensors lie, of other sets or of an optimizer.
    """

    path: Path
    tensors: dict[str, Tensor]
    taken: str
    left: tuple[str, ...]


def choose(path: Path, content: Any, prefer: str | None) -> Weights:
    """Find the weights in what a file holds.

    Args:
        path: The file, for messages.
        content: A dict of named tensors, or of such dicts, nested.
        prefer: See ``read_checkpoint``.

    Raises:
        CheckpointError: There are none, or several and ``prefer`` names none or several of them.
    """
    taken: list[str] = []
    left: list[str] = []
    rivals: list[str] = []
    is_met = False
    note = ""
    while isinstance(content, Mapping):
        sets = _sets_in(content, taken, prefer)
        if not sets:
            break
        if len(taken) == _MAX_DEPTH:
            raise CheckpointError(f"{path}: its dicts are nested more than {_MAX_DEPTH} deep")
        found = _preferred(sets, content, taken, prefer)
        is_met = is_met or bool(found)
        key = _only(path, found or sets, taken, is_preferred=bool(found))
        beside = [
            _dotted(taken, other)
            for other, value in content.items()
            if other != key and _has_tensors(value)
        ]
        left += beside
        rivals += [_dotted(taken, other) for other in sets if other != key]
        if key == _swapped_average(content):
            note = " (the averaged weights: the trainer swapped both when it saved them)"
        taken.append(key)
        content = content[key]
    tensors = _named_tensors(path, content, taken)
    prefixes = [prefix.rstrip(".") for prefix, _ in find_vits(tensors)]
    if len(prefixes) > 1 and prefer is not None:
        found = _matches(prefixes, prefer)
        if found:
            is_met = True
            prefix = _only(path, found, [], is_preferred=True)
            others = [each for each in prefixes if each != prefix]
            tensors = _without(tensors, others, prefix)
            left += others
            taken.append(prefix)
        rivals += prefixes
    weights = Weights(path, tensors, ".".join(taken), tuple(left))
    _report(weights, rivals, note, prefer, is_met=is_met)
    return weights


def _sets_in(content: Mapping[Any, Any], taken: list[str], prefer: str | None) -> list[str]:
    """Keys under which one set of weights may lie, none where this is itself one."""
    if find_vits(name for name, value in content.items() if isinstance(value, Tensor)):
        return []
    nested = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Mapping)
    }
    sets = [
        key
        for key, value in nested.items()
        if _has_tensors(value)
        and (
            key in _USUAL
            or key == prefer
            or f"{prefer}.".startswith(f"{_dotted(taken, key)}.")
            or _BESIDE.fullmatch(key)
            or find_vits(value)
        )
    ]
    return sets or [key for key in nested if key in _USUAL]


def _preferred(
    sets: list[str], content: Mapping[Any, Any], taken: list[str], prefer: str | None
) -> list[str]:
    if prefer is None:
        return []
    exact = [key for key in sets if f"{prefer}.".startswith(f"{_dotted(taken, key)}.")]
    if exact or prefer != "ema":
        return exact or _matches(sets, prefer)
    average = _swapped_average(content)
    return [average] if average else _matches(sets, prefer)


def _swapped_average(content: Mapping[Any, Any]) -> str | None:
    """The key of the averaged weights where the names tell the contrary.

    mmengine's EMAHook and Lightning's WeightAveraging exchange both sets when they save, so that
    ``state_dict`` has the average and what is called EMA, or current, has what was trained.
    """
    if "state_dict" not in content:
        return None
    ema = content.get("ema_state_dict")
    # mmengine counts its steps there; other trainers that use this key do not.
    is_of_mmengine = isinstance(ema, Mapping) and "steps" in ema
    return "state_dict" if is_of_mmengine or "current_model_state" in content else None


def _matches(keys: Iterable[str], prefer: str) -> list[str]:
    """Keys that are a name, or have it as one of the words between dots and underscores."""
    keys = list(keys)
    return [key for key in keys if key == prefer] or [
        key for key in keys if prefer.lower() in re.split(r"[._]", key.lower())
    ]


def _only(path: Path, keys: list[str], taken: list[str], *, is_preferred: bool) -> str:
    if len(keys) == 1:
        return keys[0]
    usual = [key for key in keys if key in _USUAL]
    if len(usual) == 1 and not is_preferred:
        return usual[0]
    names = [_dotted(taken, key) for key in keys]
    raise CheckpointError(
        f"{path}: holds several state dicts ({listing(names)}); choose one by its name, as with "
        f'prefer="{names[0]}"'
    )


def _dotted(taken: list[str], key: Any) -> str:
    return ".".join([*taken, str(key)])


def _has_tensors(value: Any) -> bool:
    pending, seen = [value], set()
    while pending:
        each = pending.pop()
        if isinstance(each, Tensor):
            return True
        if isinstance(each, Mapping) and id(each) not in seen:
            seen.add(id(each))
            pending.extend(each.values())
    return False


def _without(tensors: Mapping[str, Tensor], others: list[str], chosen: str) -> dict[str, Tensor]:
    """Leave out what lies under other prefixes; "" is that of a ViT at the root."""

    def is_other(name: str) -> bool:
        return not name.startswith(f"{chosen}.") and any(
            not prefix or name.startswith(f"{prefix}.") for prefix in others
        )

    return {name: tensor for name, tensor in tensors.items() if not is_other(name)}


def _named_tensors(path: Path, content: Any, taken: list[str]) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds one {type(content).__name__}, wanted a dict of named tensors"
        )
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        nested = [
            _dotted(taken, key)
            for key, value in content.items()
            if isinstance(key, str) and _has_tensors(value)
        ]
        if nested:
            raise CheckpointError(
                f"{path}: its tensors are under {listing(nested)}, which is not known to hold a "
                f'model; if one does, name it, as with prefer="{nested[0]}"'
            )
        raise CheckpointError(f"{path}: no tensors inside, wanted a dict of named tensors")
    others = [f"{key} ({type(content[key]).__name__})" for key in content if key not in tensors]
    others += [f"{key!r} (a name that is no string)" for key in tensors if not isinstance(key, str)]
    if others:
        raise CheckpointError(f"{path}: holds values that are not named tensors: {listing(others)}")
    odd = [f"{name} ({kind})" for name, tensor in tensors.items() if (kind := _odd_kind(tensor))]
    if odd:
        raise CheckpointError(
            f"{path}: holds tensors that are not plain numbers in memory: {listing(odd)}; save "
            "them as dense floating tensors"
        )
    return tensors


def _odd_kind(tensor: Tensor) -> str:
    """Why a tensor cannot be copied into a parameter, or ""."""
    if tensor.is_meta:
        return "meta, without values"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return "quantized" if tensor.is_quantized else ""


def _report(
    weights: Weights, rivals: list[str], note: str, prefer: str | None, *, is_met: bool
) -> None:
    path, taken = weights.path, weights.taken or "the root"
    left = listing(each or "the root" for each in weights.left)
    if prefer is not None and not is_met:
        if rivals:
            raise CheckpointError(
                f"{path}: holds nothing named {prefer!r}; it has "
                f"{listing(each or 'the root' for each in dict.fromkeys([weights.taken, *rivals]))}"
            )
        _log.warning("%s: holds one set of weights, not named %r; took it", path, prefer)
    if not weights.left:
        return
    if rivals and prefer is None and not note:
        _log.warning(
            "%s: took %s, left %s; load_checkpoint(..., prefer=NAME) takes another",
            path,
            taken,
            left,
        )
    else:
        _log.info("%s: took %s%s, left %s", path, taken, note, left)
