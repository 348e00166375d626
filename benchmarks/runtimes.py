# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A backbone in other runtimes for the CPU, from the file that ``export`` writes."""

from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.export import export_onnx

OPENVINO, ONNXRUNTIME = "OpenVINO", "onnxruntime"
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_OF_DTYPE: dict[str, tuple[str, ...]] = {
    "float32": (OPENVINO, ONNXRUNTIME),
    "bfloat16": (OPENVINO,),
    "int8": (ONNXRUNTIME,),  # which quantizes without images; OpenVINO runs its file slower
}

Run = Callable[[Tensor], list[Tensor]]


def found(dtype: str) -> list[str]:
    """Return the runtimes of a dtype that can be imported here; all need what writes the file."""
    if not all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
        return []
    names = _OF_DTYPE[dtype]
    return [name for name in names if find_spec(name.lower())]


def version(name: str) -> str:
    """Return the version of a runtime."""
    return metadata.version(name.lower())


class InRuntime(nn.Module):
    """The maps of images of one size in another runtime; nothing to train."""

    def __init__(
        self, name: str, adapter: ViTAdapter, image: Tensor, threads: int, dtype: str
    ) -> None:
        """Write ``adapter`` to a file and load that.

        Args:
            name: One of ``found()``.
            adapter: Of float32.
            image: Of the size and batch that will come.
            threads: Of the runtime.
            dtype: What it computes in: "float32", "bfloat16" for OpenVINO, which takes and gives
                float32 all the same, or "int8" for onnxruntime's dynamic quantization.
        """
        super().__init__()
        load = {OPENVINO: _openvino, ONNXRUNTIME: _onnxruntime}[name]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(adapter.eval(), path, tuple(image.shape[2:]), batch=image.shape[0])
            if dtype == "int8":
                path = _quantized(path)
            self._run = load(path, threads or torch.get_num_threads(), dtype)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the four maps of images [B, 3, H, W]."""
        return self._run(image)


def _quantized(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    found = path.with_name("int8.onnx")
    products = ["MatMul", "Gemm"]
    quantize_dynamic(
        path, found, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=products
    )
    return found


def _openvino(path: Path, threads: int, dtype: str) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(
        str(path),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        },
    )
    request = compiled.create_infer_request()

    def run(image: Tensor) -> list[Tensor]:
        outputs: Any = request.infer([image.numpy()], share_inputs=True)
        return [torch.from_numpy(outputs[port]) for port in compiled.outputs]

    return run


def _onnxruntime(path: Path, threads: int, dtype: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])

    def run(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {"image": image.numpy()})]

    return run
