# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Image sizes as arguments of Triton kernels: h << 32 | w, at most sixteen of a kind.

They are integers that no kernel is specialized for, so a new image size compiles nothing. A call
passes as many as it has levels or grids (``_triton.packed_sizes``).
"""

import triton
import triton.language as tl


# Triton before 3.3 has no tuples: every size is an argument of its own.
@triton.jit
def size_of(i: tl.constexpr, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15):
    """Return size number ``i`` of sixteen, h << 32 | w."""
    if i < 8:
        hw = four_of(i, a0, a1, a2, a3) if i < 4 else four_of(i - 4, a4, a5, a6, a7)
    else:
        hw = four_of(i - 8, a8, a9, a10, a11) if i < 12 else four_of(i - 12, a12, a13, a14, a15)
    # Compilers that ask what a kernel writes pass small integers for what is not known.
    return hw.to(tl.int64)


@triton.jit
def four_of(i: tl.constexpr, a, b, c, d):
    """Return argument number ``i`` of four."""
    return (a if i == 0 else b) if i < 2 else (c if i == 2 else d)


@triton.jit
def unpack(size):
    """Return h and w, for arithmetic of 32 bits."""
    return (size >> 32).to(tl.int32), size.to(tl.int32)


@triton.jit
def unpack_wide(size):
    """Return h and w, for arithmetic of 64 bits."""
    return size >> 32, size & 0xFFFFFFFF
