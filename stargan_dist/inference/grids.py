"""Image grids of translations, guided by latents and by references."""

import io
from collections.abc import Container, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from stargan_dist.data.batch import to_uint8, to_unit
from stargan_dist.data.order import seeded_rng
from stargan_dist.data.split import LoadedSplit
from stargan_dist.inference.model import TrainedModel

CELL_PIXELS = 64  # smaller images are enlarged to about this size
HEADER_PIXELS = 16


def latent_grid(
    translator: TrainedModel,
    sources: LoadedSplit,
    latents: int,
    seed: int,
    targets: Container[str] | None = None,
) -> Image.Image:
    """Draw a row per source: the source, then `latents` translations to each of its targets.

    The targets are the domains of `sources`, or the targets that `Labels.targets` derives from a
    source's own label: the column of a binary attribute outside any group shows the attribute
    flipped. All rows have the same latents.

    Args:
        latents: the number of latents per target.
        targets: names of the targets to show. None: all.
    """
    targets_by_source = [_select_targets(translator, sources, y, targets) for y in sources.labels]
    names = [name for name, _ in targets_by_source[0]]
    count, latent_dim = len(names) * latents, translator.config.model.latent_dim
    drawn = seeded_rng(seed, "grid").standard_normal((count, latent_dim))
    z = torch.from_numpy(drawn).to(translator.device, translator.dtype)
    rows = []
    for image, named_labels in zip(sources.images, targets_by_source, strict=True):
        y_trg = torch.stack([y for _, y in named_labels]).repeat_interleave(latents, 0)
        x = to_unit(image[None].to(translator.device), translator.dtype)
        outputs = translator.from_latents(x, y_trg.to(translator.device), z)
        rows.append(torch.cat([x, outputs]))
    columns = [name for name in names for _ in range(latents)]
    return image_grid(torch.stack(rows), ["source", *columns])


def _select_targets(
    translator: TrainedModel, sources: LoadedSplit, y: Tensor, names: Container[str] | None
) -> list[tuple[str, Tensor]]:
    """Return the name and label of each target to show for a source with label y.

    The names are the same for all sources.
    """
    targets = translator.labels.targets(y)[: len(sources.domains)]
    return [(name, label) for name, label in targets if names is None or name in names]


def reference_grid(
    translator: TrainedModel, sources: LoadedSplit, references: LoadedSplit
) -> Image.Image:
    """Draw the references in the first row, then a row per source: it, and its translations."""
    x_ref = to_unit(references.images.to(translator.device), translator.dtype)
    y_trg = references.labels.to(translator.device)
    x = to_unit(sources.images.to(translator.device), translator.dtype)
    blank = torch.ones_like(x[:1])
    rows = [torch.cat([blank, x_ref])]
    for source in x:
        outputs = translator.from_references(source[None], y_trg, x_ref)
        rows.append(torch.cat([source[None], outputs]))
    return image_grid(torch.stack(rows), ["source", *(references.domains[y] for y in y_trg)])


def image_grid(cells: Tensor, header: list[str]) -> Image.Image:
    """Draw images (rows, columns, 3, H, H) in [-1, 1] with a name above each column."""
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
    """Encode an image as PNG."""
    return _encode(image, "PNG")


def to_jpeg(image: Image.Image) -> bytes:
    """Encode a large image as JPEG, in a tenth of the bytes of PNG."""
    return _encode(image, "JPEG", quality=92)


def _encode(image: Image.Image, file_format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
