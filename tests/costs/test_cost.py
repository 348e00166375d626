# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The ledger of a forward pass, against formulas, torch's counter and real runs of small models."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import WINDOWED
from torch import Tensor, nn

import vitadapter_fast as vf
from vitadapter_fast.commands import cli
from vitadapter_fast.costs import BOXES, BoxCost, Cost, cost
from vitadapter_fast.fused.half_convolution import has_halves
from vitadapter_fast.native import gemm, half_linear

SMALL: dict[str, Any] = {**WINDOWED, "drop_path_rate": 0.2}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small models wait for their threads longer than they run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(**overrides: Any) -> vf.ViTAdapter:
    torch.manual_seed(0)
    return vf.ViTAdapter(**{**SMALL, **overrides})


def on_meta(preset: str, **overrides: Any) -> vf.ViTAdapter:
    with torch.device("meta"):
        model = vf.vit_adapter(preset, **overrides)
    return model


def named(costs: Cost) -> dict[str, BoxCost]:
    return {box.name: box for box in costs.boxes}


def saved_in_a_real_run(model: nn.Module, image: Tensor) -> int:
    """Return the bytes of the storages that autograd saves, without parameters and buffers."""
    constants = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in constants:
            storages[storage.data_ptr()] = storage
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        # Every branch is kept.
        patch.setattr(Tensor, "bernoulli_", lambda factors, keep: factors.fill_(1.0))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(image)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"with_cp": True},
        {"frozen_vit": True},
        {"frozen_vit": True, "with_cp": True},
        {"ffn": "swiglu", "vit_features": "stages", "norm": "GN"},
        {"drop_rate": 0.1, "attn_drop_rate": 0.1},
        {"with_cffn": False, "use_extra_extractor": False, "add_vit_feature": False},
    ],
    ids=["plain", "with_cp", "frozen", "frozen_with_cp", "swiglu_stages_gn", "dropout", "bare"],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_saved_bytes_are_those_of_a_real_run(training: bool, overrides: dict[str, Any]) -> None:
    model = small(**overrides).train(training)
    real = saved_in_a_real_run(model, torch.randn(2, 3, 64, 96))
    assert cost(model, (64, 96), batch=2).total.saved_bytes == real


def test_saved_bytes_of_a_padded_image_are_those_of_a_real_run() -> None:
    model = small()
    real = saved_in_a_real_run(model, torch.randn(1, 3, 70, 45))
    assert cost(model, (70, 45)).total.saved_bytes == real


def test_saved_bytes_of_s_at_224_are_those_of_a_real_run() -> None:
    real = saved_in_a_real_run(vf.vit_adapter_s(), torch.randn(1, 3, 224, 224))
    counted = cost(on_meta("s"), 224).total.saved_bytes
    assert counted == real


def test_saved_bytes_in_bfloat16_are_those_of_a_real_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # The ledger is of products in 16 bits; where a CPU's are slow, some norms are saved wider.
    monkeypatch.setattr(gemm, "has_low_products", lambda dtype: True)
    model = small().bfloat16()
    real = saved_in_a_real_run(model, torch.randn(1, 3, 64, 64, dtype=torch.bfloat16))
    assert cost(model, 64).total.saved_bytes == real


def narrow_weights_less(model: vf.ViTAdapter) -> int:
    """Return bytes of weights in bfloat16 that torch's convolutions keep and kernels here do not.

    What a kernel here multiplies depends on the processor, so the count has torch's.
    """
    if not half_linear.has_products() or gemm.has_low_products(torch.bfloat16):
        return 0
    convolutions = [each for each in model.spm.modules() if isinstance(each, nn.Conv2d)]
    return sum(
        2 * each.weight.numel()
        for each in convolutions
        if each.kernel_size == (1, 1) or has_halves(each)
    )


def test_saved_bytes_under_autocast_are_those_of_a_real_run() -> None:
    model, image = small(), torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        real = saved_in_a_real_run(model, image)
    with torch.autocast("cpu", torch.bfloat16):
        counted = cost(model, 64).total.saved_bytes
    # Torch's fake batch norm keeps its statistics, 2 numbers a channel, in the dtype of the map.
    assert counted == pytest.approx(real + narrow_weights_less(model), rel=0.02)
    assert counted < cost(model, 64).total.saved_bytes


def test_checkpointing_saves_only_what_enters_the_boxes() -> None:
    boxes = named(cost(on_meta("s", with_cp=True), 512))
    tokens, prior = (4 * 384 * 32 * 32 * count for count in (1, 21 / 4))
    # A block is checkpointed whole, and attention is where it begins.
    assert boxes["vit_ffn"].saved_bytes == 0
    assert boxes["vit_attention"].saved_bytes == pytest.approx(12 * tokens, rel=0.02)
    # Each stage reads prior tokens in its injector first; ViT tokens, but for the first ones, have
    # been read by the extractor before. The last stage's extra extractors read prior tokens.
    assert boxes["injectors"].saved_bytes == pytest.approx(tokens + 4 * prior, rel=0.02)
    assert boxes["extractors"].saved_bytes == pytest.approx(4 * tokens + 2 * prior, rel=0.02)


def test_frozen_vit_saves_nothing() -> None:
    boxes = named(cost(small(frozen_vit=True), 64))
    for name in ("patch_embed", "injectors", "vit_attention", "vit_ffn"):
        assert boxes[name].saved_bytes == 0
        assert boxes[name].flops > 0
    assert boxes["extractors"].saved_bytes > 0


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("overrides", [{}, {"with_cp": True}], ids=["plain", "with_cp"])
def test_model_and_random_state_stay_as_they_were(
    overrides: dict[str, Any], training: bool
) -> None:
    model = small(**overrides).train(training)
    model.blocks[0].requires_grad_(False)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    needs = {name: tensor.requires_grad for name, tensor in tensors.items()}
    attributes = [dict(module.__dict__) for module in model.modules()]
    random_state = torch.get_rng_state()

    cost(model, 64)

    assert torch.equal(torch.get_rng_state(), random_state)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        assert after[name] is tensor and tensor.grad is None
        assert torch.equal(tensor, values[name]) and tensor.requires_grad == needs[name]
    for module, before in zip(model.modules(), attributes, strict=True):
        assert module.training == before["training"]
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert {key: id(value) for key, value in module.__dict__.items()} == {
            key: id(value) for key, value in before.items()
        }


def test_hooks_of_the_user_are_not_called() -> None:
    model = small()
    called: list[nn.Module] = []
    for module in (model, model.blocks[0], model.spm):
        module.register_forward_hook(lambda module, args, out: called.append(module))
        module.register_forward_pre_hook(lambda module, args: called.append(module))
    cost(model, 64)
    assert called == []


def test_model_that_is_to_be_compiled_costs_the_same_and_is_not() -> None:
    def refuse(graph: Any, inputs: Any) -> Any:
        raise AssertionError("compiled")

    model = small()
    expected = cost(model, 64)
    model.compile(backend=refuse)
    assert cost(model, 64) == expected


def test_model_on_meta_costs_the_same_and_stays_there() -> None:
    with torch.device("meta"):
        model = small()
    assert cost(model, 64) == cost(small(), 64)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradient_mode_of_the_caller_does_not_matter(context: Any) -> None:
    model = small()
    expected = cost(model, 64)
    with context():
        assert cost(model, 64) == expected


def test_sync_batch_norm_costs_what_batch_norm_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cost(small(norm="BN"), 64)
    model = small(norm="SyncBN")
    # Then SyncBatchNorm refuses tensors that are not on a GPU.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert cost(model, 64) == expected
    assert type(model.norm1) is nn.SyncBatchNorm


@pytest.mark.parametrize("preset", ["s", "b", "l", "g"])
def test_every_parameter_is_in_one_box(preset: str) -> None:
    model = on_meta(preset)
    costs = cost(model, 64)
    assert [box.name for box in costs.boxes] == list(BOXES)
    assert costs.total.parameter_bytes == 4 * sum(p.numel() for p in model.parameters())
    of_blocks = 4 * sum(p.numel() for p in model.blocks.parameters())
    boxes = named(costs)
    attention, ffn = boxes["vit_attention"], boxes["vit_ffn"]
    assert attention.parameter_bytes + ffn.parameter_bytes == of_blocks


@pytest.mark.parametrize(("preset", "hw"), [("b", (512, 768)), ("g", (64, 96))])
def test_flops_of_the_vit_follow_its_formula(preset: str, hw: tuple[int, int]) -> None:
    model = on_meta(preset)
    boxes = named(cost(model, hw, batch=2))
    C, h, w = model.embed_dim, hw[0] // 16, hw[1] // 16
    N = h * w
    pairs = 0
    for block in model.blocks:
        size = block.attn.window_size or max(h, w)
        rows = [min(size, h - top) for top in range(0, h, size)]
        columns = [min(size, w - left) for left in range(0, w, size)]
        pairs += sum((r * c) ** 2 for r in rows for c in columns)
    depth = len(model.blocks)
    attention = depth * 2 * N * C * (3 * C + C) + 2 * 2 * C * pairs
    hidden = 3 * 4096 if preset == "g" else 2 * 4 * C
    assert boxes["vit_attention"].flops == 2 * attention
    assert boxes["vit_ffn"].flops == 2 * depth * 2 * N * C * hidden
    assert boxes["patch_embed"].flops == 2 * 2 * N * C * 3 * 16 * 16


def test_flops_of_injectors_and_extractors_follow_their_formulas() -> None:
    boxes = named(cost(on_meta("b"), 512))
    C, value_dim, M, P, N = 768, 384, 12, 4, 32 * 32
    Q = N * 21 // 4

    def attention(queries: int, values: int, levels: int) -> int:
        points = M * levels * P
        linear = 2 * queries * C * 3 * points + 2 * (values + queries) * C * value_dim
        return linear + 2 * 4 * queries * points * (value_dim // M)

    ffn = 2 * 2 * Q * C * (C // 4) + 2 * 9 * Q * (C // 4)
    assert boxes["injectors"].flops == 4 * attention(N, Q, 3)
    assert boxes["extractors"].flops == 6 * (attention(Q, N, 1) + ffn)


def test_bytes_moved_are_inputs_parameters_and_outputs_of_each_call() -> None:
    boxes = named(cost(on_meta("s"), (256, 512)))
    image = 4 * 3 * 256 * 512
    tokens = 4 * 384 * 16 * 32
    prior = tokens * 21 // 4
    at_4, maps = 4 * tokens * 4, tokens * (16 + 4 + 1) + tokens // 4
    expected = {
        "patch_embed": image + tokens,
        "injectors": 4 * (tokens + prior + tokens) + prior,  # the first is told the levels
        "vit_attention": 12 * 2 * tokens,
        "vit_ffn": 12 * 2 * tokens,
        "extractors": 6 * (prior + tokens + prior),
    }
    for name, between in expected.items():
        factors = boxes[name].bytes_moved - between - boxes[name].parameter_bytes
        # Which samples keep the feed-forward is drawn, 4 bytes a block, before it begins.
        assert factors in ((0, 11 * 4) if name.startswith("vit_") else (0,)), name
    # Of these two the batch norms also read statistics.
    for name, between in (
        ("spatial_prior", image + at_4 + prior),
        ("pyramid", at_4 + prior + tokens + maps),
    ):
        statistics = boxes[name].bytes_moved - between - boxes[name].parameter_bytes
        assert 0 < statistics < 20_000


def test_batch_multiplies_all_but_parameters() -> None:
    one, three = (cost(small(), 64, batch).total for batch in (1, 3))
    assert three.flops == 3 * one.flops
    assert three.parameter_bytes == one.parameter_bytes
    assert one.bytes_moved < three.bytes_moved < 3 * one.bytes_moved


@pytest.mark.parametrize("size", [31, (64, 16), (64,)])
def test_small_image_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="cost: image_size must be .* from 32 to 65536"):
        cost(small(), size)


def test_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="cost: batch must be a whole number from 1 .* got 0"):
        cost(small(), 64, batch=0)


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match="cost: model must be a ViTAdapter, got Sequential"):
        cost(nn.Sequential(small()), 64)


def test_command_prints_the_ledger(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["info", "--cost", "g", "--size", "512x768", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert "vit_adapter_g" in out and "2 images of 512 x 768" in out
    rows = {line.strip("│ ").split(" ")[0]: line for line in out.splitlines()}
    total = cost(on_meta("g"), (512, 768), 2).total
    for box in (*BOXES, "total"):
        assert box in rows
    assert f"{total.flops / 1e9:,.1f}" in rows["total"]
    assert f"{total.saved_bytes / 2**30:,.2f} GiB" in rows["total"]
    assert "…" not in out


def test_largest_costs_are_printed_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["info", "--cost", "g", "--size", "65536", "--batch", "65536"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out and "EiB" in out


@pytest.mark.parametrize(
    "options",
    [["--cost", "x"], ["--cost", "s", "--size", "16"], ["--cost", "s", "--size", "64x"]]
    + [
        ["--cost", "s", "--size", "big"],
        ["--cost", "s", "--batch", "0"],
        ["--cost", "s", "--check"],
    ],
    ids=["model", "small", "half_a_size", "no_size", "no_batch", "two_tasks"],
)
def test_wrong_options_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["info", *options])
    assert stop.value.code == 2


def test_size_without_a_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--size", "640"]) == 1
    assert capsys.readouterr().err == (
        "error: --size and --batch need --cost; add --cost s, b, l or g\n"
    )
