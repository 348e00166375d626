# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""No public function or class takes a keyword that it does not know, whatever it wraps."""

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import isclass, isfunction, ismethod
from types import ModuleType
from typing import Any

import pytest

import vitadapter_fast

UNKNOWN = "a_keyword_that_nobody_knows"
# Their keywords name what they check.
KEYWORDS_ARE_DATA = {
    f"vitadapter_fast.settings.check_{name}"
    for name in ("counts", "flags", "numbers", "rates", "ratios")
} | {
    "vitadapter_fast.fused._choice.readable",
    "vitadapter_fast.native.extension.launch",  # or the launcher's own, which refuses others
    # transformers' configs keep what they do not know; what is nearly a keyword is refused.
    "vitadapter_fast.integrations.transformers.ViTAdapterConfig",
}
# Python would miss these first.
REQUIRED = {
    f"vitadapter_fast.builders.{name}": {"size": "s"}
    for name in ("model_kwargs", "vit_adapter", "vit_adapter_dinov3")
} | {
    "vitadapter_fast.integrations.smp.register_encoder": {"name": "new", "size": "s"},
    "vitadapter_fast.integrations.transformers.ViTAdapterBackbone.save_pretrained": {
        "self": None,
        "save_directory": "folder",
    },
}


def public_modules() -> Iterator[ModuleType]:
    """All whose name has no underscore, but for those whose framework is not here."""
    yield vitadapter_fast
    for found in pkgutil.walk_packages(vitadapter_fast.__path__, "vitadapter_fast."):
        if any(part.startswith("_") for part in found.name.split(".")[1:]):
            continue
        try:
            yield import_module(found.name)
        except ImportError as error:
            assert not str(error.name).startswith("vitadapter_fast")


def public_names(module: ModuleType) -> list[str]:
    """What a module says is public; else all without an underscore that is defined in it."""
    defined = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return list(getattr(module, "__all__", defined))


def public_callables() -> dict[str, Callable[..., Any]]:
    """Functions, classes and methods by the name under which they are defined, each once."""
    found: dict[str, Callable[..., Any]] = {}
    for module in public_modules():
        for value in (getattr(module, name) for name in public_names(module)):
            if not isclass(value) and not isfunction(value):
                continue
            path = f"{value.__module__}.{value.__qualname__}"
            found[path] = value
            for name in vars(value) if isclass(value) else ():
                method = getattr(value, name)
                if not name.startswith("_") and (isfunction(method) or ismethod(method)):
                    found[f"{path}.{name}"] = method
    return found


CALLABLES = public_callables()


def test_public_callables_are_found() -> None:
    wanted = {
        "vitadapter_fast.builders.vit_adapter_s",
        "vitadapter_fast.model.vit_adapter.ViTAdapter.forward",
        "vitadapter_fast.integrations.deformable_detr.MSDeformAttnFunction.apply",
        "vitadapter_fast.ops._backends.backend",
    }
    assert wanted <= CALLABLES.keys()


@pytest.mark.parametrize(
    ("framework", "wanted"),
    [
        ("mmengine", "mmdet.ViTAdapterLayerDecay.add_params"),
        ("detectron2", "detectron2.build_vit_adapter_backbone"),
        ("torchvision", "torchvision.mask_rcnn"),
        ("timm", "timm.ViTAdapter.forward_intermediates"),
        ("timm", "timm.vit_adapter_s_dinov2"),
        ("segmentation_models_pytorch", "smp.register_encoder"),
    ],
)
def test_public_callables_for_a_framework_are_found(framework: str, wanted: str) -> None:
    pytest.importorskip(framework)
    assert f"vitadapter_fast.integrations.{wanted}" in CALLABLES


@pytest.mark.parametrize("name", sorted(CALLABLES.keys() - KEYWORDS_ARE_DATA))
def test_unknown_keyword_is_refused_by_name(name: str) -> None:
    """Without other arguments: Python, too, names an unknown keyword before a missing argument."""
    with pytest.raises(TypeError, match=f"{UNKNOWN}|takes no (keyword )?arguments"):
        CALLABLES[name](**REQUIRED.get(name, {}), **{UNKNOWN: None})
