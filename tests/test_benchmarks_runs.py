# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever happens in a run, its file is whole: with a device's clock, which is a fake one here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import report  # noqa: E402
from worker import PASSES, Failed, Spec, Worker  # noqa: E402

# What happens to contenders of the operators, and to questions about the machine. Every process of
# a run imports it first.
FAKES = """
import os
import limits, torch, worker, workloads
from pathlib import Path

def fail(*args):
    raise ModuleNotFoundError("nothing here knows")

limits.device_name = limits.measure = fail

def graph_ms(self, name):
    if self.spec.contender == "split + conv2d + cat":
        with Path(os.environ["PIDS"]).open("a") as file:
            file.write(f"{os.getpid()}\\n")
        return {"device_ms": None, "not_captured": "copies from the host", "is_spoiled": True}
    if self.spec.contender == "pad + views + SDPA":
        os._exit(5)
    return {"device_ms": 0.125, "device_iqr_ms": 0.002}

worker._Session.graph_ms = graph_ms
run = workloads._Calls.run

def run_or_not(self, name, index):
    what = self.spec.kind, self.spec.contender, name
    if what == ("window_attention", "unfold + softmax + fold", "forward+backward"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.88 GiB")
    if what == ("patch_embed", "vitadapter_fast", "forward+backward"):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
    if what == ("batch_norm", "torch", "forward"):
        os._exit(7)
    return run(self, name, index)

workloads._Calls.run = run_or_not

from vitadapter_fast.ops.batch_norm import cpu
right = cpu.forward
cpu.forward = lambda call: tuple(part * 1.01 for part in right(call))
"""
# The first contender is timed, the second hangs.
HANG = """
import signal, time, workloads
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off
run = workloads._Calls.run

def run_or_hang(self, name, index):
    if self.spec.contender != "vitadapter_fast":
        time.sleep(15)
    return run(self, name, index)

workloads._Calls.run = run_or_hang
"""


def start(folder: Path, fakes: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(fakes)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--scale", "smoke"]
    command += ["--threads", "1", f"--benchmark-json={folder / 'out.json'}"]
    path = [folder, ROOT, ROOT / "benchmarks", ROOT / "tests" / "helpers"]
    # A worker of xdist times nothing.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    env |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "PIDS": str(folder / "pids")}
    return subprocess.Popen(
        [*command, "benchmarks/bench_operators.py"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class Done:
    """What a run with fakes left."""

    def __init__(self, folder: Path) -> None:
        process = start(folder, FAKES)
        self.text = process.communicate(timeout=300)[0]
        self.code = process.returncode
        self.document = json.loads((folder / "out.json").read_text())
        self.run = report.load(folder / "out.json")
        self.pids = (folder / "pids").read_text().split()

    def times(self, kind: str, contender: str) -> list[str]:
        found = [r for r in self.run.results if (r.kind, r.contender) == (kind, contender)]
        return [result.passes for result in found]

    def reason(self, kind: str, contender: str, passes: str) -> str:
        return self.run.not_timed[kind, "s@128", passes, "float32", contender]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(tmp_path_factory.mktemp("run"))


def test_a_machine_that_tells_nothing_costs_no_result(done: Done) -> None:
    assert done.run.machine["device"] == "unknown" and done.run.machine["limits"] == {}
    assert all(result.facts["share_of_limit"] is None for result in done.run.results)
    assert done.run.is_complete and "## Not timed" in report.tables(done.run)


def test_a_contender_out_of_memory_is_skipped_with_its_reason(done: Done) -> None:
    assert done.times("window_attention", "unfold + softmax + fold") == ["forward"]
    name = "unfold + softmax + fold"
    assert done.reason("window_attention", name, "forward+backward") == "out of memory"
    assert f"{name}: out of memory" in done.text


def test_ours_out_of_memory_is_no_failure(done: Done) -> None:
    assert done.reason("patch_embed", report.OURS, "forward+backward") == "out of memory"
    assert "FAILED benchmarks/bench_operators.py::test_operator[patch_embed" not in done.text


def test_a_contender_that_dies_is_skipped(done: Done) -> None:
    assert "died, exit code 7" in done.reason("batch_norm", "torch", "forward")
    assert done.times("batch_norm", "torch") == ["forward+backward"]  # in a new process


def test_ours_refused_is_the_failure_and_has_no_time(done: Done) -> None:
    assert done.code == 1 and "refused to time it" in done.text and "2 failed" in done.text
    assert done.times("batch_norm", report.OURS) == []
    assert "exceeds" in done.reason("batch_norm", report.OURS, "forward")


def test_nothing_is_timed_in_a_process_whose_capture_failed(done: Done) -> None:
    assert len(done.times("dwconv_gelu", "split + conv2d + cat")) == 2
    assert len(set(done.pids)) == 2


def test_a_process_that_dies_in_a_capture_keeps_its_eager_time(done: Done) -> None:
    name = "pad + views + SDPA"
    assert done.times("window_attention", name) == list(PASSES)
    found = [result.facts for result in done.run.results if result.contender == name]
    assert all(each["device_ms"] is None for each in found)
    assert all("exit code 5" in each["not_captured"] for each in found)


def test_a_run_cut_short_keeps_what_it_has(tmp_path: Path) -> None:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    runs = {each: (tmp_path / each.name, start(tmp_path / each.name, HANG)) for each in signals}
    for each, (folder, process) in runs.items():
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            try:
                count = len(report.load(folder / "out.json").results)
            except report.BadFile:
                count = 0
            if count == 2:  # both passes of ours; the next contender hangs
                break
            time.sleep(0.2)
        process.send_signal(each)
    for folder, process in runs.values():
        process.communicate(timeout=300)
        run = report.load(folder / "out.json")
        assert len(run.results) == 2 and not run.is_complete
        assert "Partial: the run was cut short after 2 results." in report.tables(run)
        with pytest.raises(report.BadFile, match="is partial"):
            report.write_readme(folder / "out.json", {tmp_path / "README.md": None})


def test_who_takes_too_long_is_ended() -> None:
    shape = {"model": "s", "image": 64}
    worker = Worker(Spec("dwconv_gelu", report.OURS, shape, threads=1), patience_s=0.0)
    with pytest.raises(Failed, match="took longer than 0 s") as caught:
        worker.ask("check")
    assert not caught.value.is_out_of_memory
    worker.stop()
    assert not worker._process.is_alive()


def test_a_run_without_time_for_a_row_is_no_complete_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--scale", "smoke"]
    command += ["--minutes", "0", "-k", "dwconv_gelu", "benchmarks/bench_operators.py"]
    path = tmp_path / "out.json"
    done = subprocess.run([*command, f"--benchmark-json={path}"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    document = json.loads(path.read_text())
    assert document["is_complete"] is False and not document["benchmarks"]
    assert {each["reason"] for each in document["not_timed"]} == {"no time left"}
