# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A file that is written appears whole, or what was there stays; one way for all that writes."""

import ast
import os
from pathlib import Path

import pytest
from folders import names_in

import vitadapter_fast
from vitadapter_fast.errors import CommandError
from vitadapter_fast.files import make_folder, replacing, replacing_with_others

WRITERS = (replacing, replacing_with_others)


@pytest.mark.parametrize("writer", WRITERS)
def test_file_takes_the_place_of_an_older_one(writer, tmp_path: Path) -> None:
    target = tmp_path / "new.txt"
    target.write_text("old")
    with writer(target, CommandError) as part:
        assert part.parent.parent == tmp_path or part.parent == tmp_path
        part.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names_in(tmp_path) == ["new.txt"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("own"), RuntimeError("own")])
def test_error_of_another_kind_passes_and_leaves_the_old_file(
    failure: BaseException, writer, tmp_path: Path
) -> None:
    target = tmp_path / "old.txt"
    target.write_text("old")
    with pytest.raises(type(failure)) as told, writer(target, CommandError) as part:
        part.write_text("half")
        raise failure
    assert told.value is failure
    assert target.read_text() == "old"
    assert names_in(tmp_path) == ["old.txt"]


@pytest.mark.parametrize("writer", WRITERS)
def test_what_the_system_says_is_told_as_the_error_that_is_wanted(writer, tmp_path: Path) -> None:
    target = tmp_path / "gone" / "x.txt"
    with pytest.raises(CommandError) as told, writer(target, CommandError):
        raise AssertionError("the block must not run")
    assert str(told.value) == f"{target}: cannot be written: No such file or directory"


def test_error_that_hides_the_systems_is_told_by_that(tmp_path: Path) -> None:
    """torch's file writer fails with a RuntimeError of its own on a full disk."""
    target = tmp_path / "x.txt"
    with pytest.raises(CommandError, match="x.txt: cannot be written: No space left on device"):  # noqa: SIM117
        with replacing(target, CommandError):
            try:
                raise OSError(28, "No space left on device")
            finally:
                raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B012
    assert names_in(tmp_path) == []


def test_users_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "x.txt", CommandError) as part:
            part.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "x.txt").stat().st_mode & 0o777 == 0o644


def test_longest_name_has_room(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 255)
    with replacing(target, CommandError) as part:
        part.write_text("new")
    assert target.read_text() == "new"


def test_files_beside_the_one_move_along(tmp_path: Path) -> None:
    with replacing_with_others(tmp_path / "model", CommandError) as part:
        part.write_text("names model.data")
        part.with_name("model.data").write_text("weights")
    assert names_in(tmp_path) == ["model", "model.data"]


def test_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="file/x: cannot be made: Not a directory"):
        make_folder(tmp_path / "file" / "x", CommandError)


def test_nothing_else_moves_files_into_place() -> None:
    root = Path(vitadapter_fast.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.replace", "os.rename")
    }
    assert found == {"files.py"}
