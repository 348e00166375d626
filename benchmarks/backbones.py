# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Whole backbones: ours, the original's composition, its public code, and what bounds them all."""

import os
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import runtimes
import torch
import torch.nn.functional as F
from agreement import check_maps, check_rounded
from plain import Plain
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from worker import PASSES, Spec, Workload

from vitadapter_fast import ViTAdapter, __version__, keep_freed_memory, quantize
from vitadapter_fast.builders import preset_of, vit_adapter
from vitadapter_fast.costs import cost
from vitadapter_fast.presets import PRESETS

OURS, PLAIN, SDPA = "vitadapter_fast", "plain PyTorch", "plain PyTorch + SDPA"
COMPILED, SDPA_COMPILED = f"{PLAIN}, compiled", f"{SDPA}, compiled"
KEEPING = f"{OURS}, keep_freed_memory"
ORIGINAL, ARITHMETIC = "original code", "its arithmetic alone"
TIMM, TRANSFORMERS = "timm ViT (no adapter)", "transformers ViT (no adapter)"
_NOT_CHECKED = (PLAIN, TIMM, TRANSFORMERS, ARITHMETIC)
FORWARD_ONLY = (ARITHMETIC, runtimes.OPENVINO, runtimes.ONNXRUNTIME)
# Forward of one size; the file of g would not fit beside the model.
_IN_RUNTIMES = ("s", "b", "l")
_ROUNDED_IN_RUNTIMES = ("s", "b")  # two minutes for B
_PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "linear", "_linear_pointwise", "convolution")
# torch has one for every library that it calls: flash, efficient, cudnn, for_cpu, ...
_ATTENTION = ("_scaled_dot_product_", "window_attention")
# Two windows of 14 patches, the second of them mostly padding.
_CHECK_HW = (32, 256)


def contenders(model: str, scale: str, dtype: str = "float32") -> list[str]:
    """Return what is compared for a preset in a dtype: on the CPU bfloat16 is autocast's.

    With "int8" products of 8 bits take the place of linear layers', for a forward pass.
    """
    if scale == "cpu_sizes":
        return [OURS, KEEPING]
    if dtype == "int8":
        return [OURS, PLAIN] + (runtimes.found(dtype) if model in _ROUNDED_IN_RUNTIMES else [])
    is_gpu = scale.startswith("gpu")
    found = [OURS, PLAIN] + [SDPA] * is_gpu
    is_dinov3 = model not in PRESETS
    # Which the original does not have.
    if os.environ.get("VITADAPTER_ORIGINAL") and model != "g" and not is_dinov3:
        found.append(ORIGINAL)
    if os.environ.get("VITADAPTER_COMPILED") == "1" or scale == "gpu_full":
        # On the CPU what torch 2.13 makes of the original's fold corrupts memory: the process dies.
        found += [COMPILED] * is_gpu + [SDPA_COMPILED]
    if scale == "gpu":
        return found
    if scale == "cpu" and model in _IN_RUNTIMES:
        found += runtimes.found(dtype)
    if find_spec("timm"):
        found.append(TIMM)
    if is_dinov3 and find_spec("transformers"):
        found.append(TRANSFORMERS)
    # In 16 bits its size depends on how it is done.
    return [*found, ARITHMETIC] if dtype == "float32" else found


def build(spec: Spec) -> Workload:
    """Return the workload of one contender."""
    name, size, batch = spec.shape["model"], spec.shape["image_hw"], spec.shape["batch"]
    adapter = _adapter(name, spec.device)
    image = torch.randn(2, batch, 3, *size, device=spec.device)
    model, version = _contender(spec.contender, adapter, spec, image[0])
    if spec.contender != ARITHMETIC:
        model.to(spec.device)
    is_rounded, is_low = spec.dtype == "int8", spec.dtype in ("bfloat16", "float16")
    low = getattr(torch, spec.dtype) if is_low else torch.bfloat16

    def maps_of(module: Any, pixels: Tensor, is_low: bool = is_low) -> list[Tensor]:
        with torch.autocast(spec.device, dtype=low, enabled=is_low):
            out = module(pixels)
        return list(out) if isinstance(out, (list, tuple)) else [out]

    cotangents: list[Tensor] = []

    def run(passes: str, index: int) -> object:
        pixels = image[index % 2]
        if passes == PASSES[0]:
            model.eval()
            with torch.no_grad():
                return maps_of(model, pixels)
        model.train()
        model.zero_grad(set_to_none=True)
        maps = maps_of(model, pixels)
        if not cotangents:
            cotangents.extend(torch.randn_like(part) for part in maps)
        torch.autograd.backward(maps, cotangents)
        return None

    def check() -> None:
        if is_rounded:
            plain = Plain(_adapter(name, spec.device))  # of weights that were not rounded
            return check_rounded(model, plain, maps_of, image[0])
        if spec.contender in _NOT_CHECKED:
            return
        # Compiled once for a shape, that of its times.
        if spec.contender in (COMPILED, SDPA_COMPILED, *FORWARD_ONLY):
            pixels, plain = image[0], Plain(adapter, has_sdpa=True)
        else:
            pixels = torch.randn(2, 3, *_CHECK_HW, device=spec.device)
            plain = Plain(adapter)
        has_training = spec.contender not in FORWARD_ONLY
        check_maps(model, plain, maps_of, pixels, is_low=is_low, has_training=has_training)

    if spec.contender == ARITHMETIC:
        recorded = Arithmetic()
        with torch.no_grad(), torch.autocast(spec.device, dtype=low, enabled=is_low), recorded:
            adapter.eval()(image[0])
        run = lambda passes, index: recorded.run()  # noqa: E731
    total = cost(adapter, size, batch).total
    flops = {PASSES[0]: total.flops, PASSES[1]: 3 * total.flops}
    # Backward reads what forward read and wrote, and writes gradients.
    moved = {PASSES[0]: total.bytes_moved, PASSES[1]: 3 * total.bytes_moved}
    if spec.contender in (TIMM, TRANSFORMERS, ARITHMETIC):
        flops, moved = {}, {}
    # torch's modules, from which a file was written, are still there beside a runtime.
    has_own_memory = spec.contender not in (runtimes.OPENVINO, runtimes.ONNXRUNTIME)
    return Workload(
        version, check, run, batch, flops, moved, limit="sum", has_own_memory=has_own_memory
    )


def _adapter(name: str, device: str) -> ViTAdapter:
    """Return a preset filled quickly: g has 1.2 billion parameters to draw."""
    with torch.device("meta"):
        adapter = vit_adapter(name)
    return fill(adapter.to_empty(device=device))


def fill(adapter: ViTAdapter) -> ViTAdapter:
    """Return the adapter with random values, none of which would hide a part that is left out."""
    torch.manual_seed(0)
    with torch.no_grad():
        for key, tensor in adapter.state_dict().items():
            if not tensor.is_floating_point():
                tensor.zero_()
            elif tensor.dim() > 1:
                tensor.uniform_(-1, 1).mul_((3 / tensor[0].numel()) ** 0.5)
            else:  # nothing zero or one
                low, high = (-0.1, 0.1) if key.endswith(("bias", "running_mean")) else (0.8, 1.2)
                tensor.uniform_(low, high)
        for interaction in adapter.interactions:
            if interaction.injector is not None:
                interaction.injector.gamma.fill_(0.5)
    return adapter


def _contender(
    contender: str, adapter: ViTAdapter, spec: Spec, image: Tensor
) -> tuple[nn.Module, str]:
    name = spec.shape["model"]
    if contender in (PLAIN, SDPA, COMPILED, SDPA_COMPILED):
        plain = Plain(adapter, has_sdpa=contender in (SDPA, SDPA_COMPILED))
        plain.prepare(spec.shape["image_hw"], spec.device)
        if spec.dtype == "int8":
            kinds = {nn.Linear}
            return torch.ao.quantization.quantize_dynamic(plain, kinds), torch.__version__
        if contender in (PLAIN, SDPA):
            return plain, torch.__version__
        # Not dynamic: code for known sizes is faster.
        return torch.compile(plain, dynamic=False), torch.__version__  # type: ignore[return-value]
    if contender == ORIGINAL:
        import original

        theirs = original.load(Path(os.environ["VITADAPTER_ORIGINAL"]), name)
        theirs.load_state_dict(adapter.state_dict(), strict=True)
        return theirs, "public code"
    if contender in (runtimes.OPENVINO, runtimes.ONNXRUNTIME):
        module = runtimes.InRuntime(contender, adapter, image, spec.threads, spec.dtype)
        return module, runtimes.version(contender)
    if contender == TIMM:
        return _timm(name), metadata.version("timm")
    if contender == TRANSFORMERS:
        return _transformers(name), metadata.version("transformers")
    if spec.dtype == "int8":
        adapter = quantize(adapter, inplace=True)
    if contender == KEEPING:
        keep_freed_memory()  # of its process alone
    return adapter, __version__


def _transformers(name: str) -> nn.Module:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    class Tokens(nn.Module):
        def __init__(self, vit: nn.Module) -> None:
            super().__init__()
            self.vit = vit

        def forward(self, image: Tensor) -> Tensor:
            tokens: Tensor = self.vit(image).last_hidden_state
            return tokens

    preset = preset_of(name)
    is_gated = preset.ffn == "swiglu"
    config = DINOv3ViTConfig(
        hidden_size=preset.embed_dim,
        intermediate_size=4 * preset.embed_dim,
        num_hidden_layers=preset.depth,
        num_attention_heads=preset.num_heads,
        num_register_tokens=4,
        use_gated_mlp=is_gated,
        hidden_act="silu" if is_gated else "gelu",
    )
    return Tokens(DINOv3ViTModel(config))


# timm's names of DINOv3's ViTs.
_TIMM_DINOV3 = {"s": "small", "s+": "small_plus", "b": "base", "l": "large", "h+": "huge_plus"}


def _timm(name: str) -> nn.Module:
    if name not in PRESETS:
        import timm

        size = _TIMM_DINOV3[name.removeprefix("dinov3-")]
        vit = timm.create_model(f"vit_{size}_patch16_dinov3_qkvb", num_classes=0, global_pool="")
        return vit  # type: ignore[no-any-return]
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    class Tokens(VisionTransformer):  # type: ignore[misc,no-any-unimported]
        def forward(self, image: Tensor) -> Tensor:
            tokens: Tensor = self.forward_features(image)
            return tokens

    preset = PRESETS[name].model_kwargs()
    kwargs: dict[str, Any] = {key: preset[key] for key in ("embed_dim", "depth", "num_heads")}
    if preset["ffn"] == "swiglu":
        kwargs |= {"mlp_layer": SwiGLUPacked, "mlp_ratio": 2 * 4096 / preset["embed_dim"]}
    return Tokens(
        img_size=preset["img_size"],
        patch_size=16,
        num_classes=0,
        class_token=False,
        global_pool="",
        init_values=1.0,
        dynamic_img_size=True,
        weight_init="skip",
        **kwargs,
    )


class Arithmetic(TorchDispatchMode):
    """Record the products, convolutions and attention of what runs inside, to run them alone."""

    def __init__(self) -> None:
        """Start with nothing recorded."""
        super().__init__()
        self.calls: list[Callable[[], object]] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run ``op``; keep it with its inputs if it is arithmetic."""
        name = op._schema.name.split("::")[1]
        if name in _PRODUCTS or name.startswith(_ATTENTION):
            self.calls.append(lambda: op(*args, **(kwargs or {})))
        elif name == "patch_embed":
            image, weight, bias, *_ = args
            rows = image.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5)
            rows, matrix = rows.flatten(0, 2).flatten(1), weight.flatten(1)
            self.calls.append(lambda: F.linear(rows, matrix, bias))
        return op(*args, **(kwargs or {}))

    def run(self) -> None:
        """Repeat what was recorded."""
        with torch.no_grad():
            for call in self.calls:
                call()
