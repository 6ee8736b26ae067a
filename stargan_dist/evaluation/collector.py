"""What the ranks find out together about sets of images, real and translated.

Each rank looks at its share of the images; sums are added up, and only what is bounded in size
travels: features for the kernel distance, a picture, style codes.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.progress import ProgressBar, progress_bar
from stargan_dist.data.batch import to_uint8, to_unit
from stargan_dist.data.images import NumberedImages, load_images, rank_batches
from stargan_dist.data.reader import open_reader
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError
from stargan_dist.evaluation.metrics.statistics import Statistics
from stargan_dist.evaluation.protocols import load_metrics
from stargan_dist.evaluation.tasks import LATENT, OUTPUTS, REAL, Task, draw_latents, draw_references
from stargan_dist.evaluation.tensor_cache import TensorCache
from stargan_dist.inference.translator import Translator

# Rounding depends on the size of a batch (not on what else is in it), and numbers must not depend
# on how images fall to ranks. So networks always see batches of one size: the outputs of one
# source, or as many real images.
REAL_BATCH = OUTPUTS
PICTURED = 4  # sources in the picture of a task


T = TypeVar("T")


class Stopped(Exception):
    """The evaluation was asked to stop."""


@dataclass
class Fakes:
    """What was seen of the translations of a task."""

    statistics: Statistics
    diversity: Tensor  # summed over sources
    broken: Tensor  # outputs that are not finite
    pictures: dict[int, Tensor] = field(default_factory=dict)  # uint8, by source: itself, outputs


class Collector:
    """Looks at images of one data set with the networks of one protocol.

    Args:
        config: of the run.
        stopped: asked between batches whether to give up.

    Raises:
        UserError: there are no shards, or the protocol's weights cannot be had.
    """

    def __init__(self, config: Config, world: World, stopped: Callable[[], bool]) -> None:
        self.config, self.world, self.stopped = config, world, stopped
        self.size = config.model.image_size
        self.readers = {split: open_reader(config.data, split) for split in ("train", "val")}
        beside = storage.join(self.readers["train"].url, "statistics")
        self.store = TensorCache(config.evaluation.cache or beside)
        self.measure = load_metrics(config.evaluation, world, self.readers["train"], self.store)

    def real(self, split: str, label: int) -> Statistics:
        """Of all images of a domain; complete on rank 0 alone. Computed once for a data set.

        Raises:
            WorldError: an image cannot be read.
        """
        facts = self._facts(split, label)
        kept = self.world.run_on_all_ranks(
            lambda: self.store.load(facts) if self.world.is_main else None
        )
        if self.world.all_reduce_max(kept is not None):
            return Statistics.from_dict(kept) if kept else self._none(split, label)
        statistics = self._jointly(lambda: self._look(split, label))
        self._add_up(statistics)
        if self.world.is_main:
            self.store.save(facts, statistics.to_dict())
        return statistics

    def _facts(self, split: str, label: int) -> dict[str, Any]:
        """What the statistics of real images depend on."""
        index = self.readers[split].index
        domain = index.domains[label]
        hashes = [shard.sha256 for shard in index.splits.get(split, {}).get(domain, [])]
        return {
            "what": "statistics of real images",
            "version": 1,
            "protocol": self.measure.protocol,
            "network": self.measure.extractors["features"]["sha256"],
            "image_size": self.size,
            "split": split,
            "domain": domain,
            "shards": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        }

    def _none(self, split: str, label: int, times: int = 1) -> Statistics:
        """Of no image as yet, where there are to be so many for each image of a domain."""
        total = self.readers[split].num_images(label) * times
        return Statistics(self.measure.num_features, total, self.world.device)

    def _jointly(self, share: Callable[[], T]) -> T:
        """Do this rank's share, as `World.together`, unless any rank was asked to stop."""
        done = self.world.run_on_all_ranks(share)
        if self.world.all_reduce_max(self.stopped()):
            raise Stopped
        return done

    def _add_up(self, statistics: Statistics, *sums: Tensor) -> None:
        """Join the statistics of the ranks' shares, and further sums, in place."""
        self.world.all_reduce_sum_(*statistics.sums, *sums)
        statistics.samples = self.world.all_gather(statistics.sample)

    def _share(self, split: str, label: int, batch_size: int) -> list[range]:
        count = self.readers[split].num_images(label)
        return rank_batches(count, batch_size, self.world.rank, self.world.size)

    def sources(self, tasks: Iterable[Task]) -> int:
        """How many sources this rank translates in some tasks."""
        return sum(len(self._share("val", t.source, 1)) for t in tasks if t.guide != REAL)

    def _images(
        self, split: str, label: int, batch_size: int, progress: ProgressBar
    ) -> Iterator[NumberedImages]:
        """This rank's images of a domain, on its device."""
        loaded = load_images(
            self.readers[split],
            label,
            self.size,
            self._share(split, label, batch_size),
            workers=self.config.data.workers,
            start_method=self.config.data.start_method,
            pin_memory=self.world.device.type == "cuda",
        )
        with closing(loaded):
            for first, images in loaded:
                if self.stopped():
                    return
                yield NumberedImages(first, images.to(self.world.device, non_blocking=True))
                progress.update(len(images))

    def _real_images(self, split: str, label: int, what: str) -> Iterator[NumberedImages]:
        """Real images in batches of REAL_BATCH, with progress of their own."""
        total = sum(map(len, self._share(split, label, REAL_BATCH)))
        shown = self.world.is_main
        with progress_bar(total, "images", description=what, shown=shown, brief=True) as progress:
            yield from self._images(split, label, REAL_BATCH, progress)

    @torch.no_grad()
    def _look(self, split: str, label: int) -> Statistics:
        """Of this rank's share of a domain."""
        statistics = self._none(split, label)
        what = f"real {self.readers[split].index.domains[label]} ({split})"
        for first, images in self._real_images(split, label, what):
            statistics.update(self.measure.features(_full(images))[: len(images)], first)
        return statistics

    @torch.no_grad()
    def reference_styles(self, translator: Translator, label: int) -> Tensor:
        """What G is given by all validation images of a domain, (N, code_dim), on every rank.

        Each image is the reference of many outputs; it is encoded once.
        """
        what = f"styles of {translator.domains[label]}"

        def encode() -> Tensor:
            codes = [torch.zeros(0, translator.conditioning_dim)]
            for _, images in self._real_images("val", label, what):
                y = torch.full((REAL_BATCH,), label, device=images.device)
                x_ref = to_unit(_full(images), translator.dtype)
                styles = translator.condition_on_references(x_ref, y)
                codes.append(styles[: len(images)].cpu())
            return torch.cat(codes)

        codes = torch.cat(self.world.all_gather(self._jointly(encode)))
        if not len(codes):
            raise UserError(f"domain {translator.domains[label]} has no validation images")
        return codes.to(self.world.device)

    def fakes(
        self,
        translator: Translator,
        task: Task,
        styles: Tensor | None,
        seed: int,
        progress: ProgressBar,
    ) -> Fakes:
        """Translate all sources of a task.

        Args:
            styles: `reference_styles` of the target, for tasks guided by references.

        Raises:
            WorldError: a validation image cannot be read, or there is none.
        """
        guides = partial(_guides, translator, task, styles, seed)
        fakes = self._jointly(lambda: self._translate(translator, task.source, guides, progress))
        self._add_up(fakes.statistics, fakes.diversity, fakes.broken)
        parts = self.world.all_gather({n: row.cpu() for n, row in fakes.pictures.items()})
        fakes.pictures = {number: row for part in parts for number, row in part.items()}
        return fakes

    @torch.no_grad()
    def _translate(
        self,
        translator: Translator,
        domain: int,
        guides: Callable[[int], Tensor],
        progress: ProgressBar,
    ) -> Fakes:
        """Translate this rank's sources of a domain. Each output is looked at once, and no value is
        read from the device: it works on while the next images are loaded.

        Args:
            guides: style codes of the outputs of a source, by its number.
        """
        if not self.readers["val"].num_images(domain):
            raise UserError(f"domain {translator.domains[domain]} has no validation images")
        device = self.world.device
        fakes = Fakes(
            self._none("val", domain, OUTPUTS),
            torch.zeros((), dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )
        for number, source in self._images("val", domain, 1, progress):
            x = to_unit(source, translator.dtype)
            outputs = translator.translate(x, guides(number))
            seen = to_uint8(outputs)
            fakes.statistics.update(self.measure.features(seen), number * OUTPUTS)
            fakes.diversity += self.measure.diversity(outputs.float()[None]).double().sum()
            fakes.broken += (~outputs.isfinite()).flatten(1).any(1).sum()
            if number < PICTURED:
                fakes.pictures[number] = torch.cat([source, seen])
        return fakes


def _guides(
    translator: Translator, task: Task, styles: Tensor | None, seed: int, source: int
) -> Tensor:
    """What G is given for the outputs of one source, (OUTPUTS, code_dim)."""
    device = translator.device
    if task.guide == LATENT:
        drawn = draw_latents(task, source, translator.config.model.latent_dim, seed)
        z = torch.from_numpy(drawn).to(device, translator.dtype, non_blocking=True)
        y_trg = torch.full((OUTPUTS,), task.target, device=device)
        return translator.condition_on_latents(z, y_trg)
    assert styles is not None
    picked = torch.from_numpy(draw_references(task, source, len(styles), seed))
    return styles.index_select(0, picked.to(device, non_blocking=True))


def _full(images: Tensor) -> Tensor:
    """Images (n, …) with the last one repeated up to a batch of REAL_BATCH."""
    missing = REAL_BATCH - len(images)
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
