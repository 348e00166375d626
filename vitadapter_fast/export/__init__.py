# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model in; a torch.export program, an ONNX file or an AOTInductor package out.

Exported files hold the model in eval mode, for images of multiples of 32 pixels: pad others with
zeros on the right and bottom, as the model itself does, and crop the maps to ceil(size / stride).
Where sizes are dynamic, both sides start at 64. Every file is loaded again and compared with the
model before it appears.
"""

from ..errors import ExportError
from ._onnx import export_onnx
from ._parity import Parity
from ._program import export_program
from ._pt2 import export_pt2

__all__ = [
    "ExportError",
    "Parity",
    "export_onnx",
    "export_program",
    "export_pt2",
]
