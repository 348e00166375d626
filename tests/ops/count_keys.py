# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Count what Triton compiles for training steps of S at many image sizes, without a GPU.

    python count_keys.py    prints {dtype: {kernel: how often it is compiled}} as JSON

By Triton's own cache keys: kernels are launched on a stub driver, on tensors without memory, and
where one would be compiled its key is kept. In a process of its own, whose kernels never run.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

import torch
from stub_driver import stub_driver
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

import vitadapter_fast as vf
from vitadapter_fast.ops import _triton

CALLS = 60
# S with two blocks: others launch the same kernels. Windows of 14 tokens, and none.
SHALLOW: dict[str, Any] = {
    "depth": 2,
    "interaction_indexes": [[0, 1]],
    "use_extra_extractor": False,
    "window_attn": [True, False],
    "window_size": [14, None],
}


class Running(TorchDispatchMode):
    """Runs our operators on tensors without memory, rather than their fakes."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "vitadapter_fast":
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            return op.redispatch(keys, *args, **(kwargs or {}))
        return op(*args, **(kwargs or {}))


def compiled(dtype: torch.dtype) -> Counter[str]:
    """Return how often each kernel is compiled for all sizes and batches."""
    with torch.device("meta"):
        model = vf.vit_adapter_s(**SHALLOW).to(dtype)
    found: Counter[str] = Counter()
    kernel = SimpleNamespace(function=None, packed_metadata=None, launch_metadata=lambda *_: None)
    kernel.run = lambda *_: None

    def keep(self: Any, key: str, signature: Any, device: Any, *rest: Any) -> Any:
        found[self.fn.__name__] += 1
        self.device_caches[device][0][key] = kernel
        return kernel

    draw = random.Random(0)
    with mock.patch.object(JITFunction, "_do_compile", keep), Running():
        for _ in range(CALLS):
            # From below one window to above three.
            h, w = draw.randint(32, 768), draw.randint(32, 768)
            image = torch.empty(draw.randint(1, 5), 3, h, w, dtype=dtype, device="meta")
            sum(out.sum() for out in model(image)).backward()
    return found


def main() -> None:
    """Count for the dtypes that models are trained in."""
    with (
        stub_driver(),
        mock.patch.object(_triton, "unsupported_reason", lambda tensor: None),
        vf.backend("triton"),
    ):
        dtypes = (torch.bfloat16, torch.float32)
        found = {str(dtype).removeprefix("torch."): compiled(dtype) for dtype in dtypes}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
