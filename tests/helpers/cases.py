# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Shapes and inputs of the operators, shared by tests and benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

HW = tuple[int, int]


@dataclass(frozen=True)
class AttnCase:
    """One shape of multi-scale deformable attention; ``query_hw`` empty means the classic form."""

    name: str
    batch: int
    heads: int
    channels: int
    points: int
    level_hw: tuple[HW, ...]
    query_hw: tuple[HW, ...] = ()
    queries: int = 0

    @property
    def num_queries(self) -> int:
        return sum(h * w for h, w in self.query_hw) if self.query_hw else self.queries

    @property
    def num_tokens(self) -> int:
        return sum(h * w for h, w in self.level_hw)

    def classic(self) -> "AttnCase":
        """Return the same shape for the classic entry point."""
        return replace(self, query_hw=(), queries=self.num_queries)


@dataclass
class AttnInputs:
    """Tensors of one case; points and weights are locations/weights or offsets/logits."""

    case: AttnCase
    value: Tensor
    points: Tensor
    weights: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.value, self.points, self.weights

    def map(self, change: Callable[[Tensor], Tensor]) -> "AttnInputs":
        return AttnInputs(self.case, *(change(tensor) for tensor in self.tensors()))

    def to(self, value_dtype: torch.dtype) -> "AttnInputs":
        """Cast for a value dtype: locations stay float32, everything else follows the value."""
        wide = torch.float64 if value_dtype == torch.float64 else torch.float32
        points = self.points.to(value_dtype if self.case.query_hw else wide)
        return AttnInputs(
            self.case, self.value.to(value_dtype), points, self.weights.to(value_dtype)
        )

    def requires_grad(self) -> "AttnInputs":
        return self.map(lambda tensor: tensor.detach().requires_grad_())

    def run(self, backend: str | None = None) -> Tensor:
        from vitadapter_fast.ops import ms_deform_attn, ms_deform_attn_grid

        case = self.case
        if case.query_hw:
            return ms_deform_attn_grid(
                self.value, case.level_hw, case.query_hw, self.points, self.weights, backend=backend
            )
        return ms_deform_attn(self.value, case.level_hw, self.points, self.weights, backend=backend)


def injector(name: str, image: int, heads: int, channels: int, batch: int = 1) -> AttnCase:
    """Return the injector's shape: ViT tokens (1/16) query the prior's three levels."""
    levels = tuple((image // s, image // s) for s in (8, 16, 32))
    return AttnCase(name, batch, heads, channels, 4, levels, (levels[1],))


def extractor(name: str, image: int, heads: int, channels: int, batch: int = 1) -> AttnCase:
    """Return the extractor's shape: the prior's three grids query the ViT map (1/16)."""
    levels = tuple((image // s, image // s) for s in (8, 16, 32))
    return AttnCase(name, batch, heads, channels, 4, (levels[1],), levels)


# (heads, channels per head) of the deformable attention of each model.
MODEL_HEADS = {"s": (6, 64), "b": (12, 32), "l": (16, 32), "g": (24, 32)}

# Real shapes, at an image size that keeps the float64 reference quick.
REAL = [
    make(f"{kind}_{model}_{image}", image, *MODEL_HEADS[model])
    for kind, make in (("injector", injector), ("extractor", extractor))
    for model, image in (("s", 160), ("b", 192), ("l", 128), ("g", 96))
]

AWKWARD = [
    AttnCase("one_pixel_level", 2, 2, 8, 2, ((1, 1), (3, 5)), ((2, 3),)),
    AttnCase("one_row_level", 1, 3, 16, 4, ((1, 17),), ((5, 1), (1, 7))),
    AttnCase("prime_sizes", 2, 3, 32, 4, ((11, 13), (7, 5), (3, 2)), ((13, 17),)),
    AttnCase("odd_channels", 1, 2, 7, 3, ((5, 4), (2, 2)), ((3, 3),)),
    AttnCase("one_channel", 1, 1, 1, 1, ((4, 4),), ((2, 5),)),
    AttnCase("many_channels", 1, 1, 173, 2, ((4, 6),), ((3, 3),)),
    AttnCase("wide_head", 1, 2, 128, 4, ((9, 7),), ((5, 6),)),
    AttnCase("one_point", 2, 4, 16, 1, ((6, 6), (3, 3)), ((7, 3),)),
    AttnCase(
        "five_levels_nine_points", 1, 2, 24, 9, ((9, 8), (5, 4), (3, 2), (2, 1), (1, 1)), ((4, 3),)
    ),
    AttnCase("four_levels", 1, 2, 32, 4, ((8, 8), (4, 4), (2, 2), (1, 1)), ((6, 5),)),
    AttnCase("empty_batch", 0, 2, 16, 4, ((4, 4),), ((3, 3),)),
    AttnCase("no_heads", 1, 0, 16, 4, ((4, 4),), ((3, 3),)),
]

NO_QUERIES = AttnCase("no_queries", 2, 2, 16, 4, ((4, 4),), queries=0)

ALL = REAL + AWKWARD


@dataclass(frozen=True)
class ConvCase:
    """One shape of the depthwise convolution of a token pyramid."""

    name: str
    batch: int
    channels: int
    grid_hw: tuple[HW, ...]
    has_bias: bool = True

    @property
    def num_tokens(self) -> int:
        return sum(h * w for h, w in self.grid_hw)


@dataclass
class ConvInputs:
    """Tensors of one case."""

    case: ConvCase
    tokens: Tensor
    weight: Tensor
    bias: Tensor | None

    def tensors(self) -> list[Tensor]:
        return [self.tokens, self.weight, *([] if self.bias is None else [self.bias])]

    def map(self, change: Callable[[Tensor], Tensor]) -> "ConvInputs":
        bias = None if self.bias is None else change(self.bias)
        return ConvInputs(self.case, change(self.tokens), change(self.weight), bias)

    def run(self, backend: str | None = None) -> Tensor:
        from vitadapter_fast.ops import dwconv_gelu

        return dwconv_gelu(self.tokens, self.case.grid_hw, self.weight, self.bias, backend=backend)


# Hidden channels of the feed-forward with convolution of each model.
MODEL_HIDDEN = {"s": 96, "b": 192, "l": 256, "g": 384}

REAL_CONV = [
    ConvCase(f"prior_{m}_{image}", 1, MODEL_HIDDEN[m], extractor("", image, 1, 1).query_hw)
    for m, image in (("s", 160), ("b", 192), ("l", 128), ("g", 96))
]

AWKWARD_CONV = [
    ConvCase("one_pixel", 2, 16, ((1, 1),)),
    ConvCase("one_row", 1, 24, ((1, 17), (1, 2))),
    ConvCase("one_column", 1, 40, ((17, 1), (2, 1))),
    ConvCase("prime_sizes", 2, 64, ((11, 13), (7, 5), (3, 2))),
    ConvCase("one_channel", 1, 1, ((4, 5),)),
    ConvCase("seven_channels", 2, 7, ((5, 4), (2, 2))),
    ConvCase("many_odd_channels", 1, 173, ((6, 9), (3, 4))),
    ConvCase("one_grid", 1, 96, ((19, 23),)),
    ConvCase("five_grids_without_bias", 2, 32, ((9, 8), (5, 4), (3, 2), (2, 1), (1, 1)), False),
    ConvCase("wide_and_tall", 1, 8, ((2, 83), (67, 3))),
    ConvCase("empty_batch", 0, 16, ((4, 4),)),
]

ALL_CONV = REAL_CONV + AWKWARD_CONV


def make_conv_inputs(
    case: ConvCase, *, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> ConvInputs:
    """Make inputs whose sums are of a size that GELU bends."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        tensor = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return tensor.to(device, dtype)

    bias = normal(case.channels) if case.has_bias else None
    weight = normal(case.channels, 1, 3, 3) / 2
    return ConvInputs(case, normal(case.batch, case.num_tokens, case.channels), weight, bias)


@dataclass(frozen=True)
class WindowCase:
    """One shape of the attention within windows."""

    name: str
    batch: int
    heads: int
    channels: int
    hw: HW
    window_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, self.hw[0] * self.hw[1], 3, self.heads, self.channels


# Real grids, with fewer heads to keep the float64 reference quick.
REAL_WINDOW = [
    WindowCase("image_of_512", 1, 2, 64, (32, 32), 14),
    WindowCase("image_of_448_in_whole_windows", 1, 2, 64, (28, 28), 14),
    WindowCase("image_of_320_by_272", 2, 1, 64, (20, 17), 14),
]

AWKWARD_WINDOW = [
    WindowCase("one_token", 2, 2, 64, (1, 1), 14),
    WindowCase("grid_smaller_than_the_window", 2, 2, 40, (5, 3), 7),
    WindowCase("windows_of_one_token", 1, 2, 8, (3, 4), 1),
    WindowCase("prime_sizes", 2, 3, 16, (11, 13), 7),
    WindowCase("odd_channels", 1, 2, 5, (4, 9), 3),
    WindowCase("one_channel", 1, 3, 1, (4, 4), 3),
    WindowCase("forty_channels", 1, 1, 40, (7, 8), 5),
    WindowCase("wide_head", 1, 1, 131, (3, 5), 4),
    WindowCase("one_row", 2, 1, 24, (1, 19), 4),
    WindowCase("window_of_the_whole_grid", 1, 2, 32, (9, 9), 9),
    WindowCase("empty_batch", 0, 2, 8, (3, 3), 2),
]

ALL_WINDOW = REAL_WINDOW + AWKWARD_WINDOW


def make_qkv(
    case: WindowCase,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    spread: float = 1.5,
) -> Tensor:
    """Make queries, keys and values whose logits are of a size that makes a softmax uneven."""
    generator = torch.Generator().manual_seed(seed)
    qkv = spread * torch.randn(case.shape, generator=generator, dtype=torch.float64)
    return qkv.to(device, dtype)


def make_inputs(
    case: AttnCase,
    *,
    spread: float = 2.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> AttnInputs:
    """Make inputs whose points lie about the query, ``spread`` pixels away, some outside the map.

    Every coordinate keeps 0.05 px away from pixel centers, where the location gradient jumps.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    B, Q, M, L, P = case.batch, case.num_queries, case.heads, len(case.level_hw), case.points
    centers = query_centers(case, generator)  # [Q, 2]
    sizes = torch.tensor([[w, h] for h, w in case.level_hw], dtype=torch.float64)
    pixels = centers[:, None, None, None] * sizes[:, None] - 0.5  # [Q, 1, L, 1, 2]
    wanted = pixels + spread * normal(B, Q, M, L, P, 2)
    cell = wanted.floor()
    wanted = cell + 0.05 + 0.9 * (wanted - cell)
    if case.query_hw:
        points = wanted - pixels
        weights = 2 * normal(B, Q, M, L, P)
    else:
        points = (wanted + 0.5) / sizes[:, None]
        weights = normal(B, Q, M, L * P).softmax(-1).view(B, Q, M, L, P)
    value = normal(B, case.num_tokens, M, case.channels)
    return AttnInputs(case, value.to(device), points.to(device), weights.to(device)).to(dtype)


def query_centers(case: AttnCase, generator: Any = None) -> Tensor:
    """Return where the queries look, [Q, 2] as (x, y) in [0, 1]; random for the classic form."""
    if not case.query_hw:
        return torch.rand(case.num_queries, 2, generator=generator, dtype=torch.float64)
    grids = []
    for h, w in case.query_hw:
        y = (torch.arange(h, dtype=torch.float64) + 0.5) / h
        x = (torch.arange(w, dtype=torch.float64) + 0.5) / w
        grids.append(torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).view(-1, 2))
    return torch.cat(grids)


@dataclass(frozen=True)
class PatchCase:
    """One shape of the patch embedding."""

    name: str
    batch: int
    in_chans: int
    channels: int
    image_hw: HW
    patch_hw: HW
    pos_hw: HW

    @property
    def grid_hw(self) -> HW:
        return self.image_hw[0] // self.patch_hw[0], self.image_hw[1] // self.patch_hw[1]

    @property
    def num_tokens(self) -> int:
        return self.grid_hw[0] * self.grid_hw[1]


PATCH_MODES = ("bicubic", "bicubic_offset", "bicubic_antialias")

PATCH_CASES = [
    PatchCase("s_larger_than_the_table", 1, 3, 72, (96, 128), (16, 16), (5, 7)),
    PatchCase("b_smaller_than_the_table", 1, 3, 136, (48, 80), (16, 16), (7, 8)),
    PatchCase("table_fits", 2, 3, 40, (64, 48), (16, 16), (4, 3)),
    PatchCase("one_axis_fits", 1, 3, 16, (64, 48), (16, 16), (4, 5)),
    PatchCase("patch_14_with_a_remainder", 2, 3, 48, (75, 97), (14, 14), (5, 5)),
    PatchCase("prime_sizes", 3, 5, 17, (89, 67), (7, 7), (11, 13)),
    PatchCase("one_token", 2, 3, 24, (19, 17), (16, 16), (7, 3)),
    PatchCase("one_row_of_table", 1, 1, 7, (24, 40), (8, 8), (1, 6)),
    PatchCase("one_position", 1, 2, 8, (16, 24), (8, 8), (1, 1)),
    PatchCase("one_pixel_patches", 1, 4, 33, (5, 9), (1, 1), (3, 3)),
    PatchCase("flat_patches", 2, 2, 1, (12, 33), (2, 8), (4, 2)),
    PatchCase("far_more_positions", 1, 1, 272, (8, 12), (4, 4), (5, 8)),
    PatchCase("empty_batch", 0, 3, 16, (32, 32), (16, 16), (3, 3)),
]


@dataclass
class PatchInputs:
    """Tensors of one case: image, weight, bias (or None) and table."""

    case: PatchCase
    mode: str
    tensors: list[Tensor | None]

    def map(self, change: Callable[[Tensor], Tensor]) -> "PatchInputs":
        mapped = [None if tensor is None else change(tensor) for tensor in self.tensors]
        return PatchInputs(self.case, self.mode, mapped)

    def run(self, backend: str | None = None) -> Tensor:
        from vitadapter_fast.ops import patch_embed

        return patch_embed(*self.tensors, self.case.pos_hw, mode=self.mode, backend=backend)  # type: ignore[arg-type]


def make_patch_inputs(
    case: PatchCase,
    mode: str = "bicubic",
    *,
    dtype: torch.dtype = torch.float64,
    table_dtype: torch.dtype | None = None,
    has_bias: bool = True,
    seed: int = 0,
) -> PatchInputs:
    """Make inputs whose tokens and positions are both of variance 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    patch = (case.in_chans, *case.patch_hw)
    weight = normal(case.channels, *patch) / (patch[0] * patch[1] * patch[2]) ** 0.5
    image = normal(case.batch, case.in_chans, *case.image_hw)
    bias = normal(case.channels).to(dtype) if has_bias else None
    table = normal(case.pos_hw[0] * case.pos_hw[1], case.channels).to(table_dtype or dtype)
    return PatchInputs(case, mode, [image.to(dtype), weight.to(dtype), bias, table])
