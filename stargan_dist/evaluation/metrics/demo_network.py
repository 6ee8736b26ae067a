"""A small metric network trained on a dataset's own images.

It serves datasets such as the drawn animals, and machines without pretrained weights. Its metrics
are named demo_fid, demo_kid and demo_lpips. They compare runs on one dataset only.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stargan_dist.data.order import seeded_rng
from stargan_dist.data.sources import DataSources, load_labelled_images
from stargan_dist.evaluation.metrics.lpips import mean_pairwise_distance

INPUT_PIXELS = 32
WIDTHS = (16, 32, 64)
MAX_IMAGES = 500  # per domain, for training
STEPS, BATCH_SIZE, LEARNING_RATE = 300, 64, 2e-3


class DemoNetwork(nn.Module):
    """A classifier of labels at 32 px that exposes the features of its layers."""

    centre: Tensor
    scale: Tensor

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        pairs = zip((3, *WIDTHS), WIDTHS, strict=False)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        self.head = nn.Linear(WIDTHS[-1], num_labels)
        self.register_buffer("centre", torch.zeros(sum(WIDTHS)))
        self.register_buffer("scale", torch.ones(sum(WIDTHS)))

    def layers(self, images: Tensor) -> list[Tensor]:
        """Return features at 32, 16 and 8 px of images (N, 3, H, H) in [-1, 1]."""
        h, features = F.adaptive_avg_pool2d(images, INPUT_PIXELS), []
        for i, convolution in enumerate(self.convolutions):
            h = F.relu(convolution(F.max_pool2d(h, 2) if i else h))
            features.append(h)
        return features

    def means(self, images: Tensor) -> Tensor:
        """Return the spatial means of all layers (N, 112)."""
        return torch.cat([layer.mean((2, 3)) for layer in self.layers(images)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the labels (N, num_labels)."""
        return self.head(self.layers(images)[-1].mean((2, 3)))


class DemoFeatures(nn.Module):
    """Maps uint8 images (N, 3, H, H) to spatial means of all layers (N, 112).

    The means are standardised over the training images.
    """

    num_features = sum(WIDTHS)

    def __init__(self, network: DemoNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        means = self.network.means(images.float() / 127.5 - 1)
        return (means - self.network.centre) / self.network.scale


class DemoDiversity(nn.Module):
    """LPIPS on the demo network with equal channel weights: (S, n, 3, H, H) -> (S,)."""

    def __init__(self, network: DemoNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        groups, n = images.shape[:2]
        layers = [f.unflatten(0, (groups, n)) for f in self.network.layers(images.flatten(0, 1))]
        return mean_pairwise_distance(layers, [torch.ones_like(f[0, 0, :, 0, 0]) for f in layers])


def build(num_labels: int, state: Mapping[str, Tensor]) -> DemoNetwork:
    """Build the network with trained weights, frozen and in evaluation mode."""
    network = DemoNetwork(num_labels)
    network.load_state_dict(dict(state))
    return network.requires_grad_(False).eval()


def train(sources: DataSources) -> dict[str, Tensor]:
    """Train the network on images of all data sources, to classify their labels.

    Returns:
        The state dict. It is the same for the same images and number of threads.
    """
    largest = max(sum(c) for r in sources.readers for c in r.index.counts(r.split))
    split = load_labelled_images(sources, INPUT_PIXELS, per_domain=min(MAX_IMAGES, largest))
    images, labels = split.images.float() / 127.5 - 1, split.labels
    rng = seeded_rng(0, "demo network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        network = DemoNetwork(sources.labels.num_labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for _ in range(STEPS):
        chosen = torch.from_numpy(rng.integers(len(images), size=BATCH_SIZE))
        batch = images[chosen].flip(3) if rng.random() < 0.5 else images[chosen]
        optimizer.zero_grad()
        sources.labels.classification_loss(network(batch), labels[chosen]).backward()
        optimizer.step()
    _standardise(network, images)
    return network.state_dict()


@torch.no_grad()
def _standardise(network: DemoNetwork, images: Tensor) -> None:
    """Set the buffers that centre and scale the features of these images."""
    means = network.means(images)
    network.centre.copy_(means.mean(0))
    network.scale.copy_(means.std(0) + 0.1 * means.std())  # the offset: some channels are dead
