"""Tables in plain text."""

from collections.abc import Collection, Iterable, Sequence

from tabulate import tabulate


def format_table(rows: Iterable[Sequence[str]], *, left: Collection[int]) -> str:
    """Format rows of text as columns separated by two spaces, without trailing spaces.

    Cells are printed as they are: text that looks like a number is not reformatted.

    Args:
        rows: the header, then the data; all of the same length.
        left: numbers of the columns that are aligned to the left, from 0. The others are aligned
            to the right.
    """
    lines = [list(row) for row in rows]
    align = ["left" if i in left else "right" for i in range(len(lines[0]) if lines else 0)]
    # The header is passed as data: tabulate widens columns under headers.
    return tabulate(lines, tablefmt="plain", colalign=align, disable_numparse=True)
