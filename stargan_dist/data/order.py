"""Which samples, in which order: pure functions of (seed, slot).

Training is one endless row of slots. Iteration t with a global batch of B takes the slots
t·B … t·B + B - 1, and the ranks share them out. What a slot holds (its source, its references,
its latents, its augmentations) depends on the seed and its own number alone, so any number of
ranks and workers sees the same global sequence, and a resumed run goes on where it stopped
because it knows its step. With several data sets a step's slots are all of one of them.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

WINDOW_SHARDS = 16  # samples are shuffled within groups of this many (shuffled) shards


def seeded_rng(seed: int, *words: str | int) -> np.random.Generator:
    """A random generator of its own for every purpose: a function of the seed and the words."""
    numbers = (zlib.crc32(w.encode()) if isinstance(w, str) else w for w in words)
    return np.random.default_rng([seed, *numbers])


@lru_cache(maxsize=64)
def targets(seed: int, step: int, batch_size: int) -> tuple[int, ...]:
    """A permutation of a step's global batch: image i is given the label of image targets[i]."""
    return tuple(seeded_rng(seed, "targets", step).permutation(batch_size).tolist())


def place(slot: int, batch_size: int, sets: int) -> tuple[int, int]:
    """Of which of several data sets a slot is, and its number among the slots of that set.

    Steps take one data set after the other, and each set sees its own slots without a gap.
    """
    step, i = divmod(slot, batch_size)
    turn, number = divmod(step, sets)
    return number, turn * batch_size + i


def data_source_seed(seed: int, number: int) -> int:
    """The seed of a data set's order: sets of one form would be read in step otherwise."""
    return int(seeded_rng(seed, "set", number).integers(2**63)) if number else seed


class Location(NamedTuple):
    """A sample in the index: shard number `shard` of the domain, sample number `sample` in it."""

    domain: int
    shard: int
    sample: int


@lru_cache(maxsize=1024)
def _domains_of_block(num_domains: int, seed: int, stream: str, block: int) -> np.ndarray:
    return seeded_rng(seed, stream, "domains", block).permutation(num_domains)


@lru_cache(maxsize=512)
def _window(seed: int, stream: str, domain: int, epoch: int, window: int, size: int) -> np.ndarray:
    order = seeded_rng(seed, stream, "window", domain, epoch, window).permutation(size)
    return order.astype(np.int32)  # half the memory of the cache


@dataclass(frozen=True, eq=False)  # hashed by identity: counts may be of ten thousand shards
class Order:
    """The order of one split.

    Args:
        counts: for each domain, the number of samples of each of its shards.
        seed: of the run.
    """

    counts: tuple[tuple[int, ...], ...]
    seed: int

    @cached_property
    def sizes(self) -> list[int]:
        """The number of samples of each domain."""
        return [sum(counts) for counts in self.counts]

    def _turn(self, stream: str, slot: int) -> tuple[int, int]:
        """Balanced domains: each block of K slots visits every domain once, in random order."""
        block, i = divmod(slot, len(self.counts))
        domains = _domains_of_block(len(self.counts), self.seed, stream, block)
        return int(domains[i]), block

    def source(self, slot: int) -> Location:
        """The source of a slot. A pass visits every image of the domain exactly once."""
        domain, position = self._turn("source", slot)
        epoch, i = divmod(position, self.sizes[domain])
        return self._locate("source", domain, epoch, i)

    def references(self, slot: int) -> tuple[Location, Location]:
        """Two different images of one domain, independent of the slot's source.

        The second follows the same pass half a pass ahead: never the same image, and both visit
        every image exactly once a pass.
        """
        domain, position = self._turn("reference", slot)
        size = self.sizes[domain]
        epoch, i = divmod(position, size)
        return (
            self._locate("reference", domain, epoch, i),
            self._locate("reference", domain, epoch, (i + size // 2) % size),
        )

    def _locate(self, stream: str, domain: int, epoch: int, i: int) -> Location:
        """Sample i of a pass: shards in random order, shuffled within windows of some shards."""
        shards, starts = _shards_of_pass(self, stream, domain, epoch)
        window = (int(np.searchsorted(starts, i, side="right")) - 1) // WINDOW_SHARDS
        begin = starts[window * WINDOW_SHARDS]
        end = starts[min((window + 1) * WINDOW_SHARDS, len(shards))]
        shuffled = _window(self.seed, stream, domain, epoch, window, int(end - begin))
        position = begin + shuffled[i - begin]
        turn = int(np.searchsorted(starts, position, side="right")) - 1
        return Location(domain, int(shards[turn]), int(position - starts[turn]))

    def substitutes(self, domain: int, count: int, *words: str | int) -> list[Location]:
        """Different images of a domain, drawn at random, to stand in for one that is damaged.

        Like everything here they depend on the seed and the words alone. Fewer than `count` if
        the domain has no more.
        """
        starts = np.concatenate([[0], np.cumsum(self.counts[domain])])
        rng = seeded_rng(self.seed, "substitute", *words)
        drawn = rng.choice(self.sizes[domain], min(count, self.sizes[domain]), replace=False)
        shards = np.searchsorted(starts, drawn, side="right") - 1
        return [
            Location(domain, int(shard), int(i - starts[shard]))
            for shard, i in zip(shards, drawn, strict=True)
        ]


@lru_cache(maxsize=128)
def _shards_of_pass(
    order: Order, stream: str, domain: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The pass's order of the shards, and where each one's samples begin in it (and the end)."""
    counts = np.asarray(order.counts[domain])
    shards = seeded_rng(order.seed, stream, "shards", domain, epoch).permutation(len(counts))
    return shards, np.concatenate([[0], np.cumsum(counts[shards])])
