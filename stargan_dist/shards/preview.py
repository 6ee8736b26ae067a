"""Contact sheet of a dataset: some images of every domain."""

import io
import math
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, islice

from PIL import Image, ImageDraw, ImageFont

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.data.fetch import fetch_in_order
from stargan_dist.data.index import Index, read_index
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader
from stargan_dist.errors import UserError, printable

MAX_CELLS_PER_ROW = 8
GAP = 4  # pixels between cells
MARGIN = 24  # pixels around the sheet and between domains
MAX_PIXELS = 2**26  # limit of a sheet
MAX_NAME = 500  # characters of a name that is measured to be shortened
ASPECT = 1.4  # desired ratio of width to height for sheets of many domains

PAPER, MAT, INK, FAINT, CROSS = "#fcfcfa", "#eeeeea", "#1c1c1c", "#80807a", "#c83c32"
# Fonts that cover many scripts come first.
FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf", "Arial.ttf")

Cell = Image.Image | None  # None: the image could not be read


@dataclass(frozen=True)
class Layout:
    """Positions on a sheet, in pixels.

    Each domain is a block of the same size: a heading and rows of cells. Blocks are arranged in one
    or more columns.
    """

    domains: int
    per_domain: int
    size: int  # width and height of a cell

    @property
    def cells_per_row(self) -> int:
        return min(MAX_CELLS_PER_ROW, self.per_domain)

    @property
    def text_height(self) -> int:
        return max(12, min(20, self.size // 7))

    @property
    def heading_height(self) -> int:
        return self.text_height + self.text_height // 2

    @property
    def title_height(self) -> int:
        return 2 * self.heading_height

    @property
    def block_size(self) -> tuple[int, int]:
        """Width and height of a domain."""
        rows, pitch = math.ceil(self.per_domain / self.cells_per_row), self.size + GAP
        return self.cells_per_row * pitch - GAP, self.heading_height + rows * pitch - GAP

    @cached_property
    def columns(self) -> int:
        """Number of columns that brings the sheet closest to ASPECT."""
        return min(range(1, self.domains + 1), key=self._aspect_error)

    def _aspect_error(self, columns: int) -> float:
        width, height = self._sheet_size(columns)
        return abs(math.log(width / height / ASPECT))

    @property
    def sheet_size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        return self._sheet_size(self.columns)

    def _sheet_size(self, columns: int) -> tuple[int, int]:
        width, height = self.block_size
        rows = math.ceil(self.domains / columns)
        return (
            columns * (width + MARGIN) + MARGIN,
            rows * (height + MARGIN) + MARGIN + self.title_height,
        )

    def block_corner(self, domain: int) -> tuple[int, int]:
        """Left and top of a domain. Domains are numbered down the columns."""
        rows = math.ceil(self.domains / self.columns)
        column, row = divmod(domain, rows)
        width, height = self.block_size
        return (
            MARGIN + column * (width + MARGIN),
            MARGIN + self.title_height + row * (height + MARGIN),
        )

    def cell_corner(self, domain: int, number: int) -> tuple[int, int]:
        """Left and top of a cell."""
        left, top = self.block_corner(domain)
        row, column = divmod(number, self.cells_per_row)
        pitch = self.size + GAP
        return left + column * pitch, top + self.heading_height + row * pitch


def preview(
    url: str, *, split: str = "train", per_domain: int = 8, size: int = 128
) -> tuple[Image.Image, list[str]]:
    """Draw images of every domain, evenly spread over its shards.

    Args:
        url: folder or URL of the shards.
        split: the split to draw.
        per_domain: maximum number of images of each domain.
        size: width and height of a cell, in pixels. Images keep their aspect ratio.

    Returns:
        The sheet, and the faults of the images that could not be read and are crossed out.

    Raises:
        UserError: the dataset or the split does not exist, or the sheet would be too large.
    """
    index = read_index(url)
    if split not in index.splits:
        splits = ", ".join(index.splits)
        raise UserError(f"{url} has no split {printable(split)}: name one of {splits}")
    counts = [sum(shard_counts) for shard_counts in index.counts(split)]
    layout = Layout(len(counts), max(1, min(per_domain, max(counts))), size)
    _check_size(layout)
    cells, faults = _read_cells(ShardReader(url, index, split), per_domain, size)
    return draw_sheet(layout, _title(url, index, split), index.domains, counts, cells), faults


def _check_size(layout: Layout) -> None:
    width, height = layout.sheet_size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{layout.domains} domains make a sheet of {width} × {height} pixels: "
            "reduce it by --size or --per-domain"
        )


def write_png(url: str, image: Image.Image) -> None:
    """Write an image as a PNG.

    Raises:
        UserError: the file cannot be written.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    try:
        storage.write_bytes(url, buffer.getvalue())
    except OSError as error:
        raise UserError(f"cannot write {url}: {error}; name another file by --out") from error


# Selection and reading of images.


def spread(counts: Sequence[int], number: int) -> list[tuple[int, int]]:
    """Choose `number` evenly spread samples, or all if there are fewer, as (shard, sample).

    Args:
        counts: samples of each shard.
    """
    starts = list(accumulate(counts, initial=0))
    number = min(number, starts[-1])
    chosen = [(2 * i + 1) * starts[-1] // (2 * number) for i in range(number)]
    return [((shard := bisect_right(starts, n) - 1), n - starts[shard]) for n in chosen]


def _read_cells(
    reader: ShardReader, per_domain: int, size: int
) -> tuple[list[list[Cell]], list[str]]:
    """Return the cells of each domain, and the faults of those that are None."""
    locations = [
        [Location(domain, *location) for location in spread(counts, per_domain)]
        for domain, counts in enumerate(reader.index.counts(reader.split))
    ]
    cells: list[list[Cell]] = []
    faults: list[str] = []
    in_order = fetch_in_order(reader, chain.from_iterable(locations))
    with progress_bar(sum(map(len, locations)), "images", description="reading") as progress:
        for domain_locations in locations:
            own = islice(in_order, len(domain_locations))
            cells.append([_read_cell(reader, at, size, faults) for at in own])
            progress.update(len(domain_locations))
    return cells, faults


def _read_cell(reader: ShardReader, location: Location, size: int, faults: list[str]) -> Cell:
    """Read an image and scale it to a cell. If it is unreadable, append a fault, return None."""
    try:
        image, _ = reader.read_image(location)
    except UserError as error:
        faults.append(str(error))
        return None
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _title(url: str, index: Index, split: str) -> tuple[str, str]:
    images = sum(sum(shard_counts) for shard_counts in index.counts(split))
    name = url.rstrip("/").rpartition("/")[2]
    return name, f"{split}: {_count_images(images)} of {len(index.domains)} domains"


def _count_images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


# Drawing.


def draw_sheet(
    layout: Layout,
    title: tuple[str, str],
    domains: Sequence[str],
    counts: Sequence[int],
    cells: Sequence[Sequence[Cell]],
) -> Image.Image:
    """Draw a contact sheet.

    Args:
        title: the name of the dataset, and a note in a fainter colour.
        domains: the heading of each domain.
        counts: number of images of each domain, printed in its heading.
        cells: images of each domain, not larger than a cell. None is drawn as a cross.
    """
    sheet = Image.new("RGB", layout.sheet_size, PAPER)
    draw = ImageDraw.Draw(sheet)
    title_height = layout.text_height * 5 // 4
    _write_text(draw, (MARGIN, MARGIN), title, title_height, sheet.width - 2 * MARGIN)
    for domain, (name, count, images) in enumerate(zip(domains, counts, cells, strict=True)):
        heading, width = (name, _count_images(count)), layout.block_size[0]
        _write_text(draw, layout.block_corner(domain), heading, layout.text_height, width)
        for number, image in enumerate(images):
            _draw_cell(sheet, draw, layout.cell_corner(domain, number), layout.size, image)
    return sheet


def _write_text(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    texts: tuple[str, str],
    size: int,
    width: int,
) -> None:
    """Write a name and, fainter, a note. Shorten the name if both exceed the width."""
    name, note = (printable(text, MAX_NAME) for text in texts)
    font = _font(name + note, size)
    max_length = width - draw.textlength(note, font) - size
    if draw.textlength(name, font) > max_length:
        while name and draw.textlength(f"{name}…", font) > max_length:
            name = name[:-1]
        name += "…"
    draw.text(corner, name, INK, font)
    left = corner[0] + draw.textlength(name, font) + size / 2
    draw.text((left, corner[1]), note, FAINT, font)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return PIL's own font for ASCII text, and a font of the system, if it has one, otherwise."""
    for name in () if text.isascii() else FONTS:
        with suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: int, cell: Cell
) -> None:
    left, top = corner
    right, bottom = left + size - 1, top + size - 1
    draw.rectangle((left, top, right, bottom), MAT)
    if cell:
        sheet.paste(cell, (left + (size - cell.width) // 2, top + (size - cell.height) // 2))
    else:
        _draw_cross(draw, (left, top, right, bottom), size)


def _draw_cross(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], size: int) -> None:
    left, top, right, bottom = box
    line_width, inset = max(1, size // 40), size // 4
    for begin, end in ((top, bottom), (bottom, top)):
        inward = inset if begin < end else -inset
        draw.line((left + inset, begin + inward, right - inset, end - inward), CROSS, line_width)
    draw.rectangle(box, outline=CROSS)
