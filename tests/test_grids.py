import pytest
import torch

from stargan_dist import config as configs
from stargan_dist import grids
from stargan_dist.data.reader import LoadedSplit
from stargan_dist.labels import of_domains
from stargan_dist.objectives import recipes
from stargan_dist.translate import Translator

DOMAINS = ["cat", "dog", "rabbit"]


@pytest.fixture(scope="module")
def translator():
    sizes = {"image_size": "32", "base_width": "4", "max_width": "8", "mapping_dim": "8"}
    options = [f"--model.{name}={value}" for name, value in sizes.items()]
    config = configs.parse(["--run", "r", "--data.shards", "s", *options])
    torch.manual_seed(0)
    labels = of_domains(DOMAINS)
    networks = recipes.build_networks(recipes.row_of(config), labels, config.model)
    return Translator(networks, config, labels, step=0)


def images(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    return LoadedSplit(pixels, labels, [str(i) for i in range(count)], DOMAINS)


def test_grids_show_every_source_and_guide(translator):
    sources, references = images(4), images(3, seed=1)
    cell, header = 64 + 2, grids.HEADER_PIXELS
    latent = grids.latent_grid(translator, sources, latents=2, seed=0)
    assert latent.size == (7 * cell + 2, 4 * cell + 2 + header)
    reference = grids.reference_grid(translator, sources, references)
    assert reference.size == (4 * cell + 2, 5 * cell + 2 + header)
    corner = latent.getpixel((2, header + 2))
    assert corner == tuple(sources.images[0, :, 0, 0].tolist())


def test_outputs_in_one_call_equal_outputs_one_by_one(translator):
    sources = images(2)
    x = sources.images.float() / 127.5 - 1
    z = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    together = translator.from_latents(x, y, z)
    for i in range(6):
        alone = translator.from_latents(x[i // 3][None], y[i][None], z[i][None])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-5)
