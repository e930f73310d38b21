"""Text from a file, such as a name with any characters, for a message or a table."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` on one line, with escapes for characters that are not printable.

    These are characters that control a terminal, or reverse or hide the text around them
    (str.isprintable).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
