# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of the CPU: what this library keeps for its own tensors, and what malloc does for all."""

import ctypes
import logging
import platform

from . import extension

_log = logging.getLogger(__name__)

# glibc's malloc maps larger buffers anew for every use, and the system fills them with zeros.
HEAP_BYTES = 32 * 2**20

_NO_LIMIT = 2**64 - 1
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors on the CPU free, for the next ones.

    glibc gives large buffers and the end of its heap back to the system, which hands out zeroed
    pages anew. What this library allocates is kept in any case, see ``limit_kept_memory``; this is
    for what torch's operators do. ViT-Adapter-S, 2 cores of an Intel Xeon, ns per pixel without and
    with the call: 8 images of 512 x 512 forward 1742 and 1666, forward and backward 5896 and 5499;
    one of 800 x 1344 2153 and 2065, 6410 and 6319. The process stays as large as it has once been.

    Call it once, before training. It changes malloc for the whole process, so nothing here does it
    by itself; a process with another malloc (jemalloc, tcmalloc) has no need of it.

    Returns:
        Whether the C library took it: glibc alone does.

    Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_MAX.
    """
    if platform.libc_ver()[0] != "glibc":
        _log.warning("keep_freed_memory: not glibc; its malloc was left as it is")
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_MMAP_MAX, 0))


def limit_kept_memory(nbytes: int | None) -> None:
    """Keep at most so much memory that large tensors of this library have left; 0 keeps none.

    Feature maps, tokens and gradients of 4 MiB and more on the CPU lie in memory that the next of
    them use again, in all threads; the system would fill it with zeros page by page. A training
    step of ViT-Adapter-S with one image of 800 x 1344 takes 16 % less (2 cores of an Intel Xeon).
    All that is kept, used and unused, is at most twice what was in use at once since
    ``free_kept_memory`` was last called.

    Args:
        nbytes: Bytes that no tensor uses at the moment; None for no limit.

    Raises:
        ValueError: They are negative.
    """
    if nbytes is not None and nbytes < 0:
        raise ValueError(f"limit_kept_memory: nbytes must be None, 0 or more, got {nbytes}")
    module, _ = extension.load()
    if module is not None:
        module.limit_kept(_NO_LIMIT if nbytes is None else min(nbytes, _NO_LIMIT))


def free_kept_memory() -> int:
    """Give the memory that large tensors of this library have left back to the system.

    Returns:
        Its bytes.
    """
    module, _ = extension.load()
    return 0 if module is None else int(module.free_kept())
