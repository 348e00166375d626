# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Text in, written to a console of any encoding."""

from typing import TextIO


def write(stream: TextIO, text: str) -> None:
    """Write text; characters that the stream's encoding does not have become escapes.

    Args:
        stream: Such as ``sys.stdout``, whatever its encoding.
        text: Such as a line with a file's name, which may be no UTF-8 either.
    """
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding, stream.errors or "strict")
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)
