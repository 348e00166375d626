# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of the attention within windows on a device."""

import pytest
import torch
from cases import ALL_WINDOW, AWKWARD_WINDOW, REAL_WINDOW, WindowCase, make_qkv
from summing import nan_filled_memory
from test_cuda_device import DEVICE, warm_up
from test_window_attention import DTYPES, NAMES, case_id, check, cotangent_of, dtype_id, results
from torch import Tensor

from vitadapter_fast.ops import _triton, window_attention

WHY_NOT = _triton.unavailable_reason() if torch.cuda.is_available() else "no CUDA device"
SHAPES = [REAL_WINDOW[0], AWKWARD_WINDOW[3]]

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]
shapes = pytest.mark.parametrize("case", SHAPES, ids=case_id)


def on_device(case: WindowCase, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return make_qkv(case, dtype=dtype, device=DEVICE, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", ALL_WINDOW, ids=case_id)
def test_output_and_gradient(case: WindowCase, dtype: torch.dtype) -> None:
    with nan_filled_memory():
        check(case, dtype, "triton", DEVICE)


@shapes
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_results_are_bit_equal_in_every_run(case: WindowCase, dtype: torch.dtype) -> None:
    qkv, cotangent = on_device(case, dtype), cotangent_of(case, dtype).to(DEVICE)
    first, *others = [results(case, qkv, "triton", cotangent) for _ in range(8)]
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in NAMES)


@shapes
def test_captured_forward_and_backward_replay_on_changed_inputs(case: WindowCase) -> None:
    qkv, changed = on_device(case), on_device(case, seed=1)
    cotangent = cotangent_of(case, qkv.dtype).to(DEVICE)
    warm_up(lambda: results(case, qkv, "triton", cotangent))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = results(case, qkv, "triton", cotangent)
    qkv.copy_(changed)
    wanted = results(case, changed, "triton", cotangent)
    graph.replay()
    assert all(torch.equal(got[name], wanted[name]) for name in NAMES)


@shapes
def test_compiled_without_graph_breaks_gives_the_same(case: WindowCase) -> None:
    qkv = on_device(case).requires_grad_()

    def run(leaf: Tensor) -> Tensor:
        return 2 * window_attention(leaf, case.hw, case.window_size)

    got, wanted = torch.compile(run, fullgraph=True)(qkv), run(qkv)
    torch.testing.assert_close(got, wanted)
    (a,), (b,) = (torch.autograd.grad(out.square().sum(), qkv) for out in (got, wanted))
    torch.testing.assert_close(a, b)
