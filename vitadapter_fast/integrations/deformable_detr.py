# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Deformable-DETR's calls in, our kernels' results out: its module and its function.

``replace_mmcv_op`` makes mmcv and transformers use them, too. Sizes of levels may be lists of
(h, w) everywhere. A tensor of them on the CPU is read at every call. On a GPU reading waits for the
device: once for each tensor, however many layers it is given to, and again after torch has written
to it; at every call for inference tensors. Writes that torch does not count there (``sizes.data``,
DLPack, other libraries' kernels, a replayed graph) are not seen: use a new tensor or a list.
"""

import logging
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from functools import wraps
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .. import ops
from ..model.deform_attn import DeformAttn
from ..native import tensors
from .replacement import Replacement, Target

__all__ = ["MSDeformAttn", "MSDeformAttnFunction", "Replacement", "replace_mmcv_op"]

LevelSizes: TypeAlias = Tensor | Sequence[Sequence[int]]

_log = logging.getLogger("vitadapter_fast")

# Tensor of sizes on a device -> its version and address when it was read, and what it held.
_known_sizes: MutableMapping[Tensor, tuple[tuple[int, int], list[tuple[int, int]]]]
_known_sizes = WeakTensorKeyDictionary()


class MSDeformAttnFunction:
    """What Deformable-DETR, the original ViT-Adapter and mmcv call as an autograd function.

    Source: the signature is https://github.com/fundamentalvision/Deformable-DETR's.
    """

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: LevelSizes,
        value_level_start_index: Tensor | None,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int = 64,
    ) -> Tensor:
        """Sum bilinear samples of flattened feature maps at given points; see ``ms_deform_attn``.

        Args:
            value: Maps, [B, S, M, D].
            value_spatial_shapes: (h, w) of each level, [L, 2], or a list.
            value_level_start_index: Not used: levels follow each other in ``value``.
            sampling_locations: (x, y) in [0, 1], [B, Q, M, L, P, 2]; read in float32, or float64
                with a float64 value.
            attention_weights: [B, Q, M, L, P]; read in the dtype of ``value`` unless float32.
            im2col_step: Not used: any batch is one launch.

        Returns:
            [B, Q, M * D] in the dtype of ``value``, with gradients for the three floating inputs.

        Raises:
            ValueError: A shape, dtype or device disagrees.
        """
        return attend(value, level_hw(value_spatial_shapes), sampling_locations, attention_weights)


class MSDeformAttn(DeformAttn):
    """Deformable-DETR's module: parameters, their start, and results are the original's.

    Source: Zhu et al. 2021, arXiv:2010.04159; the signature is
    https://github.com/fundamentalvision/Deformable-DETR's, ``ratio`` ViT-Adapter's.
    """

    def __init__(
        self,
        d_model: int = 256,
        n_levels: int = 4,
        n_heads: int = 8,
        n_points: int = 4,
        ratio: float = 1.0,
    ) -> None:
        """Create the projections.

        Args:
            d_model: Channels of a query.
            n_levels: Value maps.
            n_heads: Heads.
            n_points: Points for each head and level.
            ratio: Channels of the values, as a share of ``d_model``.

        Raises:
            ValueError: The value channels do not divide among the heads.
        """
        if int(d_model * ratio) % n_heads:
            raise ValueError(
                f"MSDeformAttn: d_model * ratio must divide among the heads, got {d_model} * "
                f"{ratio} and n_heads={n_heads}; change either"
            )
        super().__init__(d_model, n_heads, n_levels, n_points, ratio)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: LevelSizes,
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Return what the queries sample around their reference points, [B, Q, C].

        Args:
            query: [B, Q, C].
            reference_points: [B, Q, L, 2], (x, y) in [0, 1], to which offsets in pixels of the
                level are added; or [B, Q, L, 4], (x, y, w, h), whose offsets are in shares of half
                the box for each point.
            input_flatten: Features of all levels, [B, S, C].
            input_spatial_shapes: (h, w) of each level, [L, 2], or a list; products sum to S.
            input_level_start_index: Not used: levels follow each other.
            input_padding_mask: [B, S], True where the features are padding and read as zero; or
                None.

        Raises:
            ValueError: A shape, dtype or device disagrees.
        """
        sizes = level_hw(input_spatial_shapes)
        if reference_points.shape[-1] not in (2, 4) or reference_points.shape[-2] != len(sizes):
            raise ValueError(
                f"MSDeformAttn: reference_points must be [B, Q, {len(sizes)}, 2 or 4] to match "
                f"input_spatial_shapes, got {tuple(reference_points.shape)}"
            )
        if len(sizes) != self.num_levels:
            raise ValueError(
                f"MSDeformAttn: input_spatial_shapes must name n_levels={self.num_levels} levels, "
                f"got {len(sizes)}"
            )
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        value = torch.unflatten(value, 2, (self.num_heads, -1))
        points = (self.num_levels, self.num_points)
        offsets = torch.unflatten(self.sampling_offsets(query), 2, (self.num_heads, *points, 2))
        logits = torch.unflatten(self.attention_weights(query), 2, (self.num_heads, -1))
        weights = torch.unflatten(logits.softmax(dim=3), 3, points)

        # Half precision would round a location by up to half a pixel.
        wide = _wide(value)
        centers = reference_points.to(wide)[:, :, None, :, None, :]  # [B, Q, 1, L, 1, 2 or 4]
        if reference_points.shape[-1] == 2:
            # Filled on the device: a copy from the host could not be captured in a CUDA graph.
            per_pixel = [
                offsets.new_full((1,), 1 / n, dtype=wide) for h, w in sizes for n in (w, h)
            ]
            scale = torch.cat(per_pixel).view(-1, 1, 2)
        else:
            scale = centers[..., 2:] * (0.5 / self.num_points)
        locations = torch.addcmul(centers[..., :2], offsets.to(wide), scale)
        out: Tensor = self.output_proj(attend(value, sizes, locations, weights))
        return out


def replace_mmcv_op() -> Replacement:
    """Make the Deformable-DETR families of mmcv and transformers run on our kernels.

    Of mmcv's ``MultiScaleDeformableAttention`` it replaces the function that samples, and so in all
    of mmdet, mmseg and mmpose; of transformers, that of every model whose source has it (Deformable
    DETR, Grounding DINO, RT-DETR 1 and 2, D-FINE, Mask2Former, OneFormer and others). Models built
    before and after use it, but for D-FINE and DEIM, which keep the function they were built with.
    Of RT-DETR 2's methods "discrete", which does not interpolate, stays the original's.

    Returns:
        A handle: ``handle.undo()`` or ``with replace_mmcv_op():`` puts the originals back. A second
        call changes nothing, and the originals return when every handle is undone.

    Raises:
        ImportError: Neither mmcv, with its compiled operators, nor transformers can be imported.
    """
    targets: list[Target] = []
    reasons = []
    for find in (_in_mmcv, _in_transformers):
        try:
            targets += find()
        except ImportError as error:
            reasons.append(str(error))
    if not targets:
        raise ImportError(
            "replace_mmcv_op: wanted mmcv with compiled operators or transformers, found neither "
            f"({'; '.join(reasons)}); install one of them first"
        )
    for reason in reasons:
        _log.debug("replace_mmcv_op: skipped: %s", reason)
    return Replacement(targets)


def attend(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Call ``ms_deform_attn`` with locations and weights in dtypes that it reads."""
    wide = _wide(value)
    if weights.dtype != wide:
        weights = weights.to(value.dtype)
    return ops.ms_deform_attn(value, sizes, locations.to(wide), weights)


def level_hw(sizes: LevelSizes) -> list[tuple[int, int]]:
    """Return (h, w) of each level.

    Args:
        sizes: [L, 2], integers, or a list of pairs.

    Raises:
        ValueError: A tensor has another shape.
    """
    if not isinstance(sizes, Tensor):
        return [(h, w) for h, w in sizes]
    if sizes.dim() != 2 or sizes.shape[1] != 2:
        raise ValueError(
            f"ms_deform_attn: sizes of levels must be [L, 2] as (h, w), got {tuple(sizes.shape)}"
        )
    # On the CPU, reading costs less than finding out whether it is needed: through numpy, or .data,
    # a tensor changes without a trace.
    if torch.compiler.is_compiling() or tensors.is_on_cpu(sizes) or sizes.is_inference():
        return _read(sizes)
    state = (sizes._version, sizes.data_ptr())
    if sizes not in _known_sizes or _known_sizes[sizes][0] != state:
        _known_sizes[sizes] = (state, _read(sizes))
    return list(_known_sizes[sizes][1])


def _read(sizes: Tensor) -> list[tuple[int, int]]:
    return [(h, w) for h, w in sizes.tolist()]


def _wide(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _in_mmcv() -> Iterator[Target]:
    module = import_module("mmcv.ops.multi_scale_deform_attn")
    yield Target(module, "MultiScaleDeformableAttnFunction", MSDeformAttnFunction)
    yield Target(module, "multi_scale_deformable_attn_pytorch", _sample_v1())


def _in_transformers() -> Iterator[Target]:
    folder = Path(import_module("transformers.models").__path__[0])
    for path in sorted(folder.glob("*/modeling_*.py")):
        # Read before it is imported: 15 of 500 have it.
        source = path.read_bytes()
        if not any(f" {name}(".encode() in source for name in _IN_TRANSFORMERS):
            continue
        try:
            module = import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        except ImportError as error:
            _log.debug("replace_mmcv_op: skipped %s: %s", path.stem, error)
            continue
        yield from _in_module(module)


def _in_module(module: ModuleType) -> Iterator[Target]:
    for name, (make, parameters) in _IN_TRANSFORMERS.items():
        found = getattr(module, name, None)
        # What a module has imported from another is replaced there.
        if found is None or found.__module__ != module.__name__:
            continue
        owner, attribute = (found, "forward") if isinstance(found, type) else (module, name)
        original = getattr(owner, attribute)
        target = Target(owner, attribute, wraps(original)(make(original)))
        if (got := " ".join(signature(original).parameters)) == parameters:
            yield target
        else:
            _log.warning(
                "replace_mmcv_op: left %s as it is: wanted parameters (%s), got (%s)",
                target,
                parameters,
                got,
            )


def _sample_v1(original: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
    """The function of mmcv, Mask2Former and OneFormer."""

    def sample(
        value: Tensor,
        value_spatial_shapes: LevelSizes,
        sampling_locations: Tensor,
        attention_weights: Tensor,
    ) -> Tensor:
        return attend(value, level_hw(value_spatial_shapes), sampling_locations, attention_weights)

    return sample


def forward_of_module(original: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
    """The module of Deformable DETR and of most after it."""

    def forward(
        self: nn.Module,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Sequence[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        sizes = level_hw(value_spatial_shapes_list)
        return attend(value, sizes, sampling_locations, attention_weights)

    return forward


def _sample_v2(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function of RT-DETR 2 and D-FINE, whose levels may differ in their number of points."""

    def sample(
        value: Tensor,
        value_spatial_shapes: LevelSizes,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        num_points_list: list[int],
        method: str = "default",
    ) -> Tensor:
        if method != "default":
            return original(
                value,
                value_spatial_shapes,
                sampling_locations,
                attention_weights,
                num_points_list,
                method,
            )
        sizes = level_hw(value_spatial_shapes)
        if len(set(num_points_list)) == 1:
            levels = (len(sizes), num_points_list[0])
            locations = torch.unflatten(sampling_locations, 3, levels)
            return attend(value, sizes, locations, torch.unflatten(attention_weights, 3, levels))
        parts = zip(
            torch.split(value, [h * w for h, w in sizes], dim=1),
            sizes,
            torch.split(sampling_locations, num_points_list, dim=3),
            torch.split(attention_weights, num_points_list, dim=3),
            strict=True,
        )
        outs = [
            attend(level, [hw], locations[:, :, :, None], weights[:, :, :, None])
            for level, hw, locations, weights in parts
        ]
        return torch.stack(outs).sum(0)

    return sample


# Name in transformers -> what makes its replacement of the original, and the parameters it has.
_IN_TRANSFORMERS: dict[str, tuple[Callable[..., Any], str]] = {
    "MultiScaleDeformableAttention": (
        forward_of_module,
        "self value value_spatial_shapes value_spatial_shapes_list level_start_index "
        "sampling_locations attention_weights im2col_step",
    ),
    "multi_scale_deformable_attention": (
        _sample_v1,
        "value value_spatial_shapes sampling_locations attention_weights",
    ),
    "multi_scale_deformable_attention_v2": (
        _sample_v2,
        "value value_spatial_shapes sampling_locations attention_weights num_points_list method",
    ),
}
