"""The pictures of a file, a folder, a pattern, a URL or shards, each with a name of its own."""

import fnmatch
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar

from PIL import Image

from stargan_dist import storage
from stargan_dist.config import DataConfig
from stargan_dist.data.index import INDEX
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader, open_reader
from stargan_dist.errors import UserError, explained, is_utf8, printable
from stargan_dist.inference.pictures import read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
PATTERN = "*?["
READERS = 12  # pictures that are read at a time
AHEAD = 2 * READERS  # pictures that are read before they are needed, at most
T = TypeVar("T")


class Source(NamedTuple):
    """A picture to translate. Picklable.

    Attributes:
        name: in the names of its outputs: the path in its folder, without suffix unless another
            source has the same name.
        origin: where it comes from, for people.
        read: reads it. Raises UserError.
    """

    name: str
    origin: str
    read: Callable[[], Image.Image]


def read_ahead(
    sources: Sequence[Source], use: Callable[[Image.Image], T]
) -> Generator["Future[T]", None, None]:
    """Read pictures in the background, several at a time. Yield the results in order.

    A future raises what reading or `use` raised. The iterator must be closed.

    Args:
        use: makes of a picture what is kept of it. It is called in threads.
    """
    pool = ThreadPoolExecutor(READERS)
    waiting: deque[Future[T]] = deque()
    try:
        for source in sources:
            waiting.append(pool.submit(lambda read: use(read()), source.read))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown()


def read_all(sources: Sequence[Source], use: Callable[[Image.Image], T]) -> list[T]:
    """Read pictures, several at a time, and return what `use` makes of each.

    Raises:
        UserError: one cannot be read.
    """
    with closing(read_ahead(sources, use)) as futures:
        return [future.result() for future in futures]


def list_sources(location: str, split: str = "val", outside: str = "") -> list[Source]:
    """List pictures in a stable order.

    Args:
        location: path or URL of a file, of a folder with its subfolders, of shards; or a pattern
            such as `photos/*.jpg`, whose `*` may match several folders.
        split: of shards.
        outside: folder or URL whose files are left out, such as that of the outputs.

    Raises:
        UserError: there are none, or the location cannot be listed.
    """
    try:
        if storage.exists(storage.join(location, INDEX)):
            return _of_shards(location, split)
        return _of_files(location, outside)
    except OSError as error:
        raise explained(f"cannot list {location}: {error}", error) from error


def _of_files(location: str, outside: str) -> list[Source]:
    folder, pattern = _split_pattern(location)
    if not pattern and not storage.exists(location):
        raise UserError(f"{location}: no such file or folder")
    if not pattern and not storage.is_folder(location):
        return [_of_file(location, PurePosixPath(location).stem)]
    paths = sorted(
        path
        for path in storage.find_files(folder)
        if (fnmatch.fnmatchcase(path, pattern) if pattern else path.lower().endswith(SUFFIXES))
        and not (outside and storage.is_below(storage.join(folder, path), outside))
    )
    if not paths:
        where = f" outside {outside}" if outside else ""
        raise UserError(f"{location} has no images ({', '.join(SUFFIXES)}){where}")
    return [
        _of_file(storage.join(folder, path), name)
        for path, name in zip(paths, _names(paths), strict=True)
    ]


def _names(paths: Sequence[str]) -> list[str]:
    """Return a name for each path: without its suffix if no other path or stem is equal to that."""
    stems = [_stem(path) for path in paths]
    counts = Counter([*stems, *paths])  # photo.jpg is the stem of photo.jpg.webp
    return [
        stem if counts[stem] == 1 + (stem == path) else path
        for stem, path in zip(stems, paths, strict=True)
    ]


def _split_pattern(location: str) -> tuple[str, str]:
    """Return the folder in front of a pattern, and the pattern; without one it is empty."""
    if storage.exists(location) or not any(character in location for character in PATTERN):
        return location, ""
    parts = location.split("/")
    first = next(i for i, part in enumerate(parts) if any(c in part for c in PATTERN))
    root = "/" if location.startswith("/") else "."
    return "/".join(parts[:first]) or root, "/".join(parts[first:])


def _of_file(url: str, name: str) -> Source:
    # Tables of outputs cannot hold such a name.
    return Source(_safe(name), url, partial(read_image if is_utf8(url) else _refuse_name, url))


def _refuse_name(url: str) -> Image.Image:
    raise UserError(f"cannot read the image {printable(url)}: its name is not UTF-8: rename it")


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _safe(name: str) -> str:
    """Return a name without parts that lead out of a folder."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def _of_shards(url: str, split: str) -> list[Source]:
    reader = open_reader(DataConfig(url), split)
    return [
        _of_sample(reader, domain, number)
        for domain in range(len(reader.index.domains))
        for number in range(reader.num_images(domain))
    ]


def _of_sample(reader: ShardReader, domain: int, number: int) -> Source:
    name = f"{reader.index.domains[domain]}/{number:08d}"
    location = reader.locate(domain, number)
    return Source(_safe(name), f"{reader.url}: {name}", partial(_read_sample, reader, location))


def _read_sample(reader: ShardReader, location: Location) -> Image.Image:
    return reader.read_image(location)[0]
