# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Named tensors in; out the same, those that a file has apart and a model in one as one.

Nothing is copied by that: of a file with gigabytes, no second one ever lies in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor


class Joined:
    """Tensors that a model has one below the other in one, as far as loading looks at it.

    Attributes:
        parts: From the top.
        shape: Of the whole.
        dtype: That of ``torch.cat``; one that is not floating, if any part has one.
        is_meta: A part has no values.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """Keep the parts, for which ``can_join`` must hold."""
        self.parts = tuple(parts)
        rows = sum(part.shape[0] for part in parts)
        self.shape = torch.Size((rows, *parts[0].shape[1:]))
        self.dtype = parts[0].dtype
        for part in parts[1:]:
            self.dtype = torch.promote_types(self.dtype, part.dtype)
        for part in parts:
            if not part.is_floating_point():
                self.dtype = part.dtype
        self.is_meta = any(part.is_meta for part in parts)

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def is_floating_point(self) -> bool:
        """Return whether all parts are."""
        return self.dtype.is_floating_point

    def whole(self) -> Tensor:
        """Return one tensor with copies of the parts."""
        return torch.cat(self.parts)


Weight = Tensor | Joined


def whole(weight: Weight) -> Tensor:
    """Return a weight as one tensor; one that is stays what it is."""
    return weight.whole() if isinstance(weight, Joined) else weight


def copy_into(target: Tensor, weight: Weight) -> None:
    """Copy a weight into a tensor of its shape, part by part, from any dtype and device."""
    if not isinstance(weight, Joined):
        target.copy_(weight)
        return
    ends = [0]
    for part in weight.parts:
        ends.append(ends[-1] + part.shape[0])
    for (start, end), part in zip(pairwise(ends), weight.parts, strict=True):
        target[start:end].copy_(part)


def can_join(parts: Sequence[Tensor]) -> bool:
    """Return whether tensors differ in their rows alone."""
    return parts[0].dim() > 0 and len({(part.dim(), *part.shape[1:]) for part in parts}) == 1


def joined(
    tensors: Mapping[str, Tensor],
    target_of: Callable[[str], tuple[str, int, int]],
    *,
    fills_keys: bool = False,
) -> dict[str, Weight]:
    """Rename tensors, and join those of one target together.

    Args:
        tensors: As a file names them.
        target_of: Of a name, the one that it shall have, which part of that it is, and of how many.
        fills_keys: Whether a bias of queries, keys and values may lack that of keys, for which
            zeros stand then.

    Returns:
        Each target that has all its parts; the rest keeps its names, to be reported.
    """
    pieces: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    named: dict[str, Weight] = {}
    for name, tensor in tensors.items():
        target, index, count = target_of(name)
        counts.setdefault(target, count)
        # A second tensor for a part taken stays under its own name, and is reported as unknown.
        if counts[target] != count or index in pieces.setdefault(target, {}):
            named[name] = tensor
        else:
            pieces[target][index] = name
    for target, names in pieces.items():
        parts = [tensors[names[index]] for index in sorted(names)]
        if fills_keys and target.endswith(".attn.qkv.bias") and names.keys() == {0, 2}:
            parts.insert(1, torch.zeros_like(parts[0]))
        if len(parts) < counts[target] or (len(parts) > 1 and not can_join(parts)):
            named.update({name: tensors[name] for name in names.values()})
        else:
            named[target] = parts[0] if len(parts) == 1 else Joined(parts)
    return named
