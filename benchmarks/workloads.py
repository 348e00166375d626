# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What can be run, by kind: contenders, each checked, and what a call costs at least."""

import math
from dataclasses import dataclass
from typing import Any

import limits
import torch
from problems import OURS, PROBLEMS, Op, Problem
from torch import Tensor
from worker import PASSES, Spec, Workload

from vitadapter_fast.checks.tolerance import assert_close, budget, max_err

# More than the largest cache of a CPU or GPU that we know of takes: inputs come in turn.
_POOL_BYTES, _POOL = 200 * 2**20, (2, 24)


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: a process's contender on one shape, one pass."""

    spec: Spec
    shape: str
    passes: str

    @property
    def id(self) -> tuple[str, ...]:
        return self.shape, self.spec.contender, self.spec.dtype, self.passes


def build(spec: Spec) -> Workload:
    """Return what the process of ``spec`` runs."""
    if spec.kind == "limits":
        dtype = getattr(torch, spec.dtype)
        run = lambda name, index: limits.measure(spec.device, dtype)  # noqa: E731
        return Workload("", lambda: None, run, 1, {}, {})
    if spec.kind == "backbone":
        from backbones import build as build_backbone

        return build_backbone(spec)
    return _Calls(spec, _problem(spec)).workload()


def _problem(spec: Spec) -> Problem:
    if spec.kind in PROBLEMS:
        return PROBLEMS[spec.kind](spec)
    from sweeps import SWEEPS  # which has its problems from here

    return SWEEPS[spec.kind](spec)


class _Calls:
    """Both passes of one contender."""

    def __init__(self, spec: Spec, problem: Problem) -> None:
        self.spec, self.problem = spec, problem
        self.version, self.call = problem.contenders[spec.contender]
        self.dtype = getattr(torch, spec.dtype)
        first = self.tensors(0)
        with torch.no_grad():
            self.out = self.problem.reference(*first)
        size = sum(tensor.nbytes for tensor in first)
        count = min(max(math.ceil(_POOL_BYTES / size), _POOL[0]), _POOL[1])
        self.pool = [first, *(self.tensors(seed) for seed in range(1, count))]
        generator = torch.Generator().manual_seed(99)
        cotangent = torch.randn(self.out.shape, generator=generator)
        self.cotangent = cotangent.to(spec.device, self.dtype)

    def tensors(self, seed: int) -> list[Tensor]:
        return [self._placed(tensor, self.dtype) for tensor in self.problem.make(seed)]

    def _placed(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        # Locations are never 16 bits wide, nor are the parameters of a batch norm.
        keeps_width = getattr(tensor, "keeps_width", False)
        wide = torch.promote_types(dtype, torch.float32) if keeps_width else dtype
        return tensor.detach().to(self.spec.device, wide).requires_grad_(tensor.requires_grad)

    def run(self, name: str, index: int) -> Any:
        tensors = self.pool[index % len(self.pool)]
        if name == PASSES[0]:
            with torch.no_grad():
                return self.call(*tensors)
        return self.step(self.call, tensors, self.cotangent)

    def step(self, call: Op, tensors: list[Tensor], cotangent: Tensor) -> list[Tensor]:
        out = call(*tensors)
        leaves = [tensor for tensor in tensors if tensor.requires_grad]
        return [out, *torch.autograd.grad(out, leaves, cotangent)]

    def check(self) -> None:
        """Compare the result and every gradient with float64, on the last inputs of the pool."""
        tensors = self.pool[-1]
        exact = [each.detach().double().requires_grad_(each.requires_grad) for each in tensors]
        truth = self.step(self.problem.reference, exact, self.cotangent.double())
        near = self.step(self.problem.reference, tensors, self.cotangent)
        got = self.step(self.call, tensors, self.cotangent)
        for index, (one, other, wanted) in enumerate(zip(got, near, truth, strict=True)):
            what = f"{self.spec.contender}, {'gradient of input' if index else 'result'} {index}"
            if self.spec.contender.startswith(OURS):
                assert_close(one, other, wanted, what)
            else:  # the same to a factor: others round where they like
                allowed = 20 * budget(other, wanted, self.dtype)
                assert max_err(one, wanted) <= allowed, f"{what}: not the same computation"

    def workload(self) -> Workload:
        tensors = self.pool[0]
        read = sum(tensor.nbytes for tensor in tensors)
        grads = sum(tensor.nbytes for tensor in tensors if tensor.requires_grad)
        flops = dict(zip(PASSES, (self.problem.flops, 3 * self.problem.flops), strict=True))
        # Backward reads the inputs again and the result's gradient, and writes theirs.
        moved = (read + self.out.nbytes, 2 * read + 2 * self.out.nbytes + grads)
        bytes_moved = dict(zip(PASSES, moved, strict=True))
        images = tensors[0].shape[0]
        return Workload(
            self.version,
            self.check,
            self.run,
            images,
            flops,
            bytes_moved,
            inputs=len(self.pool),
        )


def rows(
    kind: str, device: str, shapes: dict[str, dict[str, Any]], dtypes: tuple[str, ...] = ()
) -> list[Row]:
    """Return the rows of an operator: every shape, contender, dtype and pass."""
    dtypes = dtypes or (("bfloat16", "float32") if device == "cuda" else ("float32",))
    found = []
    for name, shape in shapes.items():
        contenders = _problem(Spec(kind, "", shape, device=device)).contenders
        for dtype in dtypes:
            for contender in contenders:
                spec = Spec(kind, contender, shape, dtype, device)
                found += [Row(spec, name, each) for each in PASSES]
    return found
