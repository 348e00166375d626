# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes with half of the batch each train as one process with the whole of it."""

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny import WINDOWED
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from vitadapter_fast import ViTAdapter

WORLD = 2
STEPS = 2
CHANNELS = 48

Trained = dict[str, dict[str, Tensor]]


class Case(NamedTuple):
    """How a model is distributed, and its settings."""

    wrap: Callable[[ViTAdapter], nn.Module]
    settings: dict[str, Any]


def build(**settings: Any) -> ViTAdapter:
    """The same model in every process, with every part in use."""
    torch.manual_seed(0)
    # In float64 only the order of sums differs, far below any gradient that went missing.
    # 48 channels: with 32, a group norm would have one channel in each of its 32 groups.
    settings = {**WINDOWED, "embed_dim": CHANNELS, "init_values": 0.5, **settings}
    model = ViTAdapter(**settings).double().train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("sampling_offsets.weight", "attention_weights.weight", "pos_embed")):
                nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # frozen, as detectors train it
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2.0)
            module.eval()
    return model


def batch() -> tuple[Tensor, list[Tensor]]:
    """Images, and the maps that the model should make of them."""
    random = torch.Generator().manual_seed(1)
    image = torch.randn(2 * WORLD, 3, 64, 96, dtype=torch.float64, generator=random)
    sizes = [(64 // s, 96 // s) for s in ViTAdapter.strides]
    targets = [torch.randn(2 * WORLD, CHANNELS, h, w, generator=random) for h, w in sizes]
    return image, [target.double() for target in targets]


def train(model: nn.Module, part: slice) -> Trained:
    """Take steps on a part of the batch; return the first gradients and the last parameters."""
    image, targets = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients: dict[str, Tensor] = {}
    for _ in range(STEPS):
        optimizer.zero_grad()
        maps = model(image[part])
        loss = sum((m - t[part]).square().mean() for m, t in zip(maps, targets, strict=True))
        assert isinstance(loss, Tensor)
        loss.backward()
        if not gradients:
            trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
            assert None not in trained.values()
            gradients = {name: whole(grad) for name, grad in trained.items() if grad is not None}
        optimizer.step()
    return {
        "gradient": gradients,
        "parameter": {name: whole(p) for name, p in model.named_parameters()},
    }


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


def ddp(model: ViTAdapter) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp2(model: ViTAdapter) -> nn.Module:
    mesh = init_device_mesh("cpu", (WORLD,))
    for part in (model.patch_embed, model.spm, *model.blocks, *model.interactions):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp2_layers(model: ViTAdapter) -> nn.Module:
    """Every linear layer by itself: those that are computed without being called must not be."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            fully_shard(module, mesh=mesh)
    return fsdp2(model)


CASES = {
    "ddp-GN": Case(ddp, {"norm": "GN"}),
    "ddp-frozen_BN": Case(ddp, {"norm": "BN"}),
    "ddp-checkpointed": Case(ddp, {"norm": "GN", "with_cp": True}),
    "ddp-frozen_ViT": Case(ddp, {"norm": "GN", "frozen_vit": True}),
    "fsdp2-GN": Case(fsdp2, {"norm": "GN"}),
    "fsdp2-frozen_BN": Case(fsdp2, {"norm": "BN"}),
    "fsdp2-checkpointed": Case(fsdp2, {"norm": "GN", "with_cp": True}),
    "fsdp2-frozen_ViT": Case(fsdp2, {"norm": "GN", "frozen_vit": True}),
    "fsdp2-each_layer": Case(fsdp2_layers, {"norm": "GN"}),
}


def work(rank: int, folder: Path) -> None:
    """One process: its half of the batch in every case; the first writes what came out."""
    torch.set_num_threads(1)
    # A file, not a port, which another program could hold.
    distributed.init_process_group(
        "gloo",
        store=distributed.FileStore(str(folder / "store"), WORLD),
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(minutes=5),
    )
    half = slice(2 * rank, 2 * rank + 2)
    for name, case in CASES.items():
        trained = train(case.wrap(build(**case.settings)), half)
        if rank == 0:
            torch.save(trained, folder / f"{name}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for each case."""
    folder = tmp_path_factory.mktemp("distributed")
    torch.multiprocessing.spawn(work, (folder,), nprocs=WORLD)
    return folder


@cache
def trained_alone(name: str) -> Trained:
    return train(build(**CASES[name].settings), slice(None))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["gradient", "parameter"])
def test_two_processes_train_as_one(trained_by_two: Path, name: str, kind: str) -> None:
    alone = trained_alone(name)[kind]
    # DDP puts a prefix before every name.
    together = {
        key.removeprefix("module."): tensor
        for key, tensor in torch.load(trained_by_two / f"{name}.pt")[kind].items()
    }
    assert together.keys() == alone.keys()
    peaks = {key: tensor.abs().max().item() for key, tensor in alone.items()}
    for key, tensor in alone.items():
        # Softmax takes no notice of a shift, so the gradients of keys' biases are rounding alone.
        allowed = 1e-9 * peaks[key] + 1e-13 * max(peaks.values())
        error = (together[key] - tensor).abs().max().item()
        assert error <= allowed, f"{key}: error {error:.3g} exceeds {allowed:.3g}"
