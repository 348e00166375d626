# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m vitadapter_fast features``: photos in, pictures of their feature maps out."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
