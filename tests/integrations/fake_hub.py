# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A hub of one repository, in the place of huggingface_hub's HfApi."""

from pathlib import Path
from typing import Any, NamedTuple


class Url(NamedTuple):
    """What creating a repository returns."""

    repo_id: str


class FakeHub:
    """It keeps what an upload had, for all who ask."""

    has_card = False

    def __init__(self, token: Any = None) -> None:
        FakeHub.token = token

    def create_repo(self, repo_id: str, **kwargs: Any) -> Url:
        FakeHub.created = kwargs
        return Url(f"me/{repo_id.rpartition('/')[2]}")

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        FakeHub.branch = branch

    def file_exists(self, repo_id: str, name: str, *, revision: str | None) -> bool:
        assert (repo_id.partition("/")[0], name) == ("me", "README.md")
        return FakeHub.has_card

    def upload_folder(self, *, repo_id: str, folder_path: Path | str, **kwargs: Any) -> str:
        FakeHub.files = {each.name: each.read_bytes() for each in Path(folder_path).iterdir()}
        FakeHub.upload = kwargs
        return f"https://hub/{repo_id}"
