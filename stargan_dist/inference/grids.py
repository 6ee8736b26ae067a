"""Pictures: grids of translations, guided by latents and by references."""

import io
from collections.abc import Container, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from stargan_dist.data.batch import to_uint8, to_unit
from stargan_dist.data.order import seeded_rng
from stargan_dist.data.reader import LoadedSplit
from stargan_dist.inference.translator import Translator

CELL_PIXELS = 64  # smaller images are enlarged to about this
HEADER_PIXELS = 16


def latent_grid(
    translator: Translator,
    inputs: LoadedSplit,
    latents: int,
    seed: int,
    only: Container[str] | None = None,
) -> Image.Image:
    """A row per source: the source, then `latents` translations to each of its targets.

    Targets are the domains of `inputs`, or what `Labels.targets` makes of a source's own label;
    under the name of a binary attribute of no group it is flipped. Every row has the same latents.

    Args:
        only: names of the targets to be shown; None: all.
    """
    shown = [_targets(translator, inputs, y, only) for y in inputs.labels]
    names = [name for name, _ in shown[0]]
    count, latent_dim = len(names) * latents, translator.config.model.latent_dim
    drawn = seeded_rng(seed, "grid").standard_normal((count, latent_dim))
    z = torch.from_numpy(drawn).to(translator.device, translator.dtype)
    rows = []
    for x, targets in zip(inputs.images, shown, strict=True):
        y_trg = torch.stack([y for _, y in targets]).repeat_interleave(latents, 0)
        source = to_unit(x[None].to(translator.device), translator.dtype)
        fakes = translator.from_latents(source, y_trg.to(translator.device), z)
        rows.append(torch.cat([source, fakes]))
    return picture(torch.stack(rows), ["source", *(n for n in names for _ in range(latents))])


def _targets(
    translator: Translator, inputs: LoadedSplit, y: Tensor, only: Container[str] | None
) -> list[tuple[str, Tensor]]:
    """The targets of a source that are shown, the same ones for each, with their names."""
    targets = translator.labels.targets(y)[: len(inputs.domains)]
    return [row for row in targets if only is None or row[0] in only]


def reference_grid(
    translator: Translator, inputs: LoadedSplit, references: LoadedSplit
) -> Image.Image:
    """References in the first row; below, a row per source and its translation by each."""
    x_ref = to_unit(references.images.to(translator.device), translator.dtype)
    y_trg = references.labels.to(translator.device)
    sources = to_unit(inputs.images.to(translator.device), translator.dtype)
    blank = torch.ones_like(sources[:1])
    rows = [torch.cat([blank, x_ref])]
    for x in sources:
        fakes = translator.from_references(x[None], y_trg, x_ref)
        rows.append(torch.cat([x[None], fakes]))
    return picture(torch.stack(rows), ["source", *(references.domains[y] for y in y_trg)])


def picture(cells: Tensor, header: list[str]) -> Image.Image:
    """Images (rows, columns, 3, H, H) in [-1, 1], with a name above each column."""
    grid = tile(cells)
    sheet = Image.new("RGB", (grid.width, grid.height + HEADER_PIXELS), "white")
    sheet.paste(grid, (0, HEADER_PIXELS))
    draw_header(sheet, header, left=4, width=grid.width - 2)
    return sheet


def tile(cells: Tensor, cell_pixels: int = CELL_PIXELS) -> Image.Image:
    """Tile images (rows, columns, 3, H, H) in [-1, 1], enlarged to about `cell_pixels` each."""
    _, columns, _, size, _ = cells.shape
    scale = max(1, cell_pixels // size)
    pixels = to_uint8(cells.flatten(0, 1)).cpu()
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(pixels, nrow=columns, padding=2, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def draw_header(
    sheet: Image.Image,
    names: Sequence[str],
    left: int,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont | None = None,
) -> None:
    """Draw names at the top of a sheet, one for each of the equal columns of `width` pixels."""
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text((left + column * width // len(names), 2), name, fill="black", font=font)


def to_png(image: Image.Image) -> bytes:
    return _encoded(image, "PNG")


def to_jpeg(image: Image.Image) -> bytes:
    """For large pictures: a tenth of the bytes."""
    return _encoded(image, "JPEG", quality=92)


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
