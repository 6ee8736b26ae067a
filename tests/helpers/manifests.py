"""Manifests of landmarks."""

import json


def write_rows(path, rows):
    """Write a manifest from pairs of a file and its points, or from whole rows."""
    wholes = (row if isinstance(row, dict) else {"file": row[0], "points": row[1]} for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in wholes))
    return path
