# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The only door to the compiled extension: tensor -> pointer, dtype code; outputs in huge pages."""

import logging
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..version import __version__

_log = logging.getLogger("vitadapter_fast")

AHEAD_BYTES = 30 * 2**20
LARGE_BYTES = 4 * 2**20
_Output = TypeVar("_Output", bound=Tensor | None)

# What is called of it but launchers.
_ASKED = (
    *("has_half_products", "has_int8_products", "has_low_products"),
    *("prefer_huge_pages", "prefer_huge_pages_next", "take_block", "limit_kept", "free_kept"),
)

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


@cache
def load() -> tuple[ModuleType | None, str]:
    """Return the extension, or None and why it cannot be used."""
    try:
        extension = import_module("vitadapter_fast._C")
    except ImportError as error:
        reason = f"the compiled extension vitadapter_fast._C does not load ({error})"
    else:
        built = extension.build_info()["version"]
        missing = [name for name in _ASKED if not hasattr(extension, name)]
        if built == __version__ and not missing:
            return extension, ""
        reason = f"the compiled extension is of version {built}, the package of {__version__}"
        if built == __version__:
            reason = f"the compiled extension was built from other sources: no {missing[0]}"
    reason += "; reinstall with `pip install .` from the source tree"
    # No installation lacks it on purpose, and without it everything is slow: more than DEBUG.
    _log.warning("%s; until then operators run in Triton on GPUs, or in plain PyTorch", reason)
    return None, reason


def unavailable_reason() -> str | None:
    """Return why the compiled extension cannot be used, or None."""
    module, reason = load()
    return reason if module is None else None


def build_info() -> dict[str, Any]:
    """Return the facts of the build; empty without the extension."""
    module, _ = load()
    return dict(module.build_info()) if module else {}


def launch(name: str, **arguments: Any) -> None:
    """Call a launcher of the extension with keyword arguments: tensors as addresses, None as 0.

    Raises:
        RuntimeError: The extension is not available, as ``unavailable_reason`` says; it was built
            from other sources; or CUDA refused the launch.
        MemoryError: There is none for what a kernel keeps beside its outputs.
    """
    module, reason = load()
    if module is None:
        raise RuntimeError(f"vitadapter_fast: {name}: {reason}")
    # Beside the tensors, which have to live until the launch returns: the caller may hold none.
    plain = arguments.copy()
    for key, value in arguments.items():
        if value is None:
            plain[key] = 0
        elif isinstance(value, Tensor):
            if value.is_neg():  # its numbers lie in memory with the other sign
                arguments[key] = value = value.resolve_neg()
            plain[key] = value.data_ptr()
    try:
        getattr(module, name)(**plain)
    except MemoryError as error:
        raise MemoryError(f"vitadapter_fast: {name}: no memory beside the outputs") from error
    except (AttributeError, TypeError) as error:
        raise RuntimeError(
            f"vitadapter_fast: {name}: the compiled extension was built from other sources than "
            "this package; reinstall with `pip install .` from the source tree"
        ) from error


def in_huge_pages(tensor: _Output) -> _Output:
    """Return a tensor on the CPU that was just made, all of its memory; if large, in huge pages.

    What lies in it is lost. The memory is one that another such tensor has left, if there is any:
    see ``memory.limit_kept_memory``. Huge pages have to be asked for before the first touch makes
    small ones: a training step of ViT-Adapter-S at 512 takes 3 % less (AMD EPYC). Without the
    extension nothing is asked.
    """
    if tensor is not None and tensor.nbytes >= LARGE_BYTES:
        module, _ = load()
        if module is not None:
            if not _is_filled() and (block := module.take_block(tensor.nbytes)) is not None:
                storage = torch.frombuffer(block, dtype=torch.uint8).untyped_storage()
                tensor.set_(storage, 0, tensor.shape, tensor.stride())
            else:
                module.prefer_huge_pages(tensor.data_ptr(), tensor.nbytes)
            module.prefer_huge_pages_next(AHEAD_BYTES)  # and what torch allocates after it
    return tensor


def _is_filled() -> bool:
    """Return whether torch has written to what was just made, for nobody to read what was there."""
    return (
        torch.are_deterministic_algorithms_enabled()
        and torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    )
