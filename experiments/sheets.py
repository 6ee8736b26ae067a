"""Pictures of experiments: blocks of images with names at their left and above their columns."""

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from stargan_dist.data.batch import to_uint8

CELL_PIXELS = 96  # smaller images are enlarged to about this
TEXT_PIXELS, GAP = 18, 10


def sheet(blocks: dict[str, Tensor], header: list[str]) -> Image.Image:
    """Blocks of images, each (rows, columns, 3, H, H) in [-1, 1], one below the other."""
    font = ImageFont.load_default(TEXT_PIXELS)
    grids = {name: _grid(cells) for name, cells in blocks.items()}
    left = 2 * GAP + round(max(font.getlength(name) for name in grids))
    top = TEXT_PIXELS + GAP
    width = left + max(grid.width for grid in grids.values())
    height = top + sum(grid.height + GAP for grid in grids.values())
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    step = next(iter(grids.values())).width / len(header)
    for column, name in enumerate(header):
        draw.text((left + column * step, 3), name, fill="black", font=font)
    for name, grid in grids.items():
        draw.text((GAP, top + grid.height / 2), name, fill="black", font=font, anchor="lm")
        page.paste(grid, (left, top))
        top += grid.height + GAP
    return page


def _grid(cells: Tensor) -> Image.Image:
    scale = max(1, CELL_PIXELS // cells.shape[-1])
    pixels = to_uint8(cells.flatten(0, 1)).cpu()
    pixels = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(pixels, nrow=cells.shape[1], padding=2, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def across(sources: Tensor, outputs: Tensor) -> Tensor:
    """Cells (S, 1 + n, …) of sources (S, …) and n outputs of each (S·n, …)."""
    return torch.cat([sources[:, None], outputs.unflatten(0, (len(sources), -1))], dim=1)
