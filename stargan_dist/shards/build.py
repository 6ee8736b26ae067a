"""Build shards: the same source gives the same bytes for any number of processes or machines.

The contents of every shard are planned from the listing alone, before any image is read. So shards
can be packed in any order by any process, and a finished shard need not be packed again.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.data.index import (
    INDEX,
    MAX_INDEX_BYTES,
    MAX_SAMPLES,
    Index,
    Shard,
    from_json,
    sample_table_name,
    slug,
)
from stargan_dist.errors import UserError, is_utf8, printable
from stargan_dist.shards.listing import Listing, list_source, split_listing
from stargan_dist.shards.pack import Encoding, PackResult, PackTask, pack
from stargan_dist.shards.process_pool import map_in_processes
from stargan_dist.shards.publish import (
    WHOLE_BUILD,
    BuildPart,
    check_destination,
    check_trainable,
    publish,
    reject_other_builds,
    write_part,
)

MAX_FAULTS_SHOWN = 20


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
    num_processes: int = 1,
    part: BuildPart = WHOLE_BUILD,
) -> Index:
    """Pack images into shards and return their index.

    The index is written last: it publishes the dataset. A part of a build writes an index of its
    own instead, for `merge`.

    Args:
        source: a folder of images per domain; `train` and `val` folders of such folders; or a
            manifest (.csv, .jsonl).
        dest: folder or URL of the shards. Shards of an interrupted build are kept.
        val_fraction: fraction of each domain's images used for validation, in [0, 1). It applies
            if the source has no splits.
        val_list: file that lists the paths of the validation images, instead of `val_fraction`.
        seed: seed of the validation split.
        shard_images: images per shard.
        encoding: encoding of the packed images; None packs the original bytes.
        skip_bad: leave out images that cannot be used, and list them in the index, instead of
            stopping.
        overwrite: replace the dataset at `dest`, which is rejected otherwise.
        num_processes: number of packing processes. It does not change the result.
        part: the part of the build to pack.

    Raises:
        UserError: an option, the source or the destination cannot be used.
    """
    _check_options(source, val_fraction, shard_images)
    old_index = _index_to_replace(dest, overwrite)
    listing = split_listing(list_source(source, val_list), val_fraction, seed)
    if not skip_bad:
        _reject_faults(listing.faults, source)
    check_trainable(source, listing.domains, listing.splits.get("train", {}))
    check_destination(dest)
    storage.check_writable(dest)
    tasks = list(plan_shards(listing, dest, shard_images, encoding, skip_bad))
    plan = hashlib.sha256("".join(task.plan for task in tasks).encode()).hexdigest()
    reject_other_builds(dest, plan)
    _make_room(dest, old_index, listing.splits, part)
    part_tasks = tasks[part.number - 1 :: part.count]
    results = _pack_with_progress(part_tasks, num_processes)
    faults = listing.faults if part.number == 1 else []
    faults = faults + [fault for result in results for fault in result.faults]
    if not skip_bad:
        _reject_faults(faults, source)
    index = Index(
        listing.domains,
        _group_shards(listing, part_tasks, results),
        source,
        asdict(encoding) if encoding else None,
        sorted(faults),
    )
    if part.count > 1:
        write_part(dest, part, index, plan)
    else:
        publish(dest, index)
    return index


def _check_options(source: str, val_fraction: float, shard_images: int) -> None:
    if not 0 <= val_fraction < 1 or not 1 <= shard_images <= MAX_SAMPLES:
        raise UserError(f"val_fraction must be in [0, 1), shard_images in 1 … {MAX_SAMPLES}")
    if not is_utf8(source):
        raise UserError(f"{printable(source)}: the name is not UTF-8: rename it")


def _make_room(dest: str, old_index: Index | None, splits: Iterable[str], part: BuildPart) -> None:
    """Remove the dataset that is replaced, and what killed writers have left."""
    if old_index:
        _remove_dataset(dest, old_index)
    if part.count == 1:  # otherwise other machines may be writing other parts
        for split in splits:
            storage.remove_leftovers(storage.join(dest, split))


def plan_shards(
    listing: Listing, dest: str, shard_images: int, encoding: Encoding | None, skip_bad: bool
) -> Iterator[PackTask]:
    """Yield a task for each shard of a listing, by split, domain and number."""
    labels = {domain: label for label, domain in enumerate(listing.domains)}
    for split, domains in listing.splits.items():
        for domain, items in domains.items():
            for first in range(0, len(items), shard_images):
                name = f"{split}/{slug(labels[domain], domain)}-{first // shard_images:06d}.tar"
                yield PackTask(
                    dest, name, listing.root, split, domain, labels[domain], first,
                    items[first : first + shard_images], encoding, skip_bad,
                )  # fmt: skip


def _index_to_replace(dest: str, overwrite: bool) -> Index | None:
    """Return the index of the dataset at a destination, or None if there is none.

    Raises:
        UserError: the dataset must not, or cannot, be replaced.
    """
    url = storage.join(dest, INDEX)
    if not storage.exists(url):
        return None
    if not overwrite:
        raise UserError(
            f"{dest} holds shards already: name another destination, or replace them by --overwrite"
        )
    try:
        return from_json(url, storage.read_bytes(url, MAX_INDEX_BYTES))
    except UserError as error:
        raise UserError(f"{error}; --overwrite cannot replace it: remove {dest} first") from error


def _reject_faults(faults: list[str], source: str) -> None:
    """Raise UserError with the first faults, if there are any."""
    if not faults:
        return
    lines = [f"  {fault}" for fault in faults[:MAX_FAULTS_SHOWN]]
    if len(faults) > MAX_FAULTS_SHOWN:
        lines.append(f"  … and {len(faults) - MAX_FAULTS_SHOWN} more")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise UserError(
        f"{count} in {source}; nothing was published. "
        "Repair or remove them, or leave them out with --skip-bad:\n" + "\n".join(lines)
    )


def _remove_dataset(dest: str, index: Index) -> None:
    """Remove the index first, so that no reader sees an incomplete dataset, then the shards."""
    storage.remove_file(storage.join(dest, INDEX))
    names = [name for s in index.shards() for name in (sample_table_name(s.name), s.name)]
    storage.remove_files([storage.join(dest, name) for name in names])


def _pack_with_progress(tasks: list[PackTask], num_processes: int) -> list[PackResult]:
    total = sum(len(task.items) for task in tasks)
    results: list[PackResult] = []
    with progress_bar(total, "images", description="building shards") as progress:
        for task, result in zip(tasks, map_in_processes(pack, tasks, num_processes), strict=True):
            results.append(result)
            progress.update(len(task.items))
    return results


def _group_shards(
    listing: Listing, tasks: list[PackTask], results: list[PackResult]
) -> dict[str, dict[str, list[Shard]]]:
    """Group the packed shards: split -> domain -> shards."""
    splits: dict[str, dict[str, list[Shard]]] = {
        split: {domain: [] for domain in domains} for split, domains in listing.splits.items()
    }
    for task, result in zip(tasks, results, strict=True):
        if result.shard:
            splits[task.split][task.domain].append(result.shard)
    return splits
