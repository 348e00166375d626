# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model and an image size in; what one forward pass costs out, box by box, without running it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..fused import Int8Linear
from ..images import MAX_BATCH, MAX_SIZE, MIN_SIZE, is_whole
from ..model import ViTAdapter

BOXES = (
    "patch_embed",
    "spatial_prior",
    "injectors",
    "vit_attention",
    "vit_ffn",
    "extractors",
    "pyramid",
)


@dataclass(frozen=True)
class BoxCost:
    """What a box of the figure costs in one forward pass, all its calls together.

    Attributes:
        name: One of ``BOXES``, or "total".
        flops: Floating-point operations, a multiply-add as 2: matrix products, convolutions,
            attention and sampling.
        bytes_moved: What no implementation of the box as one kernel a call can avoid: of each call
            its inputs, parameters and buffers read once, its outputs written once. A map between
            two boxes counts in both. What is written for backward is not in it.
        parameter_bytes: Parameters, and weights of 8 bits, each in the first box that reads it.
        saved_bytes: Memory kept for backward that no box before has kept; without parameters and
            buffers, with the image.
    """

    name: str
    flops: int
    bytes_moved: int
    parameter_bytes: int
    saved_bytes: int


@dataclass(frozen=True)
class Cost:
    """What one forward pass costs.

    Attributes:
        boxes: One for each of ``BOXES``, in the order of the figure.
    """

    boxes: tuple[BoxCost, ...]

    @property
    def total(self) -> BoxCost:
        """The sum of the boxes."""
        return BoxCost(
            "total",
            sum(box.flops for box in self.boxes),
            sum(box.bytes_moved for box in self.boxes),
            sum(box.parameter_bytes for box in self.boxes),
            sum(box.saved_bytes for box in self.boxes),
        )


def cost(model: nn.Module, image_size: int | tuple[int, int], batch: int = 1) -> Cost:
    """Count what a forward pass of ``model`` costs, from shapes alone.

    The pass runs on fake tensors, with gradients on, in the mode and dtype that the model is in and
    under the caller's autocast for the CPU. The model is only read: it may lie on any device, the
    meta device included, and hooks on its modules are not called.

    Counted is what torch does and saves on a CPU, wherever the model lies, when stochastic depth
    drops no branch: one that all samples skip costs and saves nothing. On a GPU its libraries
    may save a little more; with ``attn_drop_rate`` > 0 in training less, as torch's fused attention
    with dropout, which keeps no attention weights, is for GPUs only.

    Args:
        model: A ``ViTAdapter``; its images are counted in the dtype of its patch embedding.
        image_size: Height and width in pixels, or one number for both; 32 to 65536.
        batch: Images, 1 to 65536.

    Returns:
        The costs of each box of the figure, and their total.

    Raises:
        TypeError: ``model`` is no ``ViTAdapter``.
        ValueError: A size or the batch is out of these, or no whole number.
    """
    if not isinstance(model, ViTAdapter):
        raise TypeError(
            f"cost: model must be a ViTAdapter, got {type(model).__name__}; of a detector pass its "
            "backbone, of a wrapped or compiled model the model itself"
        )
    hw = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(hw) != 2 or not all(map(is_whole, hw)) or not MIN_SIZE <= min(hw) <= max(hw) <= MAX_SIZE:
        raise ValueError(
            "cost: image_size must be a number of pixels or (height, width), from "
            f"{MIN_SIZE} to {MAX_SIZE}, got {image_size!r}"
        )
    if not is_whole(batch) or not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"cost: batch must be a whole number from 1 to {MAX_BATCH}, got {batch!r}")
    # In inference mode a linear layer arrives as one operator, which has no formula.
    with torch.inference_mode(False), torch.enable_grad(), FakeTensorMode():
        twin = _fake_twin(model)
        ledger = _Ledger(twin)
        for box, first, last in _calls(twin):
            first.register_forward_pre_hook(ledger.enter(box))
            last.register_forward_hook(ledger.leave)
        dtype = twin.patch_embed.proj.weight.dtype
        image = torch.empty(batch, twin.in_chans, *hw, dtype=dtype, device="cpu")
        with torch.autograd.graph.saved_tensors_hooks(ledger.save, _never), ledger:
            maps = twin(image)
        ledger.finish(maps)
    return Cost(tuple(_box_cost(name, ledger.visits) for name in BOXES))


def _box_cost(name: str, visits: list["_Visit"]) -> BoxCost:
    calls = [visit for visit in visits if visit.box == name]
    moved = [part for call in calls for part in (call.constants, call.reads, call.writes)]
    return BoxCost(
        name,
        flops=sum(call.flops for call in calls),
        bytes_moved=sum(sum(part.values()) for part in moved),
        parameter_bytes=sum(call.parameter_bytes for call in calls),
        saved_bytes=sum(call.saved_bytes for call in calls),
    )


def _calls(model: Any) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield the box of every call, the module that begins it and the module that ends it."""
    yield "patch_embed", model.patch_embed, model.pos_drop
    yield "spatial_prior", model.spm, model.spm
    for interaction in model.interactions:
        if interaction.injector is not None:
            yield "injectors", interaction.injector, interaction.injector
        for extractor in (interaction.extractor, *interaction.extra_extractors):
            yield "extractors", extractor, extractor
    for block in model.blocks:
        yield "vit_attention", block, block  # until its feed-forward begins


def _fake_twin(model: ViTAdapter) -> ViTAdapter:
    """Return the same modules with fake parameters and buffers on the CPU, without hooks.

    Not copy.deepcopy: hooks may hold a trainer, and with it the model and its optimizer.
    """
    tensors: dict[int, Tensor] = {}
    modules: dict[int, nn.Module] = {}

    def fake(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in tensors:
            twin = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
            )
            if isinstance(tensor, nn.Parameter):
                twin = nn.Parameter(twin, requires_grad=tensor.requires_grad)
            tensors[id(tensor)] = twin
        return tensors[id(tensor)]

    def copy(module: nn.Module | None) -> nn.Module | None:
        if module is None:
            return None
        if id(module) in modules:
            return modules[id(module)]
        # Among several processes SyncBatchNorm refuses CPU tensors; it costs what the other does.
        kind = type(module)
        kind = nn.BatchNorm2d if kind is nn.SyncBatchNorm else kind
        twin = modules[id(module)] = kind.__new__(kind)
        fresh = nn.Module().__dict__
        attributes = {**module.__dict__, "_compiled_call_impl": None}
        attributes.update((name, fresh[name]) for name in fresh if name.endswith("_hooks"))
        for name, convert in (("_parameters", fake), ("_buffers", fake), ("_modules", copy)):
            attributes[name] = {key: convert(each) for key, each in attributes[name].items()}
        twin.__dict__.update(attributes)
        return twin

    return cast(ViTAdapter, copy(model))


def _never(packed: None) -> Tensor:
    raise AssertionError("the ledger runs no backward pass")


@dataclass
class _Visit:
    """One call of a box; maps go from a storage to its bytes."""

    box: str = ""
    flops: int = 0
    saved_bytes: int = 0
    parameter_bytes: int = 0
    reads: dict[int, int] = field(default_factory=dict)
    writes: dict[int, int] = field(default_factory=dict)
    constants: dict[int, int] = field(default_factory=dict)


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Books every operator and every saved tensor on the box that is being visited.

    What happens between two boxes belongs to the one that comes next; at the end, to the pyramid.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.visits = [_Visit()]
        self._parameters = {_key(each): each.nbytes for each in _weights(model)}
        self._buffers = {_key(each): each.nbytes for each in model.buffers()}
        self._constants = {**self._parameters, **self._buffers}
        # A hook inside of a block would change how it is computed: what reads one of these begins
        # its feed-forward.
        ffns = [part for block in model.blocks for part in (block.norm2, block.mlp)]
        self._of_ffns = {_key(each) for part in ffns for each in _weights(part)}
        self._makers: dict[int, _Visit] = {}
        self._saved: set[int] = set()
        # A key is an address, unique as long as its storage lives.
        self._alive: list[torch.UntypedStorage] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.visits[-1].box == "vit_attention" and any(_key(t) in self._of_ffns for t in given):
            self.visits.append(_Visit("vit_ffn"))
        out = func(*args, **(kwargs or {}))
        self.visits[-1].flops += _flops_of(func, args, kwargs or {}, out)
        for leaf in given:
            self._read(leaf)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _key(leaf) not in self._constants:
                self._alive.append(leaf.untyped_storage())
                self._makers.setdefault(_key(leaf), self.visits[-1])
        return out

    def enter(self, box: str) -> Callable[..., None]:
        """Return a forward pre-hook for a module of ``box``."""

        def hook(module: nn.Module, args: Any) -> None:
            self.visits[-1].box = box

        return hook

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        """Be the forward hook of a module that has a box."""
        self.visits.append(_Visit())

    def save(self, tensor: Tensor) -> None:
        """Be the hook of a tensor that is saved for backward."""
        key = _key(tensor)
        if key not in self._constants and key not in self._saved:
            self._alive.append(tensor.untyped_storage())
            self._saved.add(key)
            self.visits[-1].saved_bytes += tensor.untyped_storage().nbytes()

    def finish(self, maps: list[Tensor]) -> None:
        """Close the books after the last box, which made ``maps``."""
        self.visits[-1].box = "pyramid"
        for each in maps:
            self._makers[_key(each)].writes[_key(each)] = each.untyped_storage().nbytes()

    def _read(self, tensor: Tensor) -> None:
        key, visit = _key(tensor), self.visits[-1]
        if key in self._constants:
            visit.constants[key] = self._constants[key]
            visit.parameter_bytes += self._parameters.pop(key, 0)
            return
        maker = self._makers.get(key)
        if maker is visit:
            return
        # No maker: the image.
        num_bytes = tensor.untyped_storage().nbytes()
        visit.reads[key] = num_bytes
        if maker is not None:
            maker.writes[key] = num_bytes


def _flops_of(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> int:
    """Return what torch's counter counts, which knows our operators; 0 for what it does not."""
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


def _weights(module: nn.Module) -> Iterator[Tensor]:
    """Yield parameters, and what stands in their place in a quantized model."""
    yield from module.parameters()
    for each in module.modules():
        if isinstance(each, Int8Linear):
            yield from each.buffers()


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
