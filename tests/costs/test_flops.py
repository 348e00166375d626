# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""torch's FLOP counter knows our operators, forward and backward, whoever imports it and when."""

import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import vitadapter_fast as vf
from vitadapter_fast import ops
from vitadapter_fast.checks.probes import probes
from vitadapter_fast.costs import cost
from vitadapter_fast.native import gemm

S_AT_224 = 17_643_518_592

# Of the probes' shapes: forward, and forward's share that the backward of all inputs takes.
EXPECTED = {
    "batch_norm": (0, 0),
    "dwconv_gelu": (2 * 84 * 96 * 9, 3),
    "int8_linear": (2 * 2 * 35 * 96 * 40, 1),
    "ms_deform_attn": (8 * 16 * 6 * 3 * 4 * 64, 2),
    "ms_deform_attn_grid": (8 * 84 * 6 * 4 * 64, 2),
    "patch_embed": (2 * 4 * 6 * 32 * 3 * 16 * 16, 2),
    "rope": (0, 0),
    # Two products; windows of 5 and 3 rows and columns.
    "window_attention": (2 * 2 * 2 * 64 * (25 + 9) ** 2, 2.5),
}


class Calls(TorchDispatchMode):
    """Counts as torch's counter does, but without hooks: modules run as they do for a user."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        self.names.add(str(packet))
        if packet in flop_registry:
            self.flops[str(packet)] += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out


def small_s() -> vf.ViTAdapter:
    torch.manual_seed(0)
    return vf.vit_adapter_s(drop_path_rate=0.0)


def image() -> Tensor:
    return torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def backward(maps: list[Tensor]) -> None:
    torch.autograd.backward(maps, [torch.ones_like(level) for level in maps])


def counts_of(counter: FlopCounterMode) -> dict[str, int]:
    return {str(key): value for key, value in counter.get_flop_counts()["Global"].items()}


def ours(op: str) -> str:
    return f"vitadapter_fast.{op}"


def test_every_operator_has_a_formula() -> None:
    prefix = "vitadapter_fast::"
    names = {
        name.removeprefix(prefix).partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(prefix)
    }
    assert names >= EXPECTED.keys() and "window_attention_backward" in names
    assert all(getattr(torch.ops.vitadapter_fast, name) in flop_registry for name in names)


@pytest.mark.parametrize("op", probes())
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_operator_is_counted_and_computes_the_same(backend: str, op: str) -> None:
    alone, counted = (probes()[op].to("cpu", torch.float32) for _ in range(2))
    wanted, got = [], []
    for probe, results in ((alone, wanted), (counted, got)):
        with nullcontext() if probe is alone else FlopCounterMode(display=False) as counter:
            out = probe.run(backend, *probe.tensors)
            torch.autograd.backward(out, torch.ones_like(out))
        results += [out, *(each.grad for each in probe.tensors)]
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))
    flops, share = EXPECTED[op]
    counts = counts_of(counter)
    assert counts.pop(ours(op)) == flops
    assert counts.pop(ours(f"{op}_backward"), 0) == share * flops
    assert counts == {}  # nothing twice


@pytest.mark.parametrize(
    ("op", "needed", "share"),
    [
        ("dwconv_gelu", 0, 2),
        ("dwconv_gelu", 1, 2),
        ("dwconv_gelu", 2, 1),
        ("ms_deform_attn", 0, 1),
        ("ms_deform_attn", 1, 1),
        ("ms_deform_attn_grid", 2, 1),
        ("patch_embed", 0, 1),
        ("patch_embed", 1, 1),
        ("patch_embed", 3, 0),
    ],
)
def test_a_gradient_that_nobody_wants_costs_nothing(op: str, needed: int, share: int) -> None:
    probe = probes()[op].to("cpu", torch.float32)
    tensors = [each.detach() for each in probe.tensors]
    tensors[needed].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        out = probe.run("cpu", *tensors)
        torch.autograd.backward(out, torch.ones_like(out))
    assert counts_of(counter)[ours(f"{op}_backward")] == share * EXPECTED[op][0]


def test_attention_in_one_window_is_counted_as_torchs() -> None:
    """On the CPU torch counts its own only with our help."""
    qkv = torch.randn(2, 12, 3, 4, 16, requires_grad=True)
    counts = []
    for attend in (
        lambda: ops.window_attention(qkv, (3, 4), None),
        lambda: F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)),
    ):
        with FlopCounterMode(display=False) as counter:
            out = attend()
            forward = counter.get_total_flops()
            out.sum().backward()
        counts.append((forward, counter.get_total_flops()))
    assert counts[0] == counts[1]
    assert counts[0][0] == 4 * 2 * 4 * 12 * 12 * 16


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_forward_of_s_is_what_it_costs(training: bool) -> None:
    model = small_s().train(training)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        model(image())
    assert counter.get_total_flops() == cost(model, 224).total.flops == S_AT_224


def step_of_s() -> int:
    """Of a training step: all products three times, but no gradient of the image, and attention."""
    stem = 2 * 64 * 3 * 9 * 112 * 112
    patches = 2 * 14 * 14 * 384 * 3 * 16 * 16
    attention = 4 * 384 * (8 * 196**2 + 4 * 196**2)  # windows of 14 are the whole grid
    return 3 * S_AT_224 - stem - patches + attention // 2


def depthwise_of_s() -> int:
    return 6 * 2 * 9 * 96 * (28 * 28 + 14 * 14 + 7 * 7)


def test_training_step_of_s_is_counted_as_it_runs() -> None:
    with Calls() as calls:
        backward(small_s()(image()))
    assert ours("batch_norm_backward") in calls.names
    # Backward of dwconv_gelu computes it anew.
    assert sum(calls.flops.values()) == step_of_s() + depthwise_of_s()


def test_training_step_of_s_by_torchs_counter() -> None:
    with FlopCounterMode(display=False) as counter:
        backward(small_s()(image()))
    # Its hooks make modules call their layers: a depthwise convolution, of whose weight torch
    # counts the gradient for all pairs of channels.
    assert counter.get_total_flops() == step_of_s() + (96 - 1) * depthwise_of_s()


def test_products_of_onednn_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    if gemm._by_onednn is None:
        pytest.skip("this torch has no mkldnn::_linear_pointwise")
    monkeypatch.setattr(gemm, "_has_onednn", True)
    with torch.no_grad(), Calls() as calls:
        small_s().eval()(image())
    assert calls.flops["mkldnn._linear_pointwise"] > S_AT_224 / 2
    assert sum(calls.flops.values()) == S_AT_224


IMPORT_COUNTER = "from torch.utils.flop_counter import FlopCounterMode, flop_registry\n"
IMPORT_US = "import vitadapter_fast as vf\nassert 'torch.utils.flop_counter' not in sys.modules\n"
FIND = "import importlib.util\nassert importlib.util.find_spec('torch.utils.flop_counter')\n"
COUNT = """
with FlopCounterMode(display=False) as counter, torch.no_grad():
    vf.ops.dwconv_gelu(torch.rand(1, 4, 8), [(2, 2)], torch.rand(8, 1, 3, 3), None)
print(counter.get_total_flops())
"""
OWN = """
attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
def own(*args, out_val=None):
    return 7
"""
REGISTER = "torch.utils.flop_counter.register_flop_formula(attention, get_raw=True)(own)\n"


def run(code: str) -> str:
    code = "import sys\nimport torch\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param(IMPORT_US + IMPORT_COUNTER, id="we_first"),
        pytest.param(IMPORT_COUNTER + "import vitadapter_fast as vf\n", id="counter_first"),
        pytest.param(IMPORT_US + FIND + IMPORT_COUNTER, id="looked_for_between"),
    ],
)
def test_counter_is_right_in_any_order_of_imports(imports: str) -> None:
    assert int(run(imports + COUNT)) == 2 * 4 * 8 * 9


def test_formula_of_somebody_else_stays() -> None:
    code = IMPORT_COUNTER + OWN + REGISTER + "import vitadapter_fast\n"
    assert run(code + "print(flop_registry[attention] is own)").strip() == "True"
