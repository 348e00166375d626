# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""ONNX files compute the model's maps at any size, or do not appear."""

import numpy as np
import pytest
import torch
from export_cases import max_errors, smallest_model

from vitadapter_fast.export import export_onnx
from vitadapter_fast.ops import ms_deform_attn

onnx = pytest.importorskip("onnx", reason="needs the [export] extra")
ort = pytest.importorskip("onnxruntime", reason="needs the [export] extra")
pytest.importorskip("onnxscript", reason="needs the [export] extra")

PLUGIN = "MultiscaleDeformableAttnPlugin_TRT"


def session_of(path):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def model():
    return smallest_model()


@pytest.fixture(scope="module")
def windowed():
    """With windows far smaller, and larger, than the grids."""
    return smallest_model(window_attn=True, window_size=[3, 80])


@pytest.fixture(scope="module")
def gather_file(windowed, tmp_path_factory):
    path = tmp_path_factory.mktemp("gather") / "model.onnx"
    export_onnx(windowed, path)
    return path


@pytest.fixture(scope="module")
def plugin_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "model.onnx"
    export_onnx(model, path, (64, 96), mode="plugin")
    return path


# The first has as many tokens as the position table; the last is wider than the largest window.
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 96, 160), (1, 3, 64, 1344)], ids=str)
def test_gather_file_computes_what_the_model_does(shape, windowed, gather_file):
    image = torch.randn(shape)
    with torch.no_grad():
        wanted = windowed(image)
    got = session_of(gather_file).run(None, {"image": image.numpy()})
    assert max(max_errors(got, wanted)) < 1e-4


def test_dinov3_file_computes_what_the_model_does(tmp_path):
    """Rotary positions at sizes that the file was not traced with."""
    own = {"trunk": "dinov3", "window_attn": False, "injectors": False, "final_norm": True}
    model = smallest_model(**own)
    parities = export_onnx(model, tmp_path / "d.onnx", check_sizes=[(64, 96), (96, 64)])
    assert max(error for parity in parities for error in parity.errors) < 1e-4
    graph = onnx.load(tmp_path / "d.onnx")
    assert {node.domain for node in graph.graph.node} == {""}


def test_gather_file_has_standard_operators_only(gather_file):
    graph = onnx.load(gather_file)
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    assert "GridSample" not in {node.op_type for node in graph.graph.node}


def test_dynamic_sizes_have_names(gather_file):
    (image,) = session_of(gather_file).get_inputs()
    assert (image.name, image.shape) == ("image", ["batch", 3, "32*cells_h", "32*cells_w"])
    assert [each.shape[2] for each in session_of(gather_file).get_outputs()] == [
        "8*cells_h",
        "4*cells_h",
        "2*cells_h",
        "cells_h",
    ]


def test_file_tells_no_paths(gather_file):
    assert b"site-packages" not in gather_file.read_bytes()
    assert b"vit_adapter.py" not in gather_file.read_bytes()


def test_every_attention_is_a_node_of_the_plugin(plugin_file):
    graph = onnx.load(plugin_file)
    nodes = [node for node in graph.graph.node if node.domain]
    attributes = {"plugin_version": b"1", "plugin_namespace": b""}
    assert len(nodes) == 2  # an injector and an extractor
    for node in nodes:
        assert (node.domain, node.op_type) == ("trt.plugins", PLUGIN)
        assert {each.name: each.s for each in node.attribute} == attributes
        assert (len(node.input), len(node.output)) == (5, 1)
    assert "GridSample" not in {node.op_type for node in graph.graph.node}


def test_plugin_file_computes_what_the_model_does_with_another_plugin(model, plugin_file):
    types = []

    class Plugin(onnx.reference.op_run.OpRun):
        """By the reference of our operator, from what TensorRT's is given."""

        op_domain, op_schema = "trt.plugins", None

        def _run(self, value, level_hw, level_start, locations, weights, **attributes):
            types.append((value.dtype, level_hw.dtype, level_start.dtype, locations.dtype))
            starts = np.cumsum([0, *level_hw.prod(1)])[:-1]
            assert level_start.tolist() == starts.tolist()
            tensors = [torch.tensor(each).double() for each in (value, locations, weights)]
            hw = [(int(h), int(w)) for h, w in level_hw]
            out = ms_deform_attn(tensors[0], hw, *tensors[1:], backend="reference")
            return (out.float().unflatten(2, value.shape[2:]).numpy(),)

    Plugin.__name__ = PLUGIN
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = model(image)
    evaluator = onnx.reference.ReferenceEvaluator(onnx.load(plugin_file), new_ops=[Plugin])
    got = evaluator.run(None, {"image": image.numpy()})
    assert max(max_errors(got, wanted)) < 1e-4
    # The plugin takes sizes as int32 alone.
    assert types == 2 * [(np.float32, np.int32, np.int32, np.float32)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose convolutions are as wide as those of S, with norms that shift; and its file."""
    model = smallest_model(conv_inplane=64)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
    path = tmp_path_factory.mktemp("wide") / "model.onnx"
    export_onnx(model, path, (64, 96))
    return model, path


def test_norms_are_in_the_weights_of_convolutions(wide):
    model, path = wide
    graph = onnx.load(path).graph
    constants = {each.name for each in graph.initializer}
    assert all(set(each.input[1:]) <= constants for each in graph.node if each.op_type == "Conv")
    # Each weight is there once.
    weights = sum(each.nbytes for each in model.state_dict().values())
    assert path.stat().st_size < 1.05 * weights


def test_file_can_be_quantized(wide, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    model, path = wide
    target = tmp_path / "int8.onnx"
    unsigned = quantization.QuantType.QUInt8
    quantization.quantize_dynamic(path, target, weight_type=unsigned)
    kinds = {node.op_type for node in onnx.load(target).graph.node}
    assert {"ConvInteger", "MatMulInteger"} <= kinds and "Conv" not in kinds
    assert target.stat().st_size < 0.4 * path.stat().st_size
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(image)
    got = session_of(target).run(None, {"image": image.numpy()})
    assert max(max_errors(got, wanted)) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "model.pb"}, "ends in .onnx"),
        ({"mode": "grid"}, "mode must be one of gather, plugin"),
        ({"opset": 17}, "opset must be 18 to 23, got 17"),
    ],
    ids=lambda value: str(value),
)
def test_wrong_argument_is_refused(arguments, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_onnx(model, **{"path": tmp_path / "model.onnx", **arguments})


def test_double_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"float32 model, got torch\.float64"):
        export_onnx(smallest_model().double(), tmp_path / "model.onnx")
