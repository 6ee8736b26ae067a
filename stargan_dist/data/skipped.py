"""The samples that could not be read and were replaced: counted, bounded, and told."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from stargan_dist.errors import WorldError

Rows = dict[str, dict[str, Any]]  # shard -> {"samples": how many, "reason": why the first}


class Fault(NamedTuple):
    """A sample that could not be read."""

    shard: str
    reason: str


class SkippedSamples:
    """What was replaced, by shard. `rows` are plain values, as a checkpoint keeps them."""

    def __init__(self, rows: Rows | None = None) -> None:
        self.rows: Rows = {shard: dict(row) for shard, row in (rows or {}).items()}

    def add(self, shard: str, reason: str, samples: int = 1) -> None:
        row = self.rows.setdefault(shard, {"samples": 0, "reason": reason})
        row["samples"] += samples

    @classmethod
    def joined(cls, ranks: Iterable[Rows]) -> "SkippedSamples":
        """What all ranks replaced together."""
        whole = cls()
        for rows in ranks:
            for shard, row in rows.items():
                whole.add(shard, row["reason"], row["samples"])
        return whole

    @property
    def samples(self) -> int:
        return sum(row["samples"] for row in self.rows.values())

    def check(self, most: int) -> None:
        """Raises WorldError if more samples than `most` were replaced."""
        if self.samples > most:
            worst = max(self.rows, key=lambda shard: self.rows[shard]["samples"])
            raise WorldError(
                f"{self.samples} samples of {len(self.rows)} shards were replaced, more than "
                f"data.max_skipped = {most}; most of them of {worst}: {self.rows[worst]['reason']}"
            )

    def __str__(self) -> str:
        return "; ".join(
            f"{row['samples']} of shard {shard} ({row['reason']})"
            for shard, row in sorted(self.rows.items())
        )
