# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Every code block of README, CONTRIBUTING and docs runs; those of frameworks in integrations/."""

import ast
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
import threading
from argparse import ArgumentParser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import published_size, saved
from snippets import BLOCKS, ROOT, Block, run_python, run_shell, runs
from tiny import WINDOWED
from torch import distributed, nn
from torch.distributed.run import get_args_parser

import vitadapter_fast as vf
from vitadapter_fast import ViTAdapter
from vitadapter_fast.commands import cli, export

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PYTHON = {name: block for name, block in BLOCKS.items() if block.language == "python"}


def test_every_block_has_one_test() -> None:
    files = (Path(__file__), Path(__file__).parent / "integrations" / "test_readme_frameworks.py")
    claimed = [
        name for file in files for name in re.findall(r'^@runs\("(.+)"\)', file.read_text(), re.M)
    ]
    assert sorted(claimed) == sorted(BLOCKS)


@pytest.mark.parametrize("block", PYTHON.values(), ids=PYTHON)
def test_what_a_block_imports_of_the_library_is_there(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith(
            "vitadapter_fast"
        ):
            continue
        spec = importlib.util.find_spec(str(node.module))
        assert spec is not None and spec.origin is not None
        # Read, not imported: that may need a framework.
        tree = ast.parse(Path(spec.origin).read_text())
        defined = {getattr(each, "name", "") for each in ast.walk(tree)}
        constants = (each for each in tree.body if isinstance(each, (ast.Assign, ast.AnnAssign)))
        for constant in constants:
            targets = constant.targets if isinstance(constant, ast.Assign) else [constant.target]
            defined |= {getattr(each, "id", "") for each in targets}
        assert {alias.name for alias in node.names} <= defined


def check_pip(command: list[str]) -> None:
    """Fail unless pip would find the constraints and the extras."""
    program, install, *options = command
    assert (program, install, options[0]) == ("pip", "install", "-c")
    assert (ROOT / options[1]).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    match = re.fullmatch(r"\.\[(\w+)\]", options[-1])
    assert match and match[1] in project["optional-dependencies"]
    assert options[2:-1] in ([], ["-e"])


@runs("Start: sh")
def test_quick_start(block: Block, tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="needs the [cli] extra")
    (pip,) = run_shell(block, tmp_path, ["pip"])
    check_pip(pip)
    assert (tmp_path / "features.png").stat().st_size > 100_000


@runs("Start: sh 2")
def test_test_command(block: Block, tmp_path: Path) -> None:
    pip, pytest_command = run_shell(block, tmp_path, ["pip", "pytest"])
    check_pip(pip)
    # Unknown options would be refused.
    command = [sys.executable, "-m", *pytest_command, "--version"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)


@runs("Use: python")
def test_model_of_a_checkpoint(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(published_size("official_small"), tmp_path / "dinov2_vits14_pretrain.pth")
    run_python(block)


@runs("From patch size 14 to 16: sh")
def test_conversions(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    small, base = "dinov2_vits14_pretrain", "dinov2_vitb14_pretrain"
    (tmp_path / "dinov2_vitb14").mkdir()
    saved(published_size("official_base"), tmp_path / "dinov2_vitb14" / f"{base}.pth")
    folder = tmp_path / "user"
    folder.mkdir()
    saved(published_size("official_small"), folder / f"{small}.pth")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("VITADAPTER_DINOV2_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            run_shell(block, folder)
        finally:
            server.shutdown()
    wanted = {f"{name}{end}.pth" for name in (small, base) for end in ("", "_14to16")}
    assert {path.name for path in folder.glob("*.pth")} == wanted


@runs("Operators: python")
def test_operators(block: Block) -> None:
    names = run_python(block)
    assert all(callable(names[name]) for name in names if name != "__builtins__")


@runs("A detector of your own: sh")
def test_training_commands(block: Block) -> None:
    pip, *commands = (shlex.split(line) for line in block.text.splitlines())
    check_pip(pip)
    for (*start, name), arguments in ((each[:4], each[4:]) for each in commands):
        assert start == ["python", "-m", "vitadapter_fast"]
        # As the help has them; those run in integrations/test_train.py.
        assert shlex.join(arguments) == cli._COMMANDS[name].example


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@runs("Several GPUs: python")
def test_model_on_several_gpus(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one process without a GPU, and with a small model for that of 1187 M parameters."""
    init = distributed.init_process_group
    store = distributed.HashStore()

    def init_process_group(backend: str) -> None:
        assert backend == "nccl"
        init("gloo", store=store, rank=0, world_size=1)

    def small(**overrides: Any) -> ViTAdapter:
        return ViTAdapter(**{**WINDOWED, **overrides})

    monkeypatch.setattr(distributed, "init_process_group", init_process_group)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(vf, "vit_adapter_g", small)
    monkeypatch.setenv("LOCAL_RANK", "0")
    try:
        model = run_python(block)["model"]
        sum(each.mean() for each in model(torch.rand(1, 3, 64, 64))).backward()
    finally:
        distributed.destroy_process_group()
    assert type(model).__name__ == "FSDPViTAdapter"


@runs("Several GPUs: sh")
def test_launches_on_several_gpus(block: Block, tmp_path: Path) -> None:
    commands = run_shell(block, tmp_path, ["torchrun"])
    scripts = [get_args_parser().parse_args(arguments) for _, *arguments in commands]
    assert [each.nproc_per_node for each in scripts] == ["8"] * 3
    assert [each.training_script for each in scripts] == ["train.py", "train.py", "tools/train.py"]


@runs("8 bits on the CPU: python")
def test_quantized_model_runs(block: Block) -> None:
    found = run_python(block)
    assert [each.shape[2] for each in found["maps"]] == [128, 64, 32, 16]


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@runs("Small batches on a GPU: python")
def test_captured_model(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, by a small model that runs where its graph would be replayed."""
    signature = inspect.signature(ViTAdapter.captured)

    def captured(self: ViTAdapter, *args: Any, **kwargs: Any) -> ViTAdapter:
        signature.bind(self, *args, **kwargs)
        return self

    monkeypatch.setattr(ViTAdapter, "captured", captured)
    monkeypatch.setattr(nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(vf, "vit_adapter_s", lambda: ViTAdapter(**WINDOWED))
    maps = run_python(block)["maps"]
    assert [each.shape[2:] for each in maps] == [(512 // s, 512 // s) for s in (4, 8, 16, 32)]


@runs("DINOv3: python")
def test_dinov3(block: Block) -> None:
    found = run_python(block)
    assert [each.shape[2:] for each in found["maps"]] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert (found["model"].has_frozen_vit, found["tuned"].has_frozen_vit) == (True, False)


@runs("Export: sh")
def test_export_commands(block: Block) -> None:
    pip, *exports = (shlex.split(line) for line in block.text.splitlines())
    check_pip(pip)
    parser = ArgumentParser()
    export.add_arguments(parser)
    for command in exports:
        assert command[:4] == ["python", "-m", "vitadapter_fast", "export"]
        parsed = parser.parse_args(command[4:])
        assert parsed.out.suffix == f".{parsed.format}"


@runs("Export: python")
def test_exported_package(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model in place of the package, which test_export_command.py loads."""
    load = {"s.pt2": ViTAdapter(**WINDOWED).eval()}.__getitem__
    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    maps = run_python(block)["maps"]
    assert [each.shape[2:] for each in maps] == [(480 // s, 640 // s) for s in (4, 8, 16, 32)]


@runs("8 bits in onnxruntime: python")
def test_quantization(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with one product; test_export_onnx.py does it with a model."""
    onnx = pytest.importorskip("onnx", reason="needs the [export] extra")
    pytest.importorskip("onnxruntime", reason="needs the [export] extra")
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weight = make.make_tensor("weight", float32, [64, 64], [0.5] * 64**2)
    image, out = (make.make_tensor_value_info(name, float32, [1, 64]) for name in ("image", "out"))
    product = make.make_node("MatMul", ["image", "weight"], ["out"])
    graph = make.make_graph([product], "graph", [image], [out], [weight])
    opset = make.make_opsetid("", 20)
    monkeypatch.chdir(tmp_path)
    onnx.save(make.make_model(graph, opset_imports=[opset], ir_version=10), "s.onnx")
    run_python(block)
    nodes = onnx.load("s_int8.onnx").graph.node
    assert "MatMulInteger" in {node.op_type for node in nodes}


@runs("OpenVINO: python")
def test_openvino(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the [test] extra")
    monkeypatch.chdir(tmp_path)
    model = ViTAdapter(**WINDOWED).eval()
    run_python(block, model=model)
    image = torch.randn(1, 3, 256, 320)
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    outputs = openvino.compile_model("s.xml", "CPU", options)(image.numpy())
    with torch.no_grad():
        wanted = model(image)
    for index, part in enumerate(wanted):
        torch.testing.assert_close(torch.from_numpy(outputs[index]), part, rtol=1e-4, atol=1e-4)


@runs("Any other trainer: python")
def test_optimizer(block: Block) -> None:
    model = ViTAdapter(**WINDOWED)
    optimizer = run_python(block, model=model)["optimizer"]
    held = [each for group in optimizer.param_groups for each in group["params"]]
    assert len(held) == len(list(model.parameters()))
    assert max(group["lr"] for group in optimizer.param_groups) == 1e-4


@runs("Contributing: sh")
def test_contributors_commands(block: Block, tmp_path: Path) -> None:
    calls = run_shell(block, tmp_path, ["pip", "pre-commit", "make", ".ci/run"])
    pip, hook, make, make_all, gate, fuzz, sanitize, everything = calls
    check_pip(pip)
    assert hook == ["pre-commit", "install"] and (ROOT / ".pre-commit-config.yaml").is_file()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in (make, make_all, fuzz, sanitize):
        assert command[0] == "make" and set(command[1:]) <= set(targets)
    assert gate[0] == "python" and (ROOT / gate[1]).is_file() and gate[2:] == []
    assert everything == ["run"] and (ROOT / ".ci" / "run").stat().st_mode & 0o100
