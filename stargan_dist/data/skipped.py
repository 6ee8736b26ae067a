"""Samples that could not be read and were replaced: counted, bounded and reported."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from stargan_dist.errors import WorldError

# shard -> {"samples": number of replaced samples, "reason": reason for the first of them}
SkippedCounts = dict[str, dict[str, Any]]


class Fault(NamedTuple):
    """A sample that could not be read."""

    shard: str
    reason: str


class SkippedSamples:
    """Replaced samples by shard. `counts` holds plain values, which checkpoints store."""

    def __init__(self, counts: SkippedCounts | None = None) -> None:
        self.counts: SkippedCounts = {shard: dict(entry) for shard, entry in (counts or {}).items()}

    def add(self, shard: str, reason: str, samples: int = 1) -> None:
        """Count replaced samples of a shard; only the first reason is kept."""
        entry = self.counts.setdefault(shard, {"samples": 0, "reason": reason})
        entry["samples"] += samples

    @classmethod
    def merge(cls, counts_of_ranks: Iterable[SkippedCounts]) -> "SkippedSamples":
        """Add up the counts of all ranks."""
        merged = cls()
        for counts in counts_of_ranks:
            for shard, entry in counts.items():
                merged.add(shard, entry["reason"], entry["samples"])
        return merged

    @property
    def total(self) -> int:
        """Number of samples replaced so far."""
        return sum(entry["samples"] for entry in self.counts.values())

    def check(self, limit: int) -> None:
        """Raise WorldError if more than `limit` samples were replaced."""
        if self.total > limit:
            worst = max(self.counts, key=lambda shard: self.counts[shard]["samples"])
            raise WorldError(
                f"{self.total} samples of {len(self.counts)} shards were replaced, more than "
                f"data.max_skipped = {limit}; most of them in {worst}: "
                f"{self.counts[worst]['reason']}"
            )

    def __str__(self) -> str:
        return "; ".join(
            f"{entry['samples']} of shard {shard} ({entry['reason']})"
            for shard, entry in sorted(self.counts.items())
        )
