import numpy as np
import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.data.reader import LoadedSplit
from stargan_dist.inference import grids
from stargan_dist.inference.translator import Translator
from stargan_dist.objectives import recipes

DOMAINS = ["cat", "dog", "rabbit"]


@pytest.fixture(scope="module")
def translator():
    sizes = {"image_size": "32", "base_width": "4", "max_width": "8", "mapping_dim": "8"}
    options = [f"--model.{name}={value}" for name, value in sizes.items()]
    config = configs.parse(["--run", "r", "--data.shards", "s", *options])
    torch.manual_seed(0)
    labels = domain_labels(DOMAINS)
    spec = recipes.resolve(config)
    networks = spec.recipe.build_networks(labels, config.model)
    return Translator(networks, spec, labels, step=0)


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


class Painter:
    """In place of a translator: what it makes of an image tells of its target, by brightness."""

    labels = Labels(
        (
            LabelSpace("faces", ("black", "blond", "male"), True, (("black", "blond"),)),
            LabelSpace("kinds", ("cat", "dog"), key="kind"),
        )
    )
    device, dtype = torch.device("cpu"), torch.float32
    config = configs.parse(["--run", "r", "--data.shards", "s"])

    def __init__(self):
        self.asked = []

    def from_latents(self, x, y_trg, z):
        self.asked.append(y_trg)
        return y_trg.mean(1)[:, None, None, None].expand(-1, *x.shape[1:])


def labelled(painter, *own):
    y = [painter.labels.vector(n, np.array(c, np.float32)) for n, c in own]
    pixels = torch.zeros(len(own), 3, 64, 64, dtype=torch.uint8)
    return LoadedSplit(pixels, torch.tensor(np.stack(y)), ["x"] * len(own), painter.labels.names)


def test_a_grid_of_labels_shows_each_source_with_targets_of_its_own():
    painter = Painter()
    sources = labelled(painter, (0, [1, 0, 1]), (1, [0, 1]))
    picture = grids.latent_grid(painter, sources, latents=1, seed=0)
    assert picture.size == (6 * 66 + 2, 2 * 66 + 2 + grids.HEADER_PIXELS)
    kinds = [[0, 0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0, 1]]
    assert painter.asked[0].tolist() == [
        [1, 0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1, 0], *kinds,
    ]  # fmt: skip
    assert painter.asked[1].tolist() == [
        [1, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1, 0], *kinds,
    ]  # fmt: skip


def test_some_targets_can_be_picked():
    painter = Painter()
    sources = labelled(painter, (0, [1, 0, 1]))
    grids.latent_grid(painter, sources, latents=2, seed=0, only=["dog", "male"])
    male, dog = [1, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0, 1]
    assert painter.asked[0].tolist() == [male, male, dog, dog]
