"""The order of samples: pure functions of (seed, slot).

Training is one endless sequence of slots. Iteration t with a global batch of B takes the slots
t·B … t·B + B - 1, and the ranks divide them. The contents of a slot (its source, its references,
its latents, its augmentations) depend on the seed and the slot's number alone. Any number of ranks
and workers therefore reads the same global sequence, and a resumed run needs only its step to
continue it. With several data sources, all slots of a step are of one source.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

STREAM_NAMES = ("source", "reference")
PAIR = 2  # consecutive slots of a step, and with two domains an image of each
WINDOW_SHARDS = 16  # samples are shuffled within windows of this many (shuffled) shards


def seeded_rng(seed: int, *words: str | int) -> np.random.Generator:
    """Return an independent random generator for each purpose: a function of seed and words."""
    numbers = (zlib.crc32(w.encode()) if isinstance(w, str) else w for w in words)
    return np.random.default_rng([seed, *numbers])


@lru_cache(maxsize=64)
def target_permutation(seed: int, step: int, batch_size: int) -> tuple[int, ...]:
    """Return a permutation p of a step's global batch.

    The target of image i is the label of image p[i].
    """
    return tuple(seeded_rng(seed, "targets", step).permutation(batch_size).tolist())


def turn_of(number: int, num_turns: int) -> int:
    """Return whose turn it is at a number, of one or two, in the order of Thue and Morse.

    Each pair of numbers (2k, 2k + 1) has both turns. So has what is left if only every 2nd, 4th or
    8th number counts, as for a loader worker or a lazy term: 0 1 1 0 1 0 0 1 …
    """
    assert num_turns <= 2
    return number.bit_count() % num_turns


def data_source_of_slot(slot: int, batch_size: int, num_sources: int) -> tuple[int, int]:
    """Return the index of a slot's data source, and the slot's number among that source's slots.

    Steps alternate between the data sources, and each source sees its own slots without a gap.
    """
    step, i = divmod(slot, batch_size)
    cycle, source_index = divmod(step, num_sources)
    return source_index, cycle * batch_size + i


def data_source_seed(seed: int, source_index: int) -> int:
    """Return the seed of a data source's order.

    Sources of equal shape would otherwise be read in the same order.
    """
    if source_index == 0:
        return seed
    return int(seeded_rng(seed, "set", source_index).integers(2**63))


class Location(NamedTuple):
    """The position of a sample in the index: sample `sample` of shard `shard` of a domain."""

    domain: int
    shard: int
    sample: int


@lru_cache(maxsize=1024)
def _domains_of_block(num_domains: int, seed: int, stream: str, block: int) -> np.ndarray:
    return seeded_rng(seed, stream, "domains", block).permutation(num_domains)


@lru_cache(maxsize=512)
def _window(seed: int, stream: str, domain: int, epoch: int, window: int, size: int) -> np.ndarray:
    order = seeded_rng(seed, stream, "window", domain, epoch, window).permutation(size)
    return order.astype(np.int32)  # halves the memory of the cache


@dataclass(frozen=True, eq=False)  # hashed by identity: counts may cover ten thousand shards
class Order:
    """The order of the samples of one split.

    Args:
        counts: for each domain, the number of samples of each of its shards.
        seed: seed of the order.
    """

    counts: tuple[tuple[int, ...], ...]
    seed: int

    @cached_property
    def sizes(self) -> list[int]:
        """Number of samples of each domain."""
        return [sum(counts) for counts in self.counts]

    def _domain_of_slot(self, stream: str, slot: int) -> tuple[int, int]:
        """Return a slot's domain, and the slot's position among the slots of that domain.

        Domains are balanced: each block of K slots visits all K domains once, in random order.
        """
        block, i = divmod(slot, len(self.counts))
        domains = _domains_of_block(len(self.counts), self.seed, stream, block)
        return int(domains[i]), block

    def source(self, slot: int) -> Location:
        """Return the source image of a slot. A pass visits every image of a domain exactly once."""
        domain, position = self._domain_of_slot("source", slot)
        epoch, i = divmod(position, self.sizes[domain])
        return self._locate("source", domain, epoch, i)

    def references(self, slot: int) -> tuple[Location, Location]:
        """Return two different images of one domain, independent of the slot's source.

        The second one is half a pass ahead in the same pass: it is never the same image, and both
        visit every image exactly once in a pass.
        """
        domain, position = self._domain_of_slot("reference", slot)
        size = self.sizes[domain]
        epoch, i = divmod(position, size)
        return (
            self._locate("reference", domain, epoch, i),
            self._locate("reference", domain, epoch, (i + size // 2) % size),
        )

    def _locate(self, stream: str, domain: int, epoch: int, i: int) -> Location:
        """Locate sample i of a pass: shards in random order, samples shuffled within windows."""
        shards, starts = shards_of_pass(self, stream, domain, epoch)
        window = (int(starts.searchsorted(i, side="right")) - 1) // WINDOW_SHARDS
        begin = starts[window * WINDOW_SHARDS]
        end = starts[min((window + 1) * WINDOW_SHARDS, len(shards))]
        shuffled = _window(self.seed, stream, domain, epoch, window, int(end - begin))
        position = begin + shuffled[i - begin]
        shard_position = int(starts.searchsorted(position, side="right")) - 1
        shard, sample = int(shards[shard_position]), int(position - starts[shard_position])
        return Location(domain, shard, sample)

    def next_uses(self, slot: int, *, with_references: bool) -> list[np.ndarray]:
        """Return when each shard is read next: the beginning of a window that has it.

        Args:
            slot: the present slot.
            with_references: references are read, too.

        Returns:
            For each domain, slots (shards,), as if the domains came in turns; the present one for
            shards of present windows.
        """
        position = slot // len(self.counts)
        streams = STREAM_NAMES if with_references else STREAM_NAMES[:1]
        uses = [
            np.min([self._next_windows(s, domain, position) for s in streams], axis=0)
            for domain in range(len(self.counts))
        ]
        return [use * len(self.counts) for use in uses]

    def _next_windows(self, stream: str, domain: int, position: int) -> np.ndarray:
        """Return the positions at which a domain's shards are read next in a stream."""
        size, num_shards = self.sizes[domain], len(self.counts[domain])
        half = size // 2
        result = np.full(num_shards, np.iinfo(np.int64).max // len(self.counts))
        for epoch in (position // size, position // size + 1):
            shards, starts = shards_of_pass(self, stream, domain, epoch)
            first = np.arange(num_shards) // WINDOW_SHARDS * WINDOW_SHARDS
            last = np.minimum(first + WINDOW_SHARDS, num_shards)
            # The second references are half a pass ahead, and continue at its beginning.
            for ahead in (0,) if stream == "source" else (0, half, half - size):
                begin, end = (
                    epoch * size + np.clip(starts[i] - ahead, 0, size) for i in (first, last)
                )
                is_next = (begin < end) & (end > position)
                use = np.where(is_next, np.maximum(begin, position), result[shards])
                result[shards] = np.minimum(result[shards], use)
        return result

    def substitutes(self, domain: int, count: int, *words: str | int) -> list[Location]:
        """Draw different images of a domain that may replace a damaged one.

        They depend on the seed and the words alone. There are fewer than `count` if the domain
        has fewer images.
        """
        starts = np.concatenate([[0], np.cumsum(self.counts[domain])])
        rng = seeded_rng(self.seed, "substitute", *words)
        drawn = rng.choice(self.sizes[domain], min(count, self.sizes[domain]), replace=False)
        shards = np.searchsorted(starts, drawn, side="right") - 1
        return [
            Location(domain, int(shard), int(i - starts[shard]))
            for shard, i in zip(shards, drawn, strict=True)
        ]


@lru_cache(maxsize=512)
def shards_of_pass(
    order: Order, stream: str, domain: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a domain's shards in the order of a pass, and their first positions in it.

    The positions (n + 1,) end with the number of samples.
    """
    counts = np.asarray(order.counts[domain])
    shards = seeded_rng(order.seed, stream, "shards", domain, epoch).permutation(len(counts))
    return shards, np.concatenate([[0], np.cumsum(counts[shards])])
