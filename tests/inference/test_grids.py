import numpy as np
import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.data.split import LoadedSplit
from stargan_dist.inference import grids
from stargan_dist.inference.model import TrainedModel
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
    return TrainedModel(networks, spec, labels, step=0)


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


def test_outputs_of_one_call_equal_outputs_of_separate_calls(translator):
    sources = images(2)
    x = sources.images.float() / 127.5 - 1
    z = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    outputs = translator.from_latents(x, y, z)
    for i in range(6):
        output = translator.from_latents(x[i // 3][None], y[i][None], z[i][None])
        torch.testing.assert_close(outputs[i], output[0], rtol=1e-4, atol=1e-5)


class FakeTranslator:
    """A translator whose outputs encode their target labels as brightness."""

    labels = Labels(
        (
            LabelSpace("faces", ("black", "blond", "male"), True, (("black", "blond"),)),
            LabelSpace("kinds", ("cat", "dog"), key="kind"),
        )
    )
    device, dtype = torch.device("cpu"), torch.float32
    config = configs.parse(["--run", "r", "--data.shards", "s"])

    def __init__(self):
        self.target_labels = []

    def from_latents(self, x, y_trg, z):
        self.target_labels.append(y_trg)
        return y_trg.mean(1)[:, None, None, None].expand(-1, *x.shape[1:])


def labelled_images(translator, *labels):
    """Return black images with labels given as (number of the data source, its columns)."""
    y = [translator.labels.vector(n, np.array(c, np.float32)) for n, c in labels]
    pixels = torch.zeros(len(y), 3, 64, 64, dtype=torch.uint8)
    return LoadedSplit(pixels, torch.tensor(np.stack(y)), ["x"] * len(y), translator.labels.names)


def test_a_grid_on_attributes_translates_each_source_to_targets_of_its_own_label():
    translator = FakeTranslator()
    sources = labelled_images(translator, (0, [1, 0, 1]), (1, [0, 1]))
    grid = grids.latent_grid(translator, sources, latents=1, seed=0)
    assert grid.size == (6 * 66 + 2, 2 * 66 + 2 + grids.HEADER_PIXELS)
    kinds = [[0, 0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0, 1]]
    assert translator.target_labels[0].tolist() == [
        [1, 0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1, 0], *kinds,
    ]  # fmt: skip
    assert translator.target_labels[1].tolist() == [
        [1, 0, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1, 0], *kinds,
    ]  # fmt: skip


def test_a_grid_shows_only_the_selected_targets():
    translator = FakeTranslator()
    sources = labelled_images(translator, (0, [1, 0, 1]))
    grids.latent_grid(translator, sources, latents=2, seed=0, targets=["dog", "male"])
    male, dog = [1, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 0, 1]
    assert translator.target_labels[0].tolist() == [male, male, dog, dog]
