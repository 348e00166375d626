# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m vitadapter_fast train``: photos with boxes in, a detector of such boxes out."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
