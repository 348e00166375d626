# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The export command, with the smallest model in place of S; and packages in a new process."""

import builtins
import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor
from export_cases import max_errors, smallest, smallest_model
from folders import names_in

import vitadapter_fast
from vitadapter_fast.commands import cli, options
from vitadapter_fast.export._files import appearing

onnx = pytest.importorskip("onnx", reason="needs the [export] extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the [export] extra")
pytest.importorskip("onnxscript", reason="needs the [export] extra")

STATIC = ["export", "--static", "--size", "64x96"]
ONNX = [*STATIC, "--format", "onnx", "--out", "model.onnx"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "vit_adapter", smallest)


def test_weights_too_large_for_onnx_lie_beside_it(tmp_path, monkeypatch):
    import torch.onnx._internal.exporter._onnx_program as written

    monkeypatch.setattr(written, "_LARGE_MODEL_THRESHOLD", 10_000)
    assert cli.main(ONNX) == 0
    assert names_in(tmp_path) == ["model.onnx", "model.onnx.data"]
    image = torch.randn(1, 3, 64, 96)
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = smallest_model()(image)
    assert max(max_errors(session.run(None, {"image": image.numpy()}), wanted)) < 1e-4


def spoil(path, **kwargs):
    """Stand in for the check of the written file, and change one of its weights."""
    model = onnx.load(path)
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


def test_file_that_disagrees_exits_1_and_does_not_appear(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx.checker, "check_model", spoil)
    Path("model.onnx").write_bytes(b"old")
    assert cli.main([*ONNX, "--force"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: export: what was written is off at 64 x 96: errors")
    assert err.count("\n") == 1
    assert names_in(tmp_path) == ["model.onnx"]
    assert Path("model.onnx").read_bytes() == b"old"


def test_existing_file_is_kept(tmp_path, capsys):
    Path("model.onnx").write_bytes(b"old")
    assert cli.main(ONNX) == 1
    assert capsys.readouterr().err == "error: model.onnx: exists; --force replaces it\n"
    assert Path("model.onnx").read_bytes() == b"old"


def test_force_does_not_replace_the_weights(capsys):
    Path("model.onnx").write_bytes(b"weights")
    assert cli.main([*ONNX, "--force", "--weights", "model.onnx"]) == 1
    assert "onto the input" in capsys.readouterr().err
    assert Path("model.onnx").read_bytes() == b"weights"


def test_interrupted_writing_leaves_the_old_file(tmp_path):
    Path("model.onnx").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), appearing(Path("model.onnx")) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert names_in(tmp_path) == ["model.onnx"]
    assert Path("model.onnx").read_bytes() == b"old"


def test_missing_folder_is_told(capsys):
    assert cli.main([*STATIC, "--format", "onnx", "--out", "gone/model.onnx"]) == 1
    assert "the folder gone does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["64x", "16", "0x32"])
def test_wrong_size_exits_2(size):
    with pytest.raises(SystemExit) as error:
        cli.main(["export", "--format", "onnx", "--out", "model.onnx", "--size", size])
    assert error.value.code == 2


def test_missing_extra_names_the_remedy(capsys, monkeypatch):
    real = builtins.__import__

    def without_onnxruntime(name, *args, **kwargs):
        if name.partition(".")[0] == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_onnxruntime)
    assert cli.main(ONNX) == 1
    assert capsys.readouterr().err == (
        "error: this command needs onnxruntime: pip install 'vitadapter_fast[export]'\n"
    )


LOAD = """
import torch, vitadapter_fast
maps = torch._inductor.aoti_load_package("model.pt2")(torch.load("image.pt"))
torch.save(maps, "maps.pt")
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of a package, and what the command printed."""
    folder = tmp_path_factory.mktemp("package")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        patch.setattr(options, "vit_adapter", smallest)
        # Half the time of the test; the kernels are optimized all the same.
        patch.setattr(inductor.aot_inductor, "compile_wrapper_opt_level", "O0")
        assert cli.main([*STATIC, "--format", "pt2", "--out", "model.pt2"]) == 0
    return folder, out.getvalue()


def test_error_of_every_map_is_printed(package):
    pattern = r"64x96: error relative to the peak:( 1/\d+ \d\.\de-\d+,?){4} \(allowed 1e-04\)"
    assert re.search(pattern, package[1])


def test_random_weights_are_called_so(package):
    assert package[1].startswith("weights: random (seed 0): the file is of an untrained network")


def test_package_runs_in_a_new_process(package):
    folder, _ = package
    assert names_in(folder) == ["model.pt2"]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = smallest_model()(image)
    torch.save(image, folder / "image.pt")
    tree = str(Path(vitadapter_fast.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": tree}
    subprocess.run([sys.executable, "-c", LOAD], check=True, cwd=folder, env=environment)
    assert max(max_errors(torch.load(folder / "maps.pt"), wanted)) < 1e-4
