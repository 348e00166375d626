# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""torch.export sees a whole model, for one size or for all, with our operators in it."""

from collections import Counter

import pytest
import torch
from export_cases import max_errors, smallest_model

import vitadapter_fast as vf
from vitadapter_fast.export import export_program
from vitadapter_fast.model.config import PRESETS

# Dynamic sizes cost seconds for each block: two have all that the sizes meet.
SHALLOW = {
    "depth": 2,
    "interaction_indexes": [[0, 1]],
    "window_attn": [True, False],
    "window_size": 14,
}


def shapes(maps):
    return [tuple(each.shape) for each in maps]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_exports_for_one_size(name):
    with torch.device("meta"):
        model = getattr(vf, f"vit_adapter_{name}")().eval()
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
        model = getattr(vf, f"vit_adapter_{name}")(**SHALLOW).eval()
        run = export_program(model).module()
        C = PRESETS[name].embed_dim
        assert shapes(run(torch.empty(1, 3, 64, 96))) == [
            (1, C, 64 // s, 96 // s) for s in (4, 8, 16, 32)
        ]
        assert shapes(run(torch.empty(3, 3, 1024, 640))) == [
            (3, C, 1024 // s, 640 // s) for s in (4, 8, 16, 32)
        ]


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 96, 320)], ids=str)
def test_dynamic_program_computes_what_the_model_does(shape, dynamic_program):
    model, program = dynamic_program
    image = torch.randn(shape)
    with torch.no_grad():
        assert max(max_errors(program.module()(image), model(image))) < 1e-5


@pytest.fixture(scope="module")
def dynamic_program():
    model = smallest_model()
    return model, export_program(model)


def test_saved_program_loads(dynamic_program, tmp_path):
    model, program = dynamic_program
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        assert max(max_errors(loaded(image), model(image))) < 1e-5


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        export_program(smallest_model().train())


def test_size_that_is_no_multiple_of_32_is_refused():
    with pytest.raises(ValueError, match="multiples of 32, got 100 x 64"):
        export_program(smallest_model(), (100, 64))
