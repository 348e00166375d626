# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a backbone computes what the original's composition does: maps, gradients of parameters.

In float32 against the composition, both with exact products. In 16 bits two right computations
differ by about as much as each is wrong, 0.01 to 0.04 of a map: there both are held against
float32, and a contender may be half as far off again as the composition.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitadapter_fast.export._precision import exact_products

_NAMES = (
    "pos_embed",
    "patch_embed.proj.weight",
    "level_embed",
    "blocks.0.attn.qkv.weight",
    "blocks.0.norm1.bias",
    "spm.stem.0.weight",
    "spm.fc1.weight",
    "interactions.0.injector.gamma",
    "interactions.0.injector.attn.sampling_offsets.weight",
    "interactions.0.extractor.attn.attention_weights.bias",
    "interactions.0.extractor.ffn.dwconv.dwconv.weight",
    "up.weight",
    "norm1.weight",
)
_EXACT = 1e-4  # of a map, in float32: 1e-6 to 2e-6 are usual
# Gradients as a whole and loosely: of few pixels, one on the other side of a ReLU's kink makes
# 0.5 %. The operators' own checks are the strict ones.
_EXACT_GRADIENT = 3e-2
_ROUNDED = 0.06  # of a map, with products of 8 bits: 0.01 to 0.04 are usual
_SLACK, _FLOOR, _GRADIENT_FLOOR = 1.5, 2e-3, 2e-2

MapsOf = Callable[..., list[Tensor]]


def check_maps(
    model: nn.Module,
    plain: nn.Module,
    maps_of: MapsOf,
    image: Tensor,
    *,
    is_low: bool,
    has_training: bool = True,
) -> None:
    """Compare maps in eval and in training, and the gradients of some parameters.

    Args:
        model: The contender; it shares the parameters of ``plain`` or has the same.
        plain: The original's composition.
        maps_of: Called with a module, images and, for float32, ``is_low=False``.
        image: [B, 3, H, W].
        is_low: Whether the contender runs in 16 bits.
        has_training: Whether there is more to it than maps in eval.

    Raises:
        AssertionError: One is further off than it may be, or not a number.
    """

    def exactly(module: nn.Module, pixels: Tensor) -> list[Tensor]:
        return maps_of(module, pixels, is_low=False)

    # A trunk of DINOv3 has no table, and may be frozen; an adapter of its own has no injectors.
    trained = [key for key, part in plain.named_parameters() if part.requires_grad]
    names = [name for name in _NAMES if any(key.endswith(name) for key in trained)]
    assert len(names) > 5
    runs = [(plain, exactly), (model, maps_of)] + [(plain, maps_of)] * is_low
    with exact_products():
        found = [_in_eval(*run, image) for run in runs]
        # After: it moves the running statistics.
        for results, run in zip(found, runs, strict=True):
            results += _in_training(*run, image, names) if has_training else []
    modes, names = ("eval", "training")[: 1 + has_training], names * has_training
    maps = [f"map {i} in {mode}" for mode in modes for i in range(4)]
    for name, truth, got, *near in zip([*maps, *names], *found, strict=True):
        allowed = _EXACT if name in maps else _EXACT_GRADIENT
        if near:
            floor = _FLOOR if name in maps else _GRADIENT_FLOOR
            allowed = _SLACK * _distance(near[0], truth) + floor
        error = _distance(got, truth)
        # Not >: a NaN must fail.
        assert error < allowed, f"{name}: error {error:.3g} exceeds {allowed:.3g}"


def check_rounded(model: nn.Module, plain: nn.Module, maps_of: MapsOf, image: Tensor) -> None:
    """Compare maps in eval of a model with weights of 8 bits with those of float32.

    Raises:
        AssertionError: One is further off than such weights explain, or not a number.
    """
    pairs = zip(_in_eval(model, maps_of, image), _in_eval(plain, maps_of, image), strict=True)
    for index, (got, truth) in enumerate(pairs):
        error = _distance(got, truth)
        assert error < _ROUNDED, f"map {index}: error {error:.3g} exceeds {_ROUNDED}"


def _distance(one: Tensor, truth: Tensor) -> float:
    return (torch.dist(one.float(), truth.float()) / truth.float().norm()).item()


def _in_eval(module: nn.Module, maps_of: MapsOf, image: Tensor) -> list[Tensor]:
    module.eval()
    with torch.no_grad():
        return [*maps_of(module, image)]


def _in_training(
    module: nn.Module, maps_of: MapsOf, image: Tensor, names: Sequence[str]
) -> list[Tensor]:
    """Return maps and the gradients of parameters, which may be under a wrapper's prefix."""
    named: list[tuple[str, Any]] = list(module.named_parameters())
    named = [(key, part) for key, part in named if part.requires_grad]
    parameters = [next(p for key, p in named if key.endswith(name)) for name in names]
    module.train()
    torch.manual_seed(3)  # with which stochastic depth leaves in all that is compared
    maps = maps_of(module, image)
    gradients = torch.autograd.grad(maps, parameters, [_wave(part) for part in maps])
    return [*(part.detach() for part in maps), *gradients]


def _wave(like: Tensor) -> Tensor:
    """Return a cotangent that no norm cancels, the same for every contender."""
    steps = torch.arange(like.numel(), device=like.device, dtype=torch.float32)
    return torch.sin(0.37 * steps**1.1).view(like.shape).to(like.dtype)
