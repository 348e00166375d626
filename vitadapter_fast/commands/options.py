# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands share: the text of an option in, its checked value out."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..builders import MODELS, vit_adapter
from ..errors import CommandError
from ..images import MAX_SIZE, MIN_SIZE
from ..model.vit_adapter import VIT_FEATURES, ViTAdapter


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return the type of an option that takes a whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {least} to {most}, got {text!r}"
            )
        return value

    return parse


def given_name(text: str) -> str:
    """Be the type of an option that takes a path; "" would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got ''")
    return text


def given_path(text: str) -> Path:
    """Be the type of an option that takes a path, for code that wants a ``Path``."""
    return Path(given_name(text))


def finite(text: str) -> float:
    """Be the type of an option that takes a number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value


def number(least: float, most: float) -> Callable[[str], float]:
    """Return the type of an option that takes a number from ``least`` to ``most``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must be a number from {least:g} to {most:g}, got {text!r}"
            )
        return value

    return parse


def image_size(text: str) -> tuple[int, int]:
    """Be the type of ``--size``: return (H, W) of ``HxW``, or of ``N``, which is NxN."""
    height, by, width = text.lower().partition("x")
    try:
        hw = int(height), int(width if by else height)
    except ValueError:
        hw = (0, 0)
    if not MIN_SIZE <= min(hw) <= max(hw) <= MAX_SIZE:
        raise argparse.ArgumentTypeError(
            f"must be N or HxW, such as 512 or 512x640, from {MIN_SIZE} to {MAX_SIZE}, got {text!r}"
        )
    return hw


def size_text(hw: tuple[int, int]) -> str:
    """Return (H, W) as ``--size`` takes it."""
    return f"{hw[0]}x{hw[1]}"


def add_size(
    parser: argparse.ArgumentParser, note: str, default: tuple[int, int], *, is_preset: bool = True
) -> None:
    """Add ``--size``, which means the same in every command.

    Args:
        parser: Of the command.
        note: What the command does with images of that size.
        default: (H, W).
        is_preset: Whether the parsed value is ``default`` where the option is missing, not None.
    """
    parser.add_argument(
        "--size",
        type=image_size,
        default=default if is_preset else None,
        metavar="N|HxW",
        help="size of the image in pixels, height x width, or N for NxN: "
        f"{note} (default: {size_text(default)})",
    )


def add_model(
    parser: argparse.ArgumentParser, without_weights: str, others: Sequence[str] = ()
) -> None:
    """Add the options that name a model and its weights, for ``model_of``.

    Args:
        parser: Of the command.
        without_weights: What the command does where the option is missing.
        others: Models that the command has beside the published ones.
    """
    parser.add_argument("--model", choices=(*MODELS, *others), default="s", help="default: s")
    parser.add_argument(
        "--weights",
        type=given_path,
        metavar="FILE",
        help="DINOv2 or ViT-Adapter checkpoint in any known format, or a name such as "
        f"dinov2_vits14, which is downloaded once; without it, {without_weights}",
    )
    parser.add_argument(
        "--vit-features",
        choices=VIT_FEATURES,
        default="last",
        help="stages for weights of the original's segmentors (default: last)",
    )


def model_of(args: argparse.Namespace) -> ViTAdapter:
    """Return the model that parsed options name, without its weights."""
    return vit_adapter(args.model, vit_features=args.vit_features)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, for ``device_of``."""
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")


def device_of(name: str | None) -> torch.device:
    """Return the device that ``--device`` names.

    Raises:
        CommandError: It is not there.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise CommandError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device(name or ("cuda" if has_cuda else "cpu"))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that no memory was left, of a GPU or of the CPU."""
    told = ("DefaultCPUAllocator", "can't allocate memory", "std::bad_alloc")
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or any(
        each in str(error) for each in told
    )
