# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Command line in, exit status out; each subcommand lives in a module that loads when called."""

import argparse
import importlib
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import NamedTuple

from ..version import __version__
from .termination import output_failed, tidy_termination


class _Command(NamedTuple):
    summary: str
    example: str  # its arguments


_COMMANDS = {
    "features": _Command(
        "run photos through a model: table, picture, feature maps",
        "photos --size 512x640 --out pictures --save maps.safetensors",
    ),
    "train": _Command(
        "train a detector on your photos with boxes, in COCO's format",
        "--data blood_cells --model s --weights dinov2_vits14 --size 640",
    ),
    "detect": _Command(
        "find in photos what a detector was trained on: pictures with boxes, and a list",
        "run photos --out pictures",
    ),
    "convert": _Command(
        "convert DINOv2 checkpoints from patch size 14 to 16",
        "dinov2_vits14_pretrain.pth --method pi",
    ),
    "export": _Command(
        "write a model as ONNX or as an AOTInductor package, compared with PyTorch",
        "--weights dinov2_vits14_pretrain.pth --format onnx --size 512x640 --out s.onnx",
    ),
    "configs": _Command(
        "list the packaged configs for mmdet, mmseg and detectron2; or print a path",
        "mask_rcnn_dinov2_adapter_small_fpn_3x_coco",
    ),
    "info": _Command(
        "list which backend runs which operator here, and why; or what a model costs",
        "--cost s --size 512x640",
    ),
}
# Exponents of more digits are of numbers that no option takes.
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)e[+-]?\d{1,3}", re.ASCII | re.IGNORECASE)
_PROGRAM = "python -m vitadapter_fast"
# Import name -> package, and the extra that has it.
_EXTRAS = {
    "PIL": ("pillow", "cli"),
    "rich": ("rich", "cli"),
    "matplotlib": ("matplotlib", "cli"),
    "torchvision": ("torchvision", "train"),
    "pycocotools": ("pycocotools", "train"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("onnxscript", "export"),
    "onnxruntime": ("onnxruntime", "export"),
}


@tidy_termination()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        Exit status: 0, 1 after an error, 130 if interrupted.

    Raises:
        SystemExit: The arguments are wrong (status 2), or ask for help or the version (0); or the
            process was told to end (143).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _notices_on_stderr():
            status = _run(arguments)
            sys.stdout.flush()
            return status
    except ModuleNotFoundError as error:
        found = _EXTRAS.get((error.name or "").partition(".")[0])
        if found is None:
            raise
        package, extra = found
        sys.stderr.write(
            f"error: this command needs {package}: pip install 'vitadapter_fast[{extra}]'\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except OSError as error:
        return output_failed(error)


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="ViT-Adapter backbones on DINOv2 weights, with fast kernels.",
        epilog=f"example, with a photo that comes with the library:\n  {_PROGRAM} features\n\n"
        f"{_PROGRAM} COMMAND --help lists the options of a command",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vitadapter_fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (summary, example) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            # As it is, so that it can be copied from any terminal.
            epilog=f"example:\n  {_PROGRAM} {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if arguments[:1] == [name]:
            module = importlib.import_module(f".{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    parsed = parser.parse_args(_without_exponents(arguments))
    status: int = parsed.run(parsed)
    return status


def _without_exponents(arguments: Sequence[str]) -> list[str]:
    """Return arguments with negative numbers written out: argparse takes -1e3 for an option."""
    return [format(Decimal(each), "f") if _NEGATIVE.fullmatch(each) else each for each in arguments]


class _Notices(logging.StreamHandler):  # type: ignore[type-arg]
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {record.getMessage()}"


@contextmanager
def _notices_on_stderr() -> Iterator[None]:
    logger = logging.getLogger("vitadapter_fast")
    level, propagate = logger.level, logger.propagate
    handler = _Notices(sys.stderr)
    handler.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
