"""What a set of shards holds, as its index says: for programs, and as a table for people."""

from typing import Any

from stargan_dist.console.tables import format_table
from stargan_dist.data.index import Index, Shard

MAX_LEFT_OUT_TOLD = 20


def facts(index: Index) -> dict[str, Any]:
    """What an index says, without the single shards."""
    return {
        "fingerprint": index.fingerprint,
        "source": index.source,
        "encoding": index.encoding,
        "domains": index.domains,
        "splits": {
            split: {domain: _sums(shards) for domain, shards in domains.items()}
            for split, domains in index.splits.items()
        },
        **_sums(index.shards()),
        "left_out": index.skipped,
    }


def _sums(shards: list[Shard]) -> dict[str, Any]:
    """Images, shards, bytes; the smallest and largest width and height, in pixels."""
    sides = {"widths": [s.widths for s in shards], "heights": [s.heights for s in shards]}
    return {
        "images": sum(s.samples for s in shards),
        "shards": len(shards),
        "bytes": sum(s.bytes for s in shards),
        **{k: [min(v)[0], max(s[1] for s in v)] if v else [] for k, v in sides.items()},
    }


def table(told: dict[str, Any]) -> str:
    """What `facts` returned, for people."""
    rows = [
        (split, domain, *_cells(sums))
        for split, domains in told["splits"].items()
        for domain, sums in domains.items()
    ]
    header = "split", "domain", "images", "shards", "MiB", "pixels"
    return "\n".join(
        [
            format_table([header, *rows, ("total", "", *_cells(told))], left=(0, 1, 5)),
            f"encoding: {_encoding_line(told['encoding'])}",
            f"fingerprint: {told['fingerprint'][:12]}",
            *_left_out(told["left_out"]),
        ]
    )


def _cells(sums: dict[str, Any]) -> tuple[str, str, str, str]:
    mib = f"{sums['bytes'] / 2**20:.1f}"
    return str(sums["images"]), str(sums["shards"]), mib, _pixels(sums["widths"], sums["heights"])


def _pixels(widths: list[int], heights: list[int]) -> str:
    """`512×512`, or `480–512 × 500–512`; nothing for no image."""
    if not widths:
        return ""
    width, height = ("–".join(str(side) for side in sorted(set(s))) for s in (widths, heights))
    return f"{width} × {height}" if "–" in width + height else f"{width}×{height}"


def _encoding_line(encoding: dict[str, Any] | None) -> str:
    if not encoding:
        return "original bytes"
    return ", ".join(f"{name} {value}" for name, value in encoding.items())


def _left_out(faults: list[str]) -> list[str]:
    more = len(faults) - MAX_LEFT_OUT_TOLD
    return [
        *(f"left out: {fault}" for fault in faults[:MAX_LEFT_OUT_TOLD]),
        *([f"… and {more} more"] if more > 0 else []),
    ]
