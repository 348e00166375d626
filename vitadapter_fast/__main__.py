# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m vitadapter_fast``, or ``vitadapter-fast``: arguments in, exit status out."""

import sys

from .commands.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
