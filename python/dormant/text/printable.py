"""Text from a file in a message or a table: names that may hold anything."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` on one line, with escapes for what is not printable.

    That is what a terminal obeys, and what turns or hides the text around it (str.isprintable).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
