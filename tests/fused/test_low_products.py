# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Matrices of 16 bits on the CPU: multiplied as they are, or in float32 where that is faster."""

import copy
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from dinov3_cases import dinov3_model
from processor import features
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.fused.form import form_of
from vitadapter_fast.fused.linear import residual_linear
from vitadapter_fast.fused.norm import folded
from vitadapter_fast.native import extension, gemm, half_linear

WAYS = ("autocast", "module")
LOW = (torch.bfloat16, torch.float16)
MODELS: dict[str, Callable[[Any], ViTAdapter]] = {
    "dinov2": lambda tiny: tiny(drop_path_rate=0.0),
    "group norms": lambda tiny: tiny(drop_path_rate=0.0, norm="GN"),
    "recomputed": lambda tiny: tiny(drop_path_rate=0.0, with_cp=True),
    "without the ViT's maps": lambda tiny: tiny(drop_path_rate=0.0, add_vit_feature=False),
    "norms of the batch": lambda tiny: untracked(tiny(drop_path_rate=0.0)),
    "a stem of 16 channels": lambda tiny: tiny(drop_path_rate=0.0, conv_inplane=16),
    "dinov3": lambda tiny: dinov3_model(injectors=True, drop_path_rate=0.0),
    "DINOv3's adapter": lambda tiny: dinov3_model(drop_path_rate=0.0),
}
Tiny = Callable[..., ViTAdapter]


def untracked(model: ViTAdapter) -> ViTAdapter:
    """Let batch norms have no running statistics: a kernel of torch's then runs in eval."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


# A box without low products, with, and one whose products of bfloat16 are a kernel's of ours: where
# the processor has it.
SIDES = ("float32", "low")
HALVES = ("half",) if half_linear.has_products() else ()


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Return the dtypes of the matrices that are multiplied on the CPU from now on."""
    seen: list[torch.dtype] = []
    product, linear = gemm._product, gemm.F.linear

    def watched(rows: Tensor, *args: Any) -> Tensor:
        seen.append(rows.dtype)
        found = product(rows, *args)
        assert found.dtype == rows.dtype
        return found

    def watched_linear(rows: Tensor, *args: Any) -> Tensor:
        seen.append(rows.dtype)
        found = linear(rows, *args)
        assert found.dtype == rows.dtype
        return found

    monkeypatch.setattr(gemm, "_product", watched)
    monkeypatch.setattr(gemm.F, "linear", watched_linear)
    return seen


def choose(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "has_low_products", lambda dtype: side == "low")
    monkeypatch.setattr(half_linear, "has_products", lambda: side == "half")


def run(
    model: ViTAdapter, image: Tensor, low: torch.dtype | None, *, training: bool
) -> dict[str, Tensor]:
    """Return maps, and in training the gradients of the parameters."""
    model.train(training)
    with (
        nullcontext() if training else torch.no_grad(),
        torch.autocast("cpu", low or torch.bfloat16, enabled=low is not None),
    ):
        maps = model(image)
    found = {f"map {i}": part.detach() for i, part in enumerate(maps)}
    if training:
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(part.shape, generator=generator).to(part.dtype) for part in maps]
        torch.autograd.backward(maps, cotangents)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad
    return found


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("low", LOW, ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_wider_products_change_no_dtype_and_err_no_more(
    name: str,
    way: str,
    low: torch.dtype,
    training: bool,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MODELS[name](tiny)
    image = torch.randn(2, 3, 64, 96)
    # The same weights: to round them may turn the sign of what a ReLU sees.
    dtype = low if way == "module" else torch.float32
    exact = copy.deepcopy(model).to(dtype).double()
    truth = run(exact, image.to(dtype).double(), None, training=training)
    found = {}
    for side in (*SIDES, *HALVES):
        choose(side, monkeypatch)
        mine = copy.deepcopy(model)
        if way == "module":
            found[side] = run(mine.to(low), image.to(low), None, training=training)
        else:
            found[side] = run(mine, image, low, training=training)
    for side in ("float32", *HALVES):
        compare(found[side], found["low"], truth, low)


def compare(
    wide: dict[str, Tensor], narrow: dict[str, Tensor], truth: dict[str, Tensor], low: torch.dtype
) -> None:
    """Refuse another dtype or layout than products of 16 bits give, and larger errors."""
    assert wide.keys() == narrow.keys() == truth.keys()
    ratios, eps = [], torch.finfo(low).eps
    for key, right in truth.items():
        assert wide[key].dtype == narrow[key].dtype, key
        strides = (  # where there is a next number
            [step for step, size in zip(side[key].stride(), right.shape, strict=True) if size > 1]
            for side in (wide, narrow)
        )
        assert len({tuple(each) for each in strides}) == 1, key
        by_wide, by_narrow = (torch.dist(side[key].double(), right) for side in (wide, narrow))
        if key.startswith("map"):
            assert by_wide <= 1.05 * by_narrow + eps / 8 * right.norm(), key
        else:
            # Of one tensor this says little: rounding moves points into another pixel.
            assert by_wide <= 4 * by_narrow + 0.2 * right.norm() + 1e-3, key
            floor = eps * right.norm() + 1e-3
            ratios.append(((by_wide + floor) / (by_narrow + floor)).item())
    # Which pixels differ is chance: medians are 0.8 to 1.5, for images of other seeds too.
    assert not ratios or statistics.median(ratios) <= 2


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", [*SIDES, *HALVES])
@pytest.mark.parametrize("has_onednn", [True, False], ids=["oneDNN", "MKL"])
def test_every_product_is_of_the_dtype_that_is_faster(
    has_onednn: bool,
    side: str,
    way: str,
    training: bool,
    products: list[torch.dtype],
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if extension.unavailable_reason() is not None:
        pytest.fail("the extension is not there")
    choose(side, monkeypatch)
    monkeypatch.setattr(gemm, "_has_onednn", has_onednn and gemm._has_onednn)
    model, image = tiny(drop_path_rate=0.0), torch.randn(1, 3, 64, 96)
    seen: list[str] = []
    launch = extension.launch
    monkeypatch.setattr(
        extension, "launch", lambda name, **how: (seen.append(name), launch(name, **how))
    )
    if way == "module":
        run(model.bfloat16(), image.bfloat16(), None, training=training)
    else:
        run(model, image, torch.bfloat16, training=training)
    if side == "half":
        # What is left is the gradient of the 2 x 2 convolution, whose maps are summed in float32.
        assert seen.count("half_linear_cpu") > 20 and len(products) <= (8 if training else 0)
        assert seen.count("half_conv_cpu") >= 2
        return
    wanted = torch.float32 if side == "float32" else torch.bfloat16
    assert len(products) > 20 and products.count(wanted) == len(products)
    assert "half_linear_cpu" not in seen


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["dinov2", "group norms", "dinov3"])
def test_training_keeps_no_more(
    name: str, way: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, kept = torch.randn(1, 3, 128, 128), {}
    for side in (*SIDES, *HALVES):
        choose(side, monkeypatch)
        model, bytes_of = MODELS[name](tiny), {}
        if way == "module":
            model, image = model.bfloat16(), image.bfloat16()
        parameters = {each.untyped_storage().data_ptr() for each in model.parameters()}

        def pack(tensor: Tensor, bytes_of: dict[int, int] = bytes_of) -> Tensor:
            storage = tensor.untyped_storage()
            bytes_of[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            maps = model.train()(image)
        kept[side] = sum(size for at, size in bytes_of.items() if at not in parameters)
        del maps
    # But for the statistics of norms, two numbers for each of 32 channels and more.
    assert all(kept[side] <= 1.02 * kept["low"] for side in kept)


@pytest.mark.parametrize("side", ["float32", *HALVES])
def test_a_wide_residual_is_not_rounded(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(side, monkeypatch)
    layer, tokens = nn.Linear(64, 96), torch.randn(1, 10, 96)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    for has_onednn in (gemm._has_onednn, False):
        monkeypatch.setattr(gemm, "_has_onednn", has_onednn)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            form = form_of(tokens, layer.weight)
            out = residual_linear(form, tokens, torch.randn(1, 10, 64), layer)
        assert torch.equal(out, tokens)


@pytest.mark.parametrize("low", LOW, ids=str)
def test_a_tiny_scale_of_a_folded_norm_is_no_zero(low: torch.dtype) -> None:
    conv, norm = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4).eval()
    assert norm.running_var is not None
    conv.weight.data.fill_(1e4)
    norm.running_var.fill_(1e18)
    found = folded(conv, norm, low)
    assert found is not None
    torch.testing.assert_close(found[0], torch.full_like(conv.weight, 1e-5))


@pytest.mark.parametrize("way", WAYS)
def test_compilers_see_one_graph(way: str, tiny: Tiny) -> None:
    gemm.has_low_products.cache_clear()  # whoever asks it now asks the extension
    model, image = tiny().eval(), torch.randn(1, 3, 64, 96)
    if way == "module":
        model, image = model.bfloat16(), image.bfloat16()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        assert all(each.isfinite().all() for each in compiled(image))


def test_this_processor_is_asked_what_it_has() -> None:
    module, _ = extension.load()
    if module is None:
        pytest.fail("the extension is not there")
    flags = features()
    if not flags:
        return
    has_amd = {"AuthenticAMD", "avx512_bf16"} <= flags
    wanted = {
        torch.bfloat16: "amx_bf16" in flags or has_amd,
        torch.float16: bool({"amx_fp16", "avx512_fp16"} & flags),
    }
    for dtype, code in extension.DTYPE_CODES.items():
        assert module.has_low_products(code) == wanted.get(dtype, True), dtype


@pytest.mark.parametrize("side", ["float32", *HALVES])
@pytest.mark.parametrize("low", LOW, ids=str)
def test_products_keep_the_dtype_of_their_matrices(
    low: torch.dtype, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(side, monkeypatch)
    rows, weight = torch.randn(70, 40).to(low), torch.randn(30, 40).to(low)
    bias, plus = torch.randn(30).to(low), torch.randn(70, 30).to(low)
    right = rows.double() @ weight.double().t() + bias.double() + plus.double()
    got = gemm.linear(rows, weight, bias, plus=plus)
    assert got.dtype == low
    assert (got.double() - right).abs().max() <= torch.finfo(low).eps * right.abs().max()
    grad = gemm.weight_gradient(plus, rows)
    right = plus.double().t() @ rows.double()
    assert grad.dtype == low
    assert (grad.double() - right).abs().max() <= torch.finfo(low).eps * right.abs().max()
