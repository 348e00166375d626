# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks refuse wrong kernels; their reports say what was measured."""

import copy
import json
import os
import re
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import backbones  # noqa: E402
import bench_backbone  # noqa: E402
import figures  # noqa: E402
import gate  # noqa: E402
import problems  # noqa: E402
import report  # noqa: E402
import runtimes  # noqa: E402
import workloads  # noqa: E402
from worker import PASSES, Spec  # noqa: E402

from vitadapter_fast.ops.dwconv_gelu import cpu as conv  # noqa: E402

SMALL = {"model": "s", "image": 64}
COMMITTED = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def spec(kind: str, contender: str = problems.OURS, **shape: Any) -> Spec:
    if kind == "ms_deform_attn":
        shape = {"side": "injector", "entry": "op", **shape}
    return Spec(kind, contender, {**SMALL, **shape})


@pytest.mark.parametrize("kind", problems.PROBLEMS)
def test_every_contender_passes_its_check_and_runs_both_ways(kind: str) -> None:
    contenders = problems.PROBLEMS[kind](spec(kind)).contenders
    assert problems.OURS in contenders and len(contenders) > 1
    for contender in contenders:
        work = workloads.build(spec(kind, contender))
        work.check()
        for passes in PASSES:
            work.run(passes, 1)
            assert work.bytes_moved[passes] > 0


@pytest.mark.parametrize("contender", [backbones.OURS, backbones.PLAIN, backbones.ARITHMETIC])
@pytest.mark.parametrize("model", ["s", "dinov3-s"])
def test_backbone_runs(model: str, contender: str) -> None:
    shape = {"model": model, "image_hw": (64, 64), "batch": 2}
    work = workloads.build(Spec("backbone", contender, shape))
    work.check()
    work.run(PASSES[0], 0)
    if contender != backbones.ARITHMETIC:
        work.run(PASSES[1], 0)


@pytest.mark.thorough
@pytest.mark.parametrize("runtime", ["OpenVINO", "onnxruntime"])
def test_backbone_runs_in_a_runtime(runtime: str) -> None:
    if runtime not in runtimes.found("float32"):
        pytest.skip(f"{runtime} is not installed")
    shape = {"model": "s", "image_hw": (64, 96), "batch": 2}
    spec = Spec("backbone", runtime, shape, threads=1)
    work = workloads.build(spec)
    work.check()
    maps = work.run(PASSES[0], 0)
    assert [tuple(part.shape[2:]) for part in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    row = next(row for row in bench_backbone.cases("cpu", "cpu") if row.spec.contender == runtime)
    assert row.passes == PASSES[0]


@pytest.mark.thorough
def test_a_wrong_runtime_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    right = runtimes.InRuntime.forward
    wrong = lambda self, image: [1.001 * part for part in right(self, image)]  # noqa: E731
    monkeypatch.setattr(runtimes.InRuntime, "forward", wrong)
    shape = {"model": "s", "image_hw": (64, 64), "batch": 1}
    work = workloads.build(Spec("backbone", "onnxruntime", shape))
    with pytest.raises(AssertionError, match="map 0 in eval"):
        work.check()


@pytest.mark.parametrize("broken", ["forward", "backward"])
def test_a_wrong_kernel_fails_its_check(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(conv, broken)

    def wrong(*args: Any) -> Any:
        result = right(*args)
        (result if broken == "forward" else result[1])[..., -1] *= 1.001
        return result

    work = workloads.build(spec("dwconv_gelu"))
    work.check()
    monkeypatch.setattr(conv, broken, wrong)
    with pytest.raises(AssertionError, match="exceeds"):
        work.check()


def test_a_wrong_backbone_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"model": "s", "image_hw": (64, 64), "batch": 1}
    work = workloads.build(Spec("backbone", backbones.OURS, shape))
    right = conv.forward
    monkeypatch.setattr(conv, "forward", lambda call: right(call) * 1.05)
    with pytest.raises(AssertionError, match="exceeds"):
        work.check()


BREAK = """
import vitadapter_fast.ops
from vitadapter_fast.ops.dwconv_gelu import cpu
right = cpu.forward
cpu.forward = lambda call: right(call) * 1.01
"""


def test_a_wrong_kernel_is_a_failed_benchmark_without_a_time(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BREAK)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--scale", "smoke"]
    command += ["--threads", "1", "-k", "dwconv_gelu", f"--benchmark-json={tmp_path / 'out.json'}"]
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    # A worker of xdist times nothing.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [*command, "benchmarks/bench_operators.py"],
        cwd=ROOT,
        env=env | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "refused to time it" in done.stdout and "2 failed, 2 passed" in done.stdout
    run = report.load(tmp_path / "out.json")
    assert {result.contender for result in run.results} == {"split + conv2d + cat"}
    assert all(result.facts["peak_bytes"] > 2**20 for result in run.results)


def document() -> dict[str, Any]:
    """Return the file of a made-up run."""

    def entry(kind: str, contender: str, passes: str, seconds: float) -> dict[str, Any]:
        facts = {"kind": kind, "shape": "s@64", "passes": passes, "contender": contender}
        facts |= {"dtype": "float32", "version": "1", "images_per_s": 1 / seconds}
        facts |= {"device_ms": None, "flops": 10**9, "bytes": 10**6, "share_of_limit": 0.5}
        facts |= {"peak_bytes": 2**30, "saved_bytes": 0}
        return {"stats": {"median": seconds, "iqr": seconds / 50}, "extra_info": facts}

    machine = {"device": "some processor", "threads": 2, "torch": "2.13.0"}
    machine["limits"] = {"float32": {"flops_per_s": 1e11, "bytes_per_s": 1e10}}
    names = {"backbone": "plain PyTorch", "dwconv_gelu": "split + conv2d + cat"}
    entries = [
        entry(kind, contender, passes, seconds)
        for kind, other in names.items()
        for passes in PASSES
        for contender, seconds in ((report.OURS, 0.1), (other, 0.25))
    ]
    return {"machine_info": machine, "benchmarks": entries}


def write(folder: Path, name: str, content: dict[str, Any]) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_report_writes_tables_and_pictures(tmp_path: Path) -> None:
    path = write(tmp_path, "run.json", document())
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), str(path), "-o"]
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    assert "some processor, 2 threads, torch 2.13.0" in text
    assert "| s@64 | forward | float32 | **100** | 250 (2.5x) | 50% | 1,024 |" in text
    pictures = {each.name for each in (tmp_path / "out").glob("*.png")}
    assert pictures == {"throughput.png", "operators.png", "roofline.png", "boxes.png"}
    assert all(f"![{name}]({name})" in text for name in pictures)


def test_compare_names_what_got_slower_by_more_than_the_noise(tmp_path: Path) -> None:
    old, new = document(), document()
    new["benchmarks"][0]["stats"]["median"] *= 1.3
    new["benchmarks"][2]["stats"]["median"] *= 1.3
    new["benchmarks"][2]["stats"]["iqr"] = 0.08  # noise
    new["benchmarks"][4]["stats"]["median"] *= 1.04
    new["benchmarks"][1]["stats"]["median"] *= 2  # not ours
    runs = [report.load(write(tmp_path, "run.json", each)) for each in (old, new)]
    (line,) = report.compare(*runs)
    assert line.startswith("backbone s@64 forward float32 vitadapter_fast: 100 ms -> 130 ms, +30%")
    other = copy.deepcopy(new)
    other["machine_info"]["device"] = "another"
    with pytest.raises(report.BadFile, match="one device, got some processor and another"):
        report.compare(runs[0], report.load(write(tmp_path, "run.json", other)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "was not written by"),
        ('{"benchmarks": [], "machine_info": {}}', "'threads'"),
        (json.dumps({**document(), "benchmarks": []}), "holds no results"),
        (json.dumps({**document(), "benchmarks": [{"stats": {}}]}), "'extra_info'"),
    ],
)
def test_bad_file_is_an_error_that_says_why(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(report.BadFile, match=message):
        report.load(path)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(report.BadFile, match="cannot read"):
        report.load(tmp_path / "none.json")


def test_readme_and_docs_hold_tables_of_one_committed_run() -> None:
    shown = []
    for page in report.PAGES:
        text = page.read_text()
        begin, end = report.MARKS
        shown.append(text.split(begin)[1].split(end)[0].strip())
    runs = [report.load(path) for path in COMMITTED]
    assert shown in [
        [report.readme_table(run, shapes) for shapes in report.PAGES.values()] for run in runs
    ]
    assert len(re.findall("^[|] [sblg]@", shown[0], re.MULTILINE)) == 10


def test_pages_without_marks_or_a_run_without_shapes_are_left_alone(tmp_path: Path) -> None:
    readme, docs = tmp_path / "README.md", tmp_path / "speed.md"
    pages = {readme: ("s@64",), docs: None}
    marked = f"a\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\nb\n"
    readme.write_text(marked)
    docs.write_text("no marks\n")
    path = write(tmp_path, "run.json", document())
    with pytest.raises(report.BadFile, match="speed.md must have each of"):
        report.write_readme(path, pages)
    assert (readme.read_text(), docs.read_text()) == (marked, "no marks\n")
    docs.write_text(marked)
    with pytest.raises(report.BadFile, match="has no backbone s@65, for .*README.md"):
        report.write_readme(path, {readme: ("s@64", "s@65"), docs: None})
    assert readme.read_text() == docs.read_text() == marked
    report.write_readme(path, pages)
    for page in pages:
        assert "| s@64 | forward | **10** | 4 (2.5x) | 1.00 | 1.00 |" in page.read_text()
        assert "old" not in page.read_text()
    assert path.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_results_can_be_drawn(path: Path, tmp_path: Path) -> None:
    run = report.load(path)
    assert figures.write_all(run, tmp_path) and run.machine["device"]


def test_gate_passes_what_is_within_15_percent_and_names_the_rest() -> None:
    wanted = {"a forward": 0.5, "b forward": 0.5}
    found = {"a forward": 0.57, "b forward": 0.58, "c forward": 0.1}
    lines = gate.verdicts(found, wanted, gate.LOSS)
    assert [fine for _, fine in lines] == [True, False, False]
    assert lines[1][0] == "b forward: 0.580, was 0.500 (+16%)"


def test_gate_allows_more_on_processors_it_does_not_know() -> None:
    of_old = {"a forward": 0.5, "b forward": 0.2, "b bfloat16 forward": 0.1}
    kept = {"old": of_old, "new": {"a forward": 0.4}}
    assert gate.references(kept, "old") == (of_old, gate.LOSS)
    b = 0.2 * gate.OTHER_PROCESSOR / gate.LOSS
    assert gate.references(kept, "new") == ({"a forward": 0.4, "b forward": b}, gate.LOSS)
    wanted = {"a forward": 0.5, "b forward": 0.2}
    assert gate.references(kept, "unknown") == (wanted, gate.OTHER_PROCESSOR)


class _Processes:
    """Of a machine where every process finds the next of some ratios."""

    def __init__(self, ratios: list[float]) -> None:
        self.ratios = iter(ratios)

    def submit(self, _: Any, name: str) -> Any:
        done: Future[dict[str, float]] = Future()
        done.set_result({f"{name} forward": next(self.ratios)})
        return done


def test_gate_tries_again_what_seems_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ROWS", ["a", "b", "b bfloat16"])
    allowed = {"a forward": 0.5, "b forward": 0.5}
    processes: Any = _Processes([0.7, 0.4, *[0.6] * gate._TRIES])
    assert gate.compare(processes, allowed) == {"a forward": 0.4, "b forward": 0.6}


def test_gate_knows_every_operator_of_the_library_and_a_layer() -> None:
    wanted = {f"{row} {each}" for row in gate.ROWS for each in PASSES}
    assert set().union(*json.loads(gate.FILE.read_text()).values()) == wanted
    packets = vars(torch.ops.vitadapter_fast).values()
    operators = {packet.__name__ for packet in packets if hasattr(packet, "default")}
    known = {name.removesuffix("_backward") for name in operators}
    assert known | {"feed_forward", "stem_convolution"} == set(gate.RIVALS)
