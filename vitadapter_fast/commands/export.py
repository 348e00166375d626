# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Command line in; an exported file, and how far it is from PyTorch, out."""

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import CheckpointError, ExportError
from ..export import Parity, export_onnx, export_pt2
from ..export._onnx import MODES, OPSETS
from ..export._parity import TOLERANCE
from ..export._program import MIN_DYNAMIC_SIZE, check_size
from ..model.grid import STRIDES
from ..weights import load_checkpoint
from ..weights.dinov3 import LICENSE_NOTICE
from .options import (
    add_model,
    add_size,
    given_path,
    is_out_of_memory,
    model_of,
    size_text,
    whole_number,
)

_log = logging.getLogger("vitadapter_fast")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    add_model(parser, "weights are random")
    parser.add_argument(
        "--format",
        choices=("onnx", "pt2"),
        required=True,
        help="onnx, or pt2: compiled by AOTInductor for this machine",
    )
    parser.add_argument(
        "--out", type=given_path, required=True, metavar="FILE", help="ends in .onnx or .pt2"
    )
    parser.add_argument("--force", action="store_true", help="replace --out if it exists")
    add_size(
        parser,
        "multiples of 32; where the file is checked, with --static all it takes",
        (512, 512),
    )
    parser.add_argument(
        "--static", action="store_true", help="fix the image to --size, and the batch to 1"
    )
    parser.add_argument(
        "--onnx-mode",
        choices=MODES,
        help="of ONNX: standard operators only (gather, default), or TensorRT's plugin for the "
        "deformable attention",
    )
    parser.add_argument(
        "--opset",
        type=whole_number(OPSETS[0], OPSETS[-1]),
        metavar="N",
        help=f"of ONNX, {OPSETS[0]} to {OPSETS[-1]} (default: 20)",
    )


def run(args: argparse.Namespace) -> int:
    """Export what parsed arguments ask for; results go to stdout, errors to stderr.

    Args:
        args: From a parser with ``add_arguments``.

    Returns:
        Exit status: 0, or 1 if anything failed, a comparison with PyTorch included.
    """
    try:
        _run(args)
    except (CheckpointError, ExportError, ValueError) as error:
        failure = str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = f"{args.out}: out of memory; lower --size, or take a smaller --model"
    else:
        return 0
    sys.stderr.write(f"error: {failure}\n")
    return 1


def _run(args: argparse.Namespace) -> None:
    if args.format != "onnx" and not args.opset is args.onnx_mode is None:
        raise ExportError(f"--opset and --onnx-mode are of --format onnx, got {args.format}")
    H, W = check_size(args.size)
    if not args.static and min(args.size) < MIN_DYNAMIC_SIZE:
        raise ExportError(
            f"--size {size_text(args.size)}: sides are from {MIN_DYNAMIC_SIZE} up unless --static "
            "fixes them; add it, or take a larger size"
        )
    # Not Path.exists, which raises where a name is too long.
    if os.path.lexists(args.out):
        if args.weights is not None and os.path.realpath(args.out) == os.path.realpath(
            args.weights
        ):
            raise ExportError(f"{args.out}: would be written onto the input --weights")
        if not args.force:
            raise ExportError(f"{args.out}: exists; --force replaces it")
    torch.manual_seed(0)
    model = model_of(args).eval()
    if args.weights is None:
        sys.stdout.write("weights: random (seed 0): the file is of an untrained network\n")
    else:
        found = load_checkpoint(model, args.weights)
        part = "" if found.format == "upstream" else ": ViT only; the adapter is random (seed 0)"
        sys.stdout.write(f"weights: {args.weights} ({found.format}){part}\n")

    image_size = args.size if args.static else None
    # Another height and another width.
    check_sizes = [args.size, (max(MIN_DYNAMIC_SIZE, H // 64 * 32), W + 32)]
    start = time.perf_counter()
    with _progress(f"{args.format} of vit_adapter_{args.model}"), _quiet():
        if args.format == "pt2":
            parities = export_pt2(model, args.out, image_size, check_sizes=check_sizes)
        else:
            parities = export_onnx(
                model,
                args.out,
                image_size,
                mode=args.onnx_mode or "gather",
                opset=args.opset or 20,
                check_sizes=check_sizes,
            )
    if args.weights is not None and model.trunk == "dinov3":
        _log.info("%s: %s", args.out, LICENSE_NOTICE)
    for parity in parities:
        sys.stdout.write(f"{_line(parity)}\n")
    sys.stdout.write(
        f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB, "
        f"{time.perf_counter() - start:.0f} s\n"
    )


def _line(parity: Parity) -> str:
    H, W = parity.image_size
    errors = ", ".join(
        f"1/{stride} {error:.1e}" for stride, error in zip(STRIDES, parity.errors, strict=True)
    )
    return f"{H}x{W}: error relative to the peak: {errors} (allowed {TOLERANCE:.0e})"


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Show that something happens, which takes a minute, if stderr is a terminal."""
    try:
        from rich.console import Console
    except ImportError:
        yield
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    # A spinner of ASCII, which every console shows.
    with console.status(f"Exporting {what}", spinner="line"):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch's exporters say of their own dependencies."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
