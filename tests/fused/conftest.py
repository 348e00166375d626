# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The small models, shared by the tests of this folder."""

from tiny import image, tiny  # noqa: F401
