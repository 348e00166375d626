# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""DINOv3's trunk in training, 16 bits, compilers and where somebody touched it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter, backend, vit_adapter_dinov3

TINY: dict[str, Any] = {
    "trunk": "dinov3",
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "conv_inplane": 8,
    "deform_num_heads": 2,
    "interaction_indexes": [[0, 0], [1, 1], [2, 2], [3, 3]],
    "vit_features": "stages",
}
FORMS: dict[str, dict[str, Any]] = {
    "injectors": {"init_values": 1.0},
    "own": {"injectors": False, "final_norm": True},
    "swiglu": {"injectors": False, "final_norm": True, "ffn": "swiglu"},
    "dinov2_registers": {
        "trunk": "dinov2",
        "num_register_tokens": 3,
        "pretrain_size": 64,
        "img_size": 64,
        "init_values": 1.0,
    },
}
every_form = pytest.mark.parametrize("form", FORMS)


def tiny(form: str = "own", **overrides: Any) -> ViTAdapter:
    torch.manual_seed(0)
    model = ViTAdapter(**{**TINY, **FORMS[form], **overrides})
    with torch.no_grad():
        for name in ("cls_token", "register_tokens", "pos_embed"):
            if getattr(model, name) is not None:
                nn.init.normal_(getattr(model, name), std=0.5)
    return model


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def run(model: ViTAdapter, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return maps and gradients of a loss that weighs every pixel differently."""
    maps = model(x)
    loss = sum((each * torch.linspace(-1, 1, each.numel()).view_as(each)).sum() for each in maps)
    model.zero_grad()
    assert isinstance(loss, Tensor)
    loss.backward()
    grads = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
    return [each.detach() for each in maps], grads


def assert_same(got: Any, wanted: Any, limit: float = 2e-4) -> None:
    for a, b in zip(got[0], wanted[0], strict=True):
        assert (a - b).abs().max() < limit * b.abs().max()
    assert got[1].keys() == wanted[1].keys()
    largest = max(grad.abs().max() for grad in wanted[1].values())
    for name, grad in wanted[1].items():
        # A bias before a norm in training has no gradient but rounding errors.
        scale = max(grad.abs().max(), largest / 100)
        assert (got[1][name] - grad).abs().max() < limit * scale, name


@every_form
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_fused_and_plain_are_the_same(form: str, mode: bool) -> None:
    model = tiny(form).train(mode)
    got = run(copy.deepcopy(model), image())
    with backend("reference"):
        wanted = run(copy.deepcopy(model), image())
    assert_same(got, wanted)
    trained = {name for name, part in model.named_parameters() if part.requires_grad}
    assert got[1].keys() == trained


@every_form
def test_recomputation_gives_the_same(form: str) -> None:
    got, wanted = (run(tiny(form, with_cp=with_cp), image()) for with_cp in (True, False))
    assert_same(got, wanted)


@every_form
def test_other_sizes_and_batches(form: str) -> None:
    model = tiny(form).eval()
    with torch.no_grad():
        both = model(image())
        for index in range(2):
            alone = model(image()[index : index + 1])
            for a, b in zip(alone, both, strict=True):
                torch.testing.assert_close(a, b[index : index + 1], rtol=1e-4, atol=1e-4)
        assert [tuple(each.shape[2:]) for each in model(torch.rand(1, 3, 33, 70))] == [
            (9, 18), (5, 9), (3, 5), (2, 3)
        ]  # fmt: skip


def test_a_frozen_vit_trains_the_adapter_alone() -> None:
    model = tiny(frozen_vit=True).train()
    assert not model.blocks[0].training
    _, grads = run(model, image())
    parts = ("cls_token", "register_tokens", "patch_embed.", "blocks.", "norm.")
    assert not any(name.startswith(parts) for name in grads)
    assert len(grads) == 157
    assert not any(part.requires_grad for part in model.norm.parameters())


def test_something_trained_inside_a_frozen_vit_gets_gradients() -> None:
    model = tiny(frozen_vit=True).train()
    model.blocks[1].attn.qkv.bias.requires_grad_(True)
    model.register_tokens.requires_grad_(True)
    _, grads = run(model, image())
    assert grads["blocks.1.attn.qkv.bias"].abs().max() > 0
    assert grads["register_tokens"].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@every_form
def test_other_dtypes(form: str, dtype: torch.dtype) -> None:
    model = tiny(form).eval()
    with torch.no_grad():
        wanted = model(image())
        got = copy.deepcopy(model).to(dtype)(image().to(dtype))
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        assert (a.float() - b).abs().max() < (
            0.1 if dtype == torch.bfloat16 else 1e-4
        ) * b.abs().max()


@every_form
def test_autocast_keeps_the_residual_stream_in_float32(form: str) -> None:
    model = tiny(form)
    seen: list[torch.dtype] = []
    model.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        maps = model(image())
    sum(each.float().mean() for each in maps).backward()
    assert seen == [torch.float32]


def test_what_a_hook_kept_of_the_projection_is_not_overwritten() -> None:
    kept: list[tuple[Tensor, Tensor]] = []
    model = tiny().eval()
    qkv = model.blocks[0].attn.qkv
    qkv.register_forward_hook(lambda module, args, out: kept.append((out, out.clone())))
    with torch.no_grad():
        model(image())
        attended = model.blocks[0].attn(torch.randn(1, 29, 32), (4, 6), model.rope((4, 6), image()))
    assert attended.shape == (1, 29, 32)
    assert len(kept) == 2 and all(torch.equal(*pair) for pair in kept)


def test_an_attention_of_others_is_called_with_the_rotary_positions() -> None:
    class Probe(nn.Module):
        def forward(self, x: Tensor, hw: tuple[int, int], rope: Tensor) -> Tensor:
            assert rope.shape == (hw[0] + hw[1], 2, 4)
            return torch.zeros_like(x)

    model = tiny().eval()
    model.blocks[2].attn = Probe()
    with torch.no_grad():
        model(image())


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("form", ["injectors", "own"])
@pytest.mark.thorough
def test_compiled_training_is_the_same(form: str, compiler: str) -> None:
    model = tiny(form)
    wanted = run(copy.deepcopy(model), image())
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend=compiler)
    maps = compiled(image())
    loss = sum((each * torch.linspace(-1, 1, each.numel()).view_as(each)).sum() for each in maps)
    assert isinstance(loss, Tensor)
    loss.backward()
    grads = {name: part.grad for name, part in twin.named_parameters() if part.grad is not None}
    assert_same(([each.detach() for each in maps], grads), wanted, 1e-3)


def test_copies_and_pickles() -> None:
    model = tiny().eval()
    with torch.no_grad():
        wanted = model(image())
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(map(torch.equal, twin(image()), wanted))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trunk": "dinov4"}, "trunk must be one of dinov2, dinov3, got 'dinov4'"),
        ({"window_attn": True}, "attends globally.*window_attn=False"),
        ({"num_register_tokens": -1}, "num_register_tokens must be positive"),
        ({"rope_periods": "float16"}, "rope_periods must be one of bfloat16, exact"),
        ({"embed_dim": 36, "num_heads": 2, "deform_ratio": 1.0}, "multiple of 4 channels, got 18"),
    ],
)
def test_wrong_settings_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny(**changes)


def test_flags_are_flags() -> None:
    for name in ("injectors", "final_norm"):
        with pytest.raises(TypeError, match=f"{name} must be True or False"):
            tiny(**{name: "yes"})
    with pytest.raises(ValueError, match="size must be one of t, s, s"):
        vit_adapter_dinov3("g")
