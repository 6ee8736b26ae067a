"""Image grids of the experiments: blocks of images with a name at the left of each block."""

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from stargan_dist.inference.grids import draw_header, tile

CELL_PIXELS = 96  # smaller images are enlarged to about this
TEXT_PIXELS, GAP = 18, 10


def sheet(blocks: dict[str, Tensor], header: list[str]) -> Image.Image:
    """Lay out named blocks one below the other, with a name above each column.

    Args:
        blocks: by name: images (rows, columns, 3, H, H) in [-1, 1], all with as many columns.
        header: names of the columns.
    """
    font = ImageFont.load_default(TEXT_PIXELS)
    grids = {name: tile(images, CELL_PIXELS) for name, images in blocks.items()}
    left = 2 * GAP + round(max(font.getlength(name) for name in grids))
    top = TEXT_PIXELS + GAP
    grid_width = max(grid.width for grid in grids.values())
    height = top + sum(grid.height + GAP for grid in grids.values())
    page = Image.new("RGB", (left + grid_width, height), "white")
    draw_header(page, header, left, grid_width - 2, font)
    draw = ImageDraw.Draw(page)
    for name, grid in grids.items():
        draw.text((GAP, top + grid.height / 2), name, fill="black", font=font, anchor="lm")
        page.paste(grid, (left, top))
        top += grid.height + GAP
    return page


def rows_of_outputs(sources: Tensor, outputs: Tensor) -> Tensor:
    """Arrange sources (S, 3, H, H) and n outputs of each (S·n, 3, H, H) as (S, 1 + n, 3, H, H)."""
    return torch.cat([sources[:, None], outputs.unflatten(0, (len(sources), -1))], dim=1)
