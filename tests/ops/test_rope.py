# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Every backend of the rotary position embedding against the float64 reference."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tolerance import assert_close, assert_same_for_any_number_of_threads
from torch import Tensor

from vitadapter_fast.model.rope import RotaryEmbedding
from vitadapter_fast.ops import _triton, rope
from vitadapter_fast.ops.rope import cpu, triton
from vitadapter_fast.ops.rope._call import Call

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "golden" / "dinov3" / "rope.safetensors")
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BACKENDS = ["cpu"]
IN_PLACE: dict[str, ModuleType] = {"cpu": cpu}
if _triton.unavailable_reason() is None and _triton.is_interpreted():
    BACKENDS.append("triton")
    IN_PLACE["triton"] = triton


class Case(NamedTuple):
    """One shape of a call."""

    name: str
    batch: int
    hw: tuple[int, int]
    prefix: int
    heads: int
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        h, w = self.hw
        return self.batch, h * w + self.prefix, 3, self.heads, self.channels


CASES = [
    Case("vit_s", 2, (4, 6), 5, 6, 64),
    Case("vit_7b", 1, (3, 2), 5, 2, 128),
    Case("golden_heads", 2, (5, 3), 5, 2, 24),
    Case("four_channels", 1, (2, 3), 1, 3, 4),
    Case("forty_channels", 2, (1, 7), 0, 1, 40),
    Case("one_token", 3, (1, 1), 0, 2, 16),
    Case("one_column", 1, (19, 1), 2, 1, 8),
    Case("more_tokens_than_a_task", 1, (11, 13), 4, 1, 32),
    Case("empty_batch", 0, (2, 2), 1, 2, 8),
]


def case_id(case: Case) -> str:
    return case.name


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def tables_of(case: Case, qkv: Tensor) -> Tensor:
    return RotaryEmbedding(case.channels, "bfloat16")(case.hw, qkv)


def results(
    case: Case, qkv: Tensor, tables: Tensor, backend: str, cotangent: Tensor
) -> dict[str, Tensor]:
    leaf = qkv.detach().requires_grad_()
    out = rope(leaf, tables.to(leaf.device), case.hw, backend=backend)
    (grad,) = torch.autograd.grad(out, leaf, cotangent.to(out))
    return {"out": out.detach(), "qkv": grad}


def check(
    case: Case,
    dtype: torch.dtype,
    backend: str,
    device: str = "cpu",
    change: Callable[[Tensor], Tensor] = lambda qkv: qkv,
) -> None:
    """Compare the output and the gradient with the truth, float64 on the same rounded inputs."""
    qkv = change(random(case.shape, dtype))
    cotangent = random(case.shape, dtype, seed=1)
    tables = tables_of(case, qkv)
    truth = results(case, qkv.double(), tables.double(), "reference", cotangent)
    scale = qkv.float() if dtype == torch.float64 else qkv
    reference = results(case, scale, tables.float(), "reference", cotangent)
    got = results(case, qkv.to(device), tables, backend, cotangent)
    for name, tensor in got.items():
        assert tensor.dtype == dtype and tensor.is_contiguous()
        assert_close(tensor.cpu(), reference[name], truth[name], name)


@pytest.mark.parametrize("periods", ["bf16", "exact"])
@pytest.mark.parametrize("channels", [64, 128])
def test_golden_rotations(channels: int, periods: str) -> None:
    """Of transformers and of DINOv3's own code, which agree; the prefix comes first there."""
    kind = f"d{channels}_{periods}"
    embedding = RotaryEmbedding(channels, {"bf16": "bfloat16", "exact": "exact"}[periods])
    x = torch.empty(0, dtype=torch.float64)
    tables = embedding((3, 5), x)
    wanted = 2 * torch.pi / GOLDEN[f"{kind}/periods"].double()
    # The angles of the first row, whose center is at -2 / 3.
    torch.testing.assert_close(tables[0, 0], torch.cos(-2 / 3 * wanted), rtol=0, atol=1e-12)
    if f"{kind}/3x5/q" not in GOLDEN:
        return
    q, k = (GOLDEN[f"{kind}/3x5/{name}"].transpose(1, 2) for name in "qk")
    qkv = torch.stack([q, k, q], dim=2).roll(-5, dims=1)
    rotated = rope(qkv, tables, (3, 5), backend="reference").roll(5, dims=1)
    for index, name in enumerate(("q_rotated", "k_rotated")):
        truth = GOLDEN[f"{kind}/3x5/{name}"].transpose(1, 2)
        torch.testing.assert_close(rotated[:, :, index], truth, rtol=0, atol=1e-13)
    assert torch.equal(rotated[:, :, 2], q)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_output_and_gradients(backend: str, case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, backend)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tokens_first": lambda qkv: qkv.transpose(0, 1).contiguous().transpose(0, 1),
    "heads_first": lambda qkv: qkv.transpose(1, 3).contiguous().transpose(1, 3),
    "part_of_wider_rows": lambda qkv: torch.cat([qkv, qkv], dim=1)[:, : qkv.shape[1]],
    "expanded_batch": lambda qkv: qkv[:1].expand_as(qkv),
    "one_element_off": lambda qkv: torch.cat([qkv.flatten()[:1], qkv.flatten()])[1:].view_as(qkv),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_layouts(backend: str, dtype: torch.dtype, layout: str) -> None:
    check(CASES[0], dtype, backend, change=LAYOUTS[layout])


def check_in_place(module: ModuleType, case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    """What is rotated in place is what a copy is, and the memory beside it stays."""
    whole = random((case.batch, 2 * case.shape[1], *case.shape[2:]), dtype).to(device)
    qkv = whole[:, : case.shape[1]]
    tables = tables_of(case, qkv)
    wanted = rope(qkv, tables, case.hw, backend=module.__name__.rpartition(".")[2])
    beside = whole[:, case.shape[1] :].clone()
    module.rotate_in_place(Call(qkv, tables, list(case.hw), False))
    assert torch.equal(qkv, wanted)
    assert torch.equal(whole[:, case.shape[1] :], beside)
    module.rotate_in_place(Call(qkv, tables, list(case.hw), True))
    original = random(whole.shape, dtype).to(device)[:, : case.shape[1]]
    torch.testing.assert_close(qkv, original, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("backend", IN_PLACE)
def test_in_place(backend: str, case: Case, dtype: torch.dtype) -> None:
    check_in_place(IN_PLACE[backend], case, dtype)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_norms_stay_and_products_depend_on_distances(backend: str) -> None:
    """Why it works: q . k after rotation depends on how far apart both tokens are."""
    case = Case("", 1, (6, 6), 0, 1, 32)
    qkv = random((1, 1, *case.shape[2:]), torch.float64).expand(case.shape).contiguous()
    out = rope(qkv, tables_of(case, qkv), case.hw, backend=backend)
    query, key, value = out[0, :, :, 0].unbind(1)
    torch.testing.assert_close(query.norm(dim=1), qkv[0, :, 0, 0].norm(dim=1))
    logits = (query @ key.T).view(6, 6, 6, 6)
    torch.testing.assert_close(logits[0, 0, 2, 3], logits[3, 2, 5, 5])
    assert torch.equal(value, qkv[0, :, 2, 0])


def test_nan_stays_in_its_pair() -> None:
    case = CASES[0]
    qkv = random(case.shape, torch.float32)
    qkv[1, 3, 0, 2, 7] = float("nan")
    out = rope(qkv, tables_of(case, qkv), case.hw, backend="cpu")
    assert out.isnan().nonzero().tolist() == [[1, 3, 0, 2, 7], [1, 3, 0, 2, 39]]


def test_any_number_of_threads_gives_the_same() -> None:
    case = CASES[7]
    qkv = random(case.shape, torch.float32)
    tables, cotangent = tables_of(case, qkv), random(case.shape, torch.float32, seed=1)
    assert_same_for_any_number_of_threads(lambda: results(case, qkv, tables, "cpu", cotangent))


def test_backward_keeps_the_tables_alone() -> None:
    case = CASES[0]
    qkv = random(case.shape, torch.float32).requires_grad_()
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rope(qkv, tables_of(case, qkv), case.hw)
    assert [tuple(each.shape) for each in kept] == [(10, 2, 16)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hw": (4, 8)}, "hw .4, 8. must hold at most as many tokens as qkv, 29"),
        ({"hw": (0, 3)}, "positive"),
        ({"qkv": torch.zeros(1, 4, 3, 2, 6)}, "multiple of 4 channels, got 6"),
        ({"qkv": torch.zeros(1, 4, 2, 2, 8)}, r"\[B, N, 3, M, D\]"),
        ({"qkv": torch.zeros(2, 29, 3, 6, 64, dtype=torch.int64)}, "floating"),
        ({"tables": torch.zeros(10, 2, 8)}, r"tables must be \(10, 2, 16\)"),
        ({"tables": torch.zeros(10, 2, 16, dtype=torch.float64)}, "must be torch.float32"),
        ({"tables": torch.zeros(10, 2, 16, device="meta")}, "must be on cpu"),
        ({"tables": torch.zeros(10, 2, 16, requires_grad=True)}, "must not require gradients"),
    ],
)
def test_wrong_calls_are_told(changes: dict[str, Any], told: str) -> None:
    case = CASES[0]
    qkv = random(case.shape, torch.float32)
    call = {"qkv": qkv, "tables": tables_of(case, qkv), "hw": case.hw, **changes}
    with pytest.raises(ValueError, match=f"rope: .*{told}"):
        rope(**call)
