"""Build shards: the same source gives the same bytes, by any number of processes or machines.

What each shard holds is planned from the listing alone, before any image is read. So shards can
be packed in any order by anybody, and one that is there already need not be packed again.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.data.index import INDEX, Index, Shard, from_json, samples_name, slug
from stargan_dist.errors import UserError
from stargan_dist.shards.listing import Listing, list_source, split_off
from stargan_dist.shards.pack import Encoding, Packed, Task, pack
from stargan_dist.shards.process_pool import map_in_processes
from stargan_dist.shards.publish import (
    WHOLE,
    BuildPart,
    check_parts,
    check_trainable,
    publish,
    write_part,
)

MAX_FAULTS_TOLD = 20


def plan_shards(
    listing: Listing, dest: str, shard_images: int, encoding: Encoding | None, skip_bad: bool
) -> Iterator[Task]:
    """All shards of a listing, by split, domain and number."""
    labels = {domain: label for label, domain in enumerate(listing.domains)}
    for split, domains in listing.splits.items():
        for domain, items in domains.items():
            for first in range(0, len(items), shard_images):
                name = f"{split}/{slug(labels[domain], domain)}-{first // shard_images:06d}.tar"
                yield Task(
                    dest, name, listing.root, split, domain, labels[domain], first,
                    items[first : first + shard_images], encoding, skip_bad,
                )  # fmt: skip


def _stop_at(faults: list[str], source: str) -> None:
    told = "\n".join(f"  {fault}" for fault in faults[:MAX_FAULTS_TOLD])
    more = len(faults) - MAX_FAULTS_TOLD
    told += f"\n  … and {more} more" if more > 0 else ""
    raise UserError(
        f"{len(faults)} faults in {source}; nothing was published. "
        f"Mend or remove them, or leave them out with --skip-bad:\n{told}"
    )


def build(
    source: str,
    dest: str,
    *,
    val_fraction: float = 0.1,
    val_list: str = "",
    seed: int = 0,
    shard_images: int = 1024,
    encoding: Encoding | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    processes: int = 1,
    part: BuildPart = WHOLE,
) -> Index:
    """Pack images into shards. The index, written last, publishes them; a part writes its own.

    Args:
        source: folders of images, one per domain; `train` and `val` folders of such; or a
            manifest (.csv, .jsonl).
        dest: where the shards go. Shards that an interrupted build left there are kept.
        val_fraction: share of each domain's images set apart for validation, if the source has
            no split of its own.
        val_list: a file that lists the paths for validation instead.
        seed: of that draw.
        shard_images: images in each shard.
        encoding: how to encode images again; None: their original bytes.
        skip_bad: leave out what cannot be used, and list it in the index, instead of stopping.
        overwrite: replace the set at `dest`; otherwise it is refused.
        processes: how many pack. They do not change a byte.
        part: pack only the shards of this part, for `merge` to join.

    Raises:
        UserError: for anything a person has to mend.
    """
    if not 0 <= val_fraction < 1 or shard_images < 1:
        raise UserError("val_fraction must be in [0, 1), and shard_images at least 1")
    old = _set_to_replace(dest, overwrite)
    listing = split_off(list_source(source, val_list), val_fraction, seed)
    if listing.faults and not skip_bad:
        _stop_at(listing.faults, source)
    check_trainable(source, listing.domains, listing.splits.get("train", {}))
    storage.check_writable(dest)
    tasks = list(plan_shards(listing, dest, shard_images, encoding, skip_bad))
    plan = hashlib.sha256("".join(task.plan for task in tasks).encode()).hexdigest()
    check_parts(dest, plan)
    if old:
        _remove_set(dest, old)
    if part.of == 1:  # others may be at work on other parts
        for split in listing.splits:
            storage.remove_leftovers(storage.join(dest, split))
    mine = tasks[part.number - 1 :: part.of]
    packed = _pack_with_progress(mine, processes)
    faults = (listing.faults if part.number == 1 else []) + [f for p in packed for f in p.faults]
    if faults and not skip_bad:
        _stop_at(faults, source)
    index = Index(
        listing.domains,
        _by_domain(listing, mine, packed),
        source,
        asdict(encoding) if encoding else None,
        sorted(faults),
    )
    if part.of > 1:
        write_part(dest, part, index, plan)
    else:
        publish(dest, index)
    return index


def _by_domain(
    listing: Listing, tasks: list[Task], packed: list[Packed]
) -> dict[str, dict[str, list[Shard]]]:
    """Split -> domain -> the shards that came out."""
    splits: dict[str, dict[str, list[Shard]]] = {
        split: {domain: [] for domain in domains} for split, domains in listing.splits.items()
    }
    for task, result in zip(tasks, packed, strict=True):
        if result.shard:
            splits[task.split][task.domain].append(result.shard)
    return splits


def _set_to_replace(dest: str, overwrite: bool) -> Index | None:
    """The set that stands at a destination, if any.

    Raises:
        UserError: it must not, or cannot, be replaced.
    """
    where = storage.join(dest, INDEX)
    if not storage.exists(where):
        return None
    if not overwrite:
        raise UserError(
            f"{dest} holds shards already: name another destination, or replace it by --overwrite"
        )
    try:
        return from_json(where, storage.read_bytes(where))
    except UserError as error:
        raise UserError(f"{error}; it cannot be overwritten, remove {dest} yourself") from error


def _remove_set(dest: str, index: Index) -> None:
    """Remove a set: its index first, so that none sees half."""
    storage.remove_file(storage.join(dest, INDEX))
    names = [name for s in index.shards() for name in (samples_name(s.name), s.name)]
    storage.remove_files([storage.join(dest, name) for name in names])


def _pack_with_progress(tasks: list[Task], processes: int) -> list[Packed]:
    total = sum(len(task.items) for task in tasks)
    packed: list[Packed] = []
    with progress_bar(total, "images", description="building shards") as progress:
        for task, result in zip(tasks, map_in_processes(pack, tasks, processes), strict=True):
            packed.append(result)
            progress.update(len(task.items))
    return packed
