# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""torch.export sees a whole model, for one size or for all, with our operators in it."""

import subprocess
import sys
from collections import Counter

import pytest
import torch
from export_cases import max_errors, smallest_model
from tiny import WINDOWED
from torch import Tensor

import vitadapter_fast as vf
from vitadapter_fast.export import _parity, export_program
from vitadapter_fast.presets import PRESETS

# Dynamic sizes cost seconds for each block: two have all that the sizes meet.
SHALLOW = {
    "depth": 2,
    "interaction_indexes": [[0, 1]],
    "window_attn": [True, False],
    "window_size": 14,
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_exports_for_one_size(name):
    with torch.device("meta"):
        model = vf.vit_adapter(name).eval()
    program = export_program(model, (224, 288))
    counts = Counter(
        str(node.target).split(".")[1]
        for node in program.graph.nodes
        if str(node.target).startswith("vitadapter_fast.")
    )
    stages, depth = 4, PRESETS[name].depth
    assert counts == {
        "patch_embed": 1,
        "window_attention": depth - stages,
        "ms_deform_attn_grid": 2 * stages + 2,
        "dwconv_gelu": stages + 2,
    }


@pytest.mark.parametrize("name", PRESETS)
def test_preset_exports_for_all_sizes(name):
    with torch.device("meta"):
        model = vf.vit_adapter(name, **SHALLOW).eval()
    graph = export_program(model).graph
    *_, image = (node.meta["val"] for node in graph.nodes if node.op == "placeholder")
    maps = [node.meta["val"] for node in graph.output_node().args[0]]
    assert all(isinstance(size, torch.SymInt) for size in (image.shape[0], *image.shape[2:]))
    B, _, H, W = image.shape
    C = PRESETS[name].embed_dim
    strides = (4, 8, 16, 32)
    assert [each.shape for each in maps] == [(B, C, H // s, W // s) for s in strides]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A model, and its program after it was saved and loaded."""
    model, path = smallest_model(), tmp_path_factory.mktemp("program") / "program.pt2"
    torch.export.save(export_program(model), path)
    return model, torch.export.load(path).module()


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 96, 320)], ids=str)
def test_saved_program_computes_what_the_model_does(shape, loaded):
    model, program = loaded
    image = torch.randn(shape)
    with torch.no_grad():
        assert max(max_errors(program(image), model(image))) < 1e-5


@pytest.fixture(scope="module")
def decomposed(tmp_path_factory):
    """Models with every part, and files of their programs in torch's operators alone."""
    own = {"trunk": "dinov3", "window_attn": False, "injectors": False, "final_norm": True}
    found = {}
    for name, overrides in {"dinov2": {}, "dinov3": own}.items():
        model, path = smallest_model(**overrides), tmp_path_factory.mktemp(name) / "program.pt2"
        program = export_program(model, None if name == "dinov2" else (96, 320), decompose=True)
        assert not [node for node in program.graph.nodes if "vitadapter" in str(node.target)]
        torch.export.save(program, path)
        found[name] = model, path
    return found


@pytest.mark.parametrize(
    ("name", "shape"),
    [("dinov2", (1, 3, 64, 64)), ("dinov2", (3, 3, 96, 320)), ("dinov3", (1, 3, 96, 320))],
    ids=str,
)
def test_decomposed_program_computes_what_the_model_does(name, shape, decomposed):
    model, path = decomposed[name]
    image = torch.randn(shape)
    with torch.no_grad():
        program = torch.export.load(path).module()
        assert max(max_errors(program(image), model(image))) < 1e-5


def test_decomposed_program_runs_without_this_library(decomposed):
    code = f"""
import sys
import torch
program = torch.export.load({str(decomposed["dinov2"][1])!r}).module()
print(*(tuple(each.shape[2:]) for each in program(torch.rand(1, 3, 64, 96))))
assert "vitadapter_fast" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "(16, 24) (8, 12) (4, 6) (2, 3)", done.stderr


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        export_program(smallest_model().train())


def test_size_that_is_no_multiple_of_32_is_refused():
    with pytest.raises(ValueError, match="multiples of 32, got 100 x 64"):
        export_program(smallest_model(), (100, 64))


def test_files_are_compared_with_products_that_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32, the default of convolutions on GPUs, puts two right models 1e-3 apart."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen: list[bool] = []
    model = vf.ViTAdapter(**WINDOWED).eval()

    def run(image: Tensor) -> list[Tensor]:
        seen.append(torch.backends.cudnn.allow_tf32)
        return model(image)

    _parity.compare(model, run, [(64, 64)], 1)
    assert seen == [False] and torch.backends.cudnn.allow_tf32
