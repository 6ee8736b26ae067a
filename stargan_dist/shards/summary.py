"""Summary of a dataset from its index: as JSON for programs, and as a table."""

from typing import Any

from stargan_dist.console.tables import format_table
from stargan_dist.data.index import Index, Shard
from stargan_dist.errors import printable

MAX_LEFT_OUT_SHOWN = 20
HEADER = ("split", "domain", "images", "shards", "MiB", "pixels")
LEFT_ALIGNED = (0, 1, 5)  # split, domain, pixels


def summarise(index: Index) -> dict[str, Any]:
    """Return the contents of an index, with totals in place of the single shards."""
    return {
        "fingerprint": index.fingerprint,
        "source": index.source,
        "encoding": index.encoding,
        "domains": index.domains,
        "splits": {
            split: {domain: _totals(shards) for domain, shards in domains.items()}
            for split, domains in index.splits.items()
        },
        **_totals(index.shards()),
        "left_out": index.skipped,
    }


def _totals(shards: list[Shard]) -> dict[str, Any]:
    """Numbers of images, shards and bytes; smallest and largest width and height, in pixels."""
    ranges = {"widths": [s.widths for s in shards], "heights": [s.heights for s in shards]}
    return {
        "images": sum(s.samples for s in shards),
        "shards": len(shards),
        "bytes": sum(s.bytes for s in shards),
        **{k: [min(v)[0], max(s[1] for s in v)] if v else [] for k, v in ranges.items()},
    }


def summary_table(summary: dict[str, Any]) -> str:
    """Format the result of `summarise` as a table with notes."""
    rows = [
        (split, printable(domain, 200), *_cells(totals))
        for split, domains in summary["splits"].items()
        for domain, totals in domains.items()
    ]
    return "\n".join(
        [
            format_table([HEADER, *rows, ("total", "", *_cells(summary))], left=LEFT_ALIGNED),
            f"encoding: {_format_encoding(summary['encoding'])}",
            f"fingerprint: {summary['fingerprint'][:12]}",
            *_left_out_lines(summary["left_out"]),
        ]
    )


def _cells(totals: dict[str, Any]) -> tuple[str, str, str, str]:
    mib = f"{totals['bytes'] / 2**20:.1f}"
    pixels = _format_sizes(totals["widths"], totals["heights"])
    return str(totals["images"]), str(totals["shards"]), mib, pixels


def _format_sizes(widths: list[int], heights: list[int]) -> str:
    """Format as `512×512` or `480–512 × 500–512`; return "" if there are no images."""
    if not widths:
        return ""
    width, height = ("–".join(str(side) for side in sorted(set(s))) for s in (widths, heights))
    return f"{width} × {height}" if "–" in width + height else f"{width}×{height}"


def _format_encoding(encoding: dict[str, Any] | None) -> str:
    if not encoding:
        return "original bytes"
    return printable(", ".join(f"{name} {value}" for name, value in encoding.items()))


def _left_out_lines(faults: list[str]) -> list[str]:
    lines = [printable(f"left out: {fault}") for fault in faults[:MAX_LEFT_OUT_SHOWN]]
    if len(faults) > MAX_LEFT_OUT_SHOWN:
        lines.append(f"… and {len(faults) - MAX_LEFT_OUT_SHOWN} more")
    return lines
