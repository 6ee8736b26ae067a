"""A contact sheet of a set of shards: some images of every domain, for people to look at."""

import io
import math
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from PIL import Image, ImageDraw, ImageFont

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.data.index import Index, read_index
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader
from stargan_dist.errors import UserError

ROW = 8  # cells in a row of a domain
GAP = 4  # pixels between cells
MARGIN = 24  # around the sheet, and between domains
MAX_PIXELS = 2**26  # of a sheet
ASPECT = 1.4  # width by height that sheets of many domains come near to

PAPER, MAT, INK, FAINT, CROSS = "#fcfcfa", "#eeeeea", "#1c1c1c", "#80807a", "#c83c32"
# Of many scripts first.
FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf", "Arial.ttf")

Cell = Image.Image | None  # None: it could not be read


@dataclass(frozen=True)
class Layout:
    """Where things lie on a sheet, in pixels.

    Domains are blocks of equal size, in one or more columns: a heading, then rows of cells.
    """

    domains: int
    per_domain: int
    size: int

    @property
    def row(self) -> int:
        return min(ROW, self.per_domain)

    @property
    def text(self) -> int:
        """Height of the letters of a heading."""
        return max(12, min(20, self.size // 7))

    @property
    def heading(self) -> int:
        return self.text + self.text // 2

    @property
    def block(self) -> tuple[int, int]:
        """Width and height of a domain."""
        rows, pitch = math.ceil(self.per_domain / self.row), self.size + GAP
        return self.row * pitch - GAP, self.heading + rows * pitch - GAP

    @cached_property
    def columns(self) -> int:
        """As many as bring the sheet nearest to ASPECT."""
        return min(range(1, self.domains + 1), key=self._distance)

    def _distance(self, columns: int) -> float:
        width, height = self._sheet(columns)
        return abs(math.log(width / height / ASPECT))

    def _sheet(self, columns: int) -> tuple[int, int]:
        width, height = self.block
        rows = math.ceil(self.domains / columns)
        return (
            columns * (width + MARGIN) + MARGIN,
            rows * (height + MARGIN) + MARGIN + self.title,
        )

    @property
    def title(self) -> int:
        return 2 * self.heading

    @property
    def sheet(self) -> tuple[int, int]:
        """Width and height of all."""
        return self._sheet(self.columns)

    def corner(self, domain: int) -> tuple[int, int]:
        """The left upper corner of a domain; they are numbered down the columns."""
        rows = math.ceil(self.domains / self.columns)
        column, row = divmod(domain, rows)
        width, height = self.block
        return (
            MARGIN + column * (width + MARGIN),
            MARGIN + self.title + row * (height + MARGIN),
        )

    def cell(self, domain: int, number: int) -> tuple[int, int]:
        """The left upper corner of a cell."""
        left, top = self.corner(domain)
        row, column = divmod(number, self.row)
        pitch = self.size + GAP
        return left + column * pitch, top + self.heading + row * pitch


def preview(
    url: str, *, split: str = "train", per_domain: int = 8, size: int = 128
) -> tuple[Image.Image, list[str]]:
    """Draw images of every domain, evenly spread over its shards.

    Args:
        url: of the set.
        split: of the set.
        per_domain: images of each domain, at most.
        size: of a cell, in pixels; images are fitted into it, not distorted.

    Returns:
        The sheet, and why images that are crossed out could not be read.

    Raises:
        UserError: there is no such set or split, or the sheet would be too large.
    """
    index = read_index(url)
    if split not in index.splits:
        raise UserError(f"{url} has no split {split}: name one of {', '.join(index.splits)}")
    counts = [sum(shards) for shards in index.counts(split)]
    layout = Layout(len(counts), max(1, min(per_domain, max(counts))), size)
    _check_size(layout)
    cells, faults = _read(ShardReader(url, index, split), per_domain, size)
    return draw_sheet(layout, _title(url, index, split), index.domains, counts, cells), faults


def _check_size(layout: Layout) -> None:
    width, height = layout.sheet
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{layout.domains} domains make a sheet of {width} × {height} pixels: "
            "ask for less by --size or --per-domain"
        )


def write_png(url: str, image: Image.Image) -> None:
    """Raises UserError where it cannot be written."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    try:
        storage.write_bytes(url, buffer.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {url}: {error}; name another file by --out") from error


# What is shown.


def spread(counts: Sequence[int], number: int) -> list[tuple[int, int]]:
    """Shard and sample of `number` samples, or of all if there are fewer, evenly spread.

    Args:
        counts: samples of each shard.
    """
    ends = list(accumulate(counts, initial=0))
    number = min(number, ends[-1])
    picked = [(2 * i + 1) * ends[-1] // (2 * number) for i in range(number)]
    return [((shard := bisect_right(ends, n) - 1), n - ends[shard]) for n in picked]


def _read(reader: ShardReader, per_domain: int, size: int) -> tuple[list[list[Cell]], list[str]]:
    """The cells of each domain, and faults of those that are None."""
    places = [
        [Location(domain, *place) for place in spread(counts, per_domain)]
        for domain, counts in enumerate(reader.index.counts(reader.split))
    ]
    cells: list[list[Cell]] = []
    faults: list[str] = []
    with progress_bar(sum(map(len, places)), "images", description="reading") as progress:
        for row in places:
            cells.append([_fitted(reader, place, size, faults) for place in row])
            progress.update(len(row))
    return cells, faults


def _fitted(reader: ShardReader, place: Location, size: int, faults: list[str]) -> Cell:
    """An image, as large as a cell has room for; None, and a fault more, if it cannot be read."""
    try:
        image, _ = reader.image(place)
    except UserError as error:
        faults.append(str(error))
        return None
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _title(url: str, index: Index, split: str) -> tuple[str, str]:
    images = sum(sum(shards) for shards in index.counts(split))
    name = url.rstrip("/").rpartition("/")[2]
    return name, f"{split}: {_images(images)} of {len(index.domains)} domains"


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


# Drawing.


def draw_sheet(
    layout: Layout,
    title: tuple[str, str],
    domains: Sequence[str],
    counts: Sequence[int],
    cells: Sequence[Sequence[Cell]],
) -> Image.Image:
    """Draw what was read.

    Args:
        title: two texts, the second one fainter.
        counts: images of each domain, for its heading.
        cells: of each domain, each no larger than a cell; None is drawn as a cross.
    """
    sheet = Image.new("RGB", layout.sheet, PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (MARGIN, MARGIN), title, layout.text * 5 // 4, sheet.width - 2 * MARGIN)
    for domain, (name, count, row) in enumerate(zip(domains, counts, cells, strict=True)):
        texts = name, _images(count)
        _write(draw, layout.corner(domain), texts, layout.text, layout.block[0])
        for number, cell in enumerate(row):
            _paste(sheet, draw, layout.cell(domain, number), layout.size, cell)
    return sheet


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    texts: tuple[str, str],
    size: int,
    width: int,
) -> None:
    """A name and, fainter, what is to be said of it; the name is cut where there is no room."""
    name, note = texts
    font = _font(name + note, size)
    room = width - draw.textlength(note, font) - size
    if draw.textlength(name, font) > room:
        while name and draw.textlength(f"{name}…", font) > room:
            name = name[:-1]
        name += "…"
    draw.text(corner, name, INK, font)
    left = corner[0] + draw.textlength(name, font) + size / 2
    draw.text((left, corner[1]), note, FAINT, font)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """PIL's own font; for other letters than those of ASCII one of the system's, if it has any."""
    for name in () if text.isascii() else FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: int, cell: Cell
) -> None:
    left, top = corner
    right, bottom = left + size - 1, top + size - 1
    draw.rectangle((left, top, right, bottom), MAT)
    if cell:
        sheet.paste(cell, (left + (size - cell.width) // 2, top + (size - cell.height) // 2))
        return
    pen = max(1, size // 40)
    inset = size // 4
    for begin, end in ((top, bottom), (bottom, top)):
        inward = inset if begin < end else -inset
        draw.line((left + inset, begin + inward, right - inset, end - inward), CROSS, pen)
    draw.rectangle((left, top, right, bottom), outline=CROSS)
