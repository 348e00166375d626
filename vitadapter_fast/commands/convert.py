# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Command line in, DINOv2 checkpoints with patch size 16 out, one per file or model name."""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ..errors import CheckpointError
from ..weights import PatchMethod, convert_14to16
from ..weights.download import OfficialModel, download, is_address, official_model
from ..weights.files import write_checkpoint
from ..weights.hub import repository
from ..weights.read import files_of, read_checkpoint
from .options import given_name, given_path
from .termination import output_failed, tidy_termination

DESCRIPTION = (
    "Convert DINOv2 checkpoints from patch size 14 to 16, as ViT-Adapter trains from. "
    "X.pth becomes X_14to16.pth beside it; a name that ends in .safetensors selects that format."
)

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the conversion to a parser."""
    parser.add_argument(
        "files",
        nargs="+",
        type=given_name,
        metavar="FILE",
        help="checkpoint in official, Hugging Face or timm format, a folder of Hugging Face's, an "
        "index of shards, or a name to download: dinov2_vits14, dinov2_vitb14, dinov2_vitl14, "
        "dinov2_vitg14, each also with _reg",
    )
    parser.add_argument(
        "--method",
        choices=("bilinear", "pi"),
        default="bilinear",
        help="resize of the patch kernel: bilinear, as ViT-Adapter does (default), or pi, which "
        "keeps the tokens' scale (FlexiViT)",
    )
    parser.add_argument(
        "--prefer",
        metavar="NAME",
        help="which of several sets of weights in a file: ema, teacher, student, or any other key",
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=given_path,
        help="output file, or folder; a folder for several",
    )


def run(args: argparse.Namespace) -> int:
    """Convert what parsed arguments ask for, and write results to stdout, errors to stderr.

    Args:
        args: From a parser with ``add_arguments``.

    Returns:
        Exit status: 0, 1 if any file failed, 130 if interrupted.
    """
    try:
        return _convert_all(args.files, args.out, args.method, args.prefer)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


@tidy_termination()
def main(argv: Sequence[str] | None = None) -> int:
    """Parse a command line and return the exit status of ``run``; SIGTERM ends it with 143."""
    parser = argparse.ArgumentParser(prog="convert_14to16.py", description=DESCRIPTION)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        status = run(args)
        sys.stdout.flush()
    except OSError as error:
        return output_failed(error)
    return status


def _convert_all(
    names: Sequence[str], out: Path | None, method: PatchMethod, prefer: str | None
) -> int:
    if len(names) > 1 and out is not None and not os.path.isdir(out):
        sys.stderr.write(f"error: {out}: wanted an existing folder for several files\n")
        return 1
    sources = [_source(name, out) for name in names]
    inputs = {os.path.realpath(file) for path, _ in sources for file in files_of(path)}
    written: set[str] = set()
    num_failed = 0
    # A download shows a bar of its own.
    has_bar = sys.stderr.isatty()
    is_local = all(model is None for _, model in sources)
    with _progress(sources, is_shown=has_bar and is_local) as each:
        for path, model in each:
            try:
                if is_address(str(path)) and not os.path.exists(path):
                    raise CheckpointError(
                        f"{path}: an address; download the file and give its path, or give the "
                        "address to load_checkpoint, which converts as well"
                    )
                if repository(str(path)) and not os.path.exists(path):
                    raise CheckpointError(
                        f"{path}: a DINOv3 ViT, which has patch size 16 already; give the name to "
                        "load_checkpoint"
                    )
                path = files_of(path)[0]
                target = _target(path, out)
                if os.path.realpath(target) in inputs:
                    raise CheckpointError(f"{path}: would be written onto the input {target}")
                if os.path.realpath(target) in written:
                    raise CheckpointError(f"{path}: another input was already written to {target}")
                if model is not None:
                    path = download(model, path.parent, has_progress_bar=has_bar)
                tensors = read_checkpoint(path, prefer=prefer)
                converted = convert_14to16(tensors, method=method, source=str(path))
                write_checkpoint(converted, target)
            except CheckpointError as error:
                num_failed += 1
                sys.stderr.write(f"error: {error}\n")
            else:
                written.add(os.path.realpath(target))
                sys.stdout.write(f"{path} -> {target}\n")
    return 1 if num_failed else 0


def _source(name: str, out: Path | None) -> tuple[Path, OfficialModel | None]:
    model = None if os.path.exists(name) else official_model(name)
    if model is None:
        return Path(name), None
    folder = Path() if out is None else out if os.path.isdir(out) else out.parent
    return folder / model.file_name, model


def _target(source: Path, out: Path | None) -> Path:
    if out is not None and not os.path.isdir(out):
        return out
    weights = Path(source.name.removesuffix(".index.json"))
    name = f"{weights.stem}_14to16{weights.suffix or '.pth'}"
    return (source.parent if out is None else out) / name


@contextmanager
def _progress(items: Sequence[T], *, is_shown: bool) -> Iterator[Iterable[T]]:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield items
        return
    is_hidden = len(items) < 2 or not is_shown
    with Progress(console=Console(stderr=True), transient=True, disable=is_hidden) as progress:
        yield progress.track(items, description="Converting")
