# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Times are of one clock and of right results: shown without a GPU."""

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_benchmarks import document, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import agreement  # noqa: E402
import backbones  # noqa: E402
import estimate  # noqa: E402
import figures  # noqa: E402
import problems  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import sweeps  # noqa: E402
import workloads  # noqa: E402
from cuda_path import cuda_path  # noqa: E402
from plain import Plain  # noqa: E402
from tiny import WINDOWED  # noqa: E402
from worker import PASSES, Spec  # noqa: E402

from vitadapter_fast import ViTAdapter  # noqa: E402
from vitadapter_fast.ops.dwconv_gelu import cpu as conv  # noqa: E402


class Waits(AssertionError):
    """What a captured graph may not do."""


class Capturable(TorchDispatchMode):
    """Refuse what waits for a device or copies from the host; the device is that of the call."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op._schema.name.split("::")[1]
        if name in ("_local_scalar_dense", "nonzero", "lift_fresh", "lift_fresh_copy", "unique"):
            raise Waits(name)
        out = op(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, out)):
            if isinstance(each, Tensor) and each.device.type != self.device:
                raise Waits(f"{name} on {each.device}")
        return out


def steps(module: torch.nn.Module, image: Tensor) -> None:
    """Run both passes once to make what is made once, then again where nothing may wait."""
    for is_watched in (False, True):
        with Capturable("cpu") if is_watched else torch.enable_grad():
            with torch.no_grad():
                module.eval()(image)
            maps = module.train()(image)
            torch.autograd.backward(maps, [torch.ones_like(part) for part in maps])


@pytest.mark.parametrize("has_sdpa", [False, True])
def test_the_composition_can_be_captured(has_sdpa: bool) -> None:
    steps(Plain(ViTAdapter(**WINDOWED), has_sdpa=has_sdpa), torch.randn(2, 3, 64, 96))


def test_the_composition_stays_on_its_device() -> None:
    with torch.device("meta"):
        plain = Plain(ViTAdapter(**WINDOWED))
        image = torch.empty(1, 3, 64, 64)
    plain.prepare((64, 64), "meta")
    with Capturable("meta"), torch.no_grad():
        plain.eval()(image)


def test_what_waits_for_a_device_is_seen() -> None:
    for wait in (
        lambda: torch.ones(1).item(),
        lambda: torch.tensor([[1, 2]]),
        torch.ones(2).nonzero,
    ):
        with Capturable("cpu"), pytest.raises(Waits):
            wait()
    with Capturable("meta"), pytest.raises(Waits, match="on cpu"):
        torch.ones(1).to("meta")


def test_ours_can_be_captured() -> None:
    with cuda_path():
        steps(ViTAdapter(**WINDOWED), torch.randn(2, 3, 64, 96))


@pytest.mark.parametrize("kind", ["ms_deform_attn", *sweeps.SWEEPS])
def test_rivals_of_the_attention_can_be_captured(kind: str) -> None:
    shapes = {
        "ms_deform_attn": {"model": "s", "image": 64, "side": "injector", "entry": "block"},
        "sweep_value_gradient": {"side": 8, "query_hw": (8, 16)},
        "sweep_generic": sweeps.generic_shapes(8)["2 levels"],
    }
    contenders = workloads._problem(Spec(kind, "", shapes[kind])).contenders
    for contender in contenders:
        work = workloads.build(Spec(kind, contender, shapes[kind]))
        work.check()
        for passes in PASSES:
            work.run(passes, 0)
            if not contender.startswith(problems.OURS):
                with Capturable("cpu"):
                    work.run(passes, 0)


@pytest.mark.parametrize("has_sdpa", [False, True])
def test_the_composition_is_one_graph_to_a_compiler(has_sdpa: bool) -> None:
    plain = Plain(ViTAdapter(**WINDOWED).eval(), has_sdpa=has_sdpa)
    plain.prepare((64, 96), "cpu")
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        whole = torch.compile(plain, backend="eager", fullgraph=True, dynamic=False)
        for one, other in zip(whole(image), plain(image), strict=True):
            torch.testing.assert_close(one, other)


def test_fused_attention_computes_the_same() -> None:
    adapter = ViTAdapter(**WINDOWED)
    pair = Plain(adapter), Plain(adapter, has_sdpa=True)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for one, other in zip(*(module.eval()(image) for module in pair), strict=True):
            torch.testing.assert_close(one, other)


EXACT = """
import os, sys
import torch
from vitadapter_fast.export._precision import exact_products

def state():
    found = {}
    for name in ("cudnn.allow_tf32", "cuda.matmul.allow_tf32", "fp32_precision",
                 "cudnn.conv.fp32_precision", "cuda.matmul.fp32_precision"):
        try:
            found[name] = eval("torch.backends." + name)
        except (RuntimeError, AttributeError) as error:
            found[name] = type(error).__name__
        if found[name] in ("none", "ieee"):  # the older switch leaves the second for the first
            found[name] = "exact"
    try:
        found["matmul"] = torch.get_float32_matmul_precision()
    except RuntimeError:
        found["matmul"] = "mixed"
    return found

for setting in sys.argv[1:]:
    if os.fork() == 0:
        exec(setting)
        before = state()
        try:
            with exact_products():
                inside = state()
                raise KeyError
        except KeyError:
            pass
        is_new = hasattr(torch.backends.cudnn, "conv")
        if is_new:
            exact = {inside["cudnn.conv.fp32_precision"], inside["cuda.matmul.fp32_precision"]}
            assert exact == {"exact"}, inside
        else:
            assert not inside["cudnn.allow_tf32"] and inside["matmul"] == "highest", inside
        assert state() == before, (before, state())
        os._exit(0)
    assert os.wait()[1] == 0, setting
"""
SETTINGS = [
    "pass",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
]
NEW_SETTINGS = [
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cudnn.fp32_precision = 'ieee'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
]


def test_exact_products_take_either_api_and_give_it_back() -> None:
    settings = SETTINGS + NEW_SETTINGS * hasattr(torch.backends.cuda.matmul, "fp32_precision")
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
    command = [sys.executable, "-c", EXACT, *settings]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def in_bfloat16(module: Any, pixels: Tensor, is_low: bool = True) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=is_low):
        return list(module(pixels))


def test_in_16_bits_ours_may_be_as_wrong_as_the_composition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = backbones.fill(ViTAdapter(**WINDOWED))
    image = torch.randn(2, 3, 64, 96)
    agreement.check_maps(adapter, Plain(adapter), in_bfloat16, image, is_low=True)
    right = conv.forward
    monkeypatch.setattr(conv, "forward", lambda call: right(call) * 1.2)
    with pytest.raises(AssertionError, match="exceeds"):
        agreement.check_maps(adapter, Plain(adapter), in_bfloat16, image, is_low=True)


def test_maps_that_are_not_numbers_are_wrong() -> None:
    adapter = ViTAdapter(**WINDOWED)
    broken = copy.deepcopy(adapter)
    torch.nn.init.constant_(broken.norm1.bias, math.nan)
    with pytest.raises(AssertionError, match="map 0 in eval: error nan"):
        agreement.check_maps(
            broken, Plain(adapter), in_bfloat16, torch.randn(1, 3, 64, 64), is_low=True
        )


def on_a_gpu() -> dict[str, Any]:
    """Return a file with times of both clocks; the rival of the backbone was not captured."""
    found = document()
    found["machine_info"]["cuda"] = "13.0"
    for entry in found["benchmarks"]:
        facts = entry["extra_info"]
        if facts["contender"] != "plain PyTorch":
            device_ms = 20.0 if facts["contender"] == report.OURS else 60.0
            facts |= {"device_ms": device_ms, "device_iqr_ms": 0.1}
    return found


def test_each_clock_has_its_column_and_no_ratio_is_of_two(tmp_path: Path) -> None:
    run = report.load(write(tmp_path, "run.json", on_a_gpu()))
    text = report.tables(run)
    assert (
        "| vitadapter_fast 1, eager | vitadapter_fast 1, graph | plain PyTorch 1, eager |" in text
    )
    assert "| s@64 | forward | float32 | **100** | **20** | 250 (2.5x) |  | 50% |" in text
    assert "| s@64 | forward | float32 | **100** | **20** | 250 (2.5x) | 60 (3.0x) | 50% |" in text
    assert "| s@64 | forward | **10** | **50** | 4 (2.5x) |  |" in report.readme_table(run)
    pictures = set(figures.write_all(run, tmp_path))
    assert {"operators.png", "operators_graph.png", "throughput_graph.png"} <= pictures


def test_compare_takes_each_clock_for_itself(tmp_path: Path) -> None:
    old, new = on_a_gpu(), on_a_gpu()
    new["benchmarks"][0]["extra_info"]["device_ms"] = 30.0
    new["benchmarks"][2]["extra_info"]["device_ms"] = None  # nothing to compare with
    runs = [report.load(write(tmp_path, "run.json", each)) for each in (old, new)]
    (line,) = report.compare(*runs)
    assert line.startswith(
        "backbone s@64 forward float32 vitadapter_fast, graph: 20 ms -> 30 ms, +50%"
    )


def test_a_row_without_a_time_says_why(tmp_path: Path) -> None:
    found = on_a_gpu()
    gone = found["benchmarks"].pop(1)["extra_info"]
    names = ("kind", "shape", "passes", "dtype", "contender")
    found["not_timed"] = [{name: gone[name] for name in names} | {"reason": "out of memory"}]
    text = report.tables(report.load(write(tmp_path, "run.json", found)))
    assert "| s@64 | forward | float32 | **100** | **20** | out of memory |  | 50% |" in text
    assert "- backbone s@64 forward float32 plain PyTorch: out of memory" in text


def test_scale_gpu_is_planned_for_25_minutes_and_collected_without_a_gpu() -> None:
    lines = estimate.table(estimate.rows_of("gpu"))
    assert float(lines[-1].split()[-1]) <= estimate.MINUTES
    command = [sys.executable, "-m", "pytest", "-q", "--scale", "gpu", "--collect-only"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "benchmarks/"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[-1] in done.stdout
    count = len(estimate.rows_of("gpu")) + 3  # the crossover, and two of the host's time
    assert f"{count} tests collected" in done.stdout


def test_contributing_tells_what_the_estimate_says() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for line in estimate.table(estimate.rows_of("gpu")):
        assert line.rstrip() in text


def test_scale_gpu_has_every_rival_where_it_is_strongest() -> None:
    found = {(row.spec.contender, row.shape) for row in estimate.rows_of("gpu")}
    for model in "sblg":
        for batch in ("", " x8"):
            for name in (backbones.OURS, backbones.PLAIN, backbones.SDPA):
                assert (name, f"{model}@1024{batch}") in found
    assert (backbones.SDPA_COMPILED, "s@1024") in found
    assert len(estimate.rows_of("gpu_full")) > 5 * len(found)


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ([(2, 1, 2), (8, 1, 1.5), (32, 4, 3), (64, 9, 5)], 16.0),
        ([(2, 2, 1), (8, 3, 1)], 0.0),
        ([(2, 1, 2), (8, 1, 3)], math.inf),
    ],
)
def test_the_crossover_lies_between_the_last_win_of_atomics_and_the_next(
    times: list[tuple[float, float, float]], wanted: float
) -> None:
    assert sweeps.crossover(times[::-1]) == wanted


def test_sweeps_name_the_constant_to_change(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--scale", "smoke"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    chosen = "crossover or (value_gradient and (2 or 64))"
    done = subprocess.run(
        [*command, "--threads", "1", "-k", chosen, "benchmarks/bench_sweeps.py"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "float32: POINTS_PER_PIXEL = " in done.stdout and "(wall clock)" in done.stdout


def test_global_attention_is_arithmetic_whatever_torch_runs_it_by() -> None:
    """Every operator of torch for it, of any version: flash, efficient, cudnn and more."""
    names = [name for name in dir(torch.ops.aten) if name.startswith("_scaled_dot_product_")]
    assert len(names) > 3 and all(name.startswith(backbones._ATTENTION) for name in names)
    recorded = backbones.Arithmetic()
    query = torch.randn(1, 2, 8, 16)
    with torch.no_grad(), recorded:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert len(recorded.calls) == 1
    recorded.run()


def test_results_of_a_device_have_a_file_of_its_name() -> None:
    assert results.path_of("NVIDIA H100 80GB HBM3").name == "nvidia_h100_80gb_hbm3.json"
