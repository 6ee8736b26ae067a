"""Text of others on one line of a terminal: names of files, contents of manifests."""

import unicodedata

LINE_SEPARATORS = ("Zl", "Zp")  # Unicode categories; control and unassigned characters begin with C


def printable(text: str, limit: int | None = None) -> str:
    """Return the text with control characters, line breaks and lone surrogates escaped.

    Args:
        text: any text.
        limit: number of characters after which it is cut; None: not cut.
    """
    cut = text if limit is None or len(text) <= limit else text[:limit] + "…"
    return "".join(map(_escape, cut)) if not cut.isprintable() else cut


def is_utf8(name: str) -> bool:
    """Return False if a name has lone surrogates, which stand for bytes that are not UTF-8."""
    try:
        name.encode()
        return True
    except UnicodeEncodeError:
        return False


def _escape(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] == "C" or category in LINE_SEPARATORS:
        return ascii(character)[1:-1]
    return character
