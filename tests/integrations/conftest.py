# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Tests of a framework skip where it is missing, or fail with VITADAPTER_FRAMEWORKS=required."""

import os
from collections.abc import Generator, Iterator

import pytest

IS_REQUIRED = os.environ.get("VITADAPTER_FRAMEWORKS") == "required"


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that gives its reason."""
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"VITADAPTER_FRAMEWORKS=required, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if IS_REQUIRED and "cuda" not in item.keywords:
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IS_REQUIRED:
        fail_if_skipped(report)
    return report


@pytest.fixture
def trusted_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's checkpoints hold more than tensors, which torch loads only if it is asked to."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


@pytest.fixture
def mmdet_scope() -> Iterator[None]:
    """Names in configs are mmdet's for the time of a test."""
    yield from _scope("mmdet")


@pytest.fixture
def mmseg_scope() -> Iterator[None]:
    """Names in configs are mmseg's for the time of a test."""
    yield from _scope("mmseg")


def _scope(name: str) -> Iterator[None]:
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope(name):
        yield
