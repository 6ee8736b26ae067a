"""Classifiers of the labels of one data source, trained on its real images.

They rate translations as arXiv 1711.09020 does (section 5): by the share of images that do not have
the target label according to a classifier (there a ResNet-18) of real images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cudnn
from torchvision.models import resnet18

from stargan_dist.data.batch import to_unit
from stargan_dist.data.labels import Labels, LabelSpace
from stargan_dist.data.order import seeded_rng

DEMO_PIXELS = 32


@dataclass(frozen=True)
class ClassifierForm:
    """A network and how it is trained: Adam, with a learning rate that decays linearly to 0.

    Attributes:
        network: the network's name in results.
        metric: the name of the share of images that it does not assign to their target.
        build: returns a network with random weights, given the number of labels. It maps images
            (N, 3, H, H) in [-1, 1] to logits (N, number of labels).
        steps: of training.
        batch_size: images of a step, drawn with replacement and flipped with p = 0.5.
        learning_rate: that of the first step.
    """

    network: str
    metric: str
    build: Callable[[int], nn.Module]
    steps: int
    batch_size: int
    learning_rate: float


def _resnet_18(num_labels: int) -> nn.Module:
    return resnet18(num_classes=num_labels)


class DemoClassifier(nn.Sequential):
    """Three convolutions at 32, 16 and 8 px, and a linear layer that sees positions."""

    def __init__(self, num_labels: int) -> None:
        widths = (3, 16, 32, 64)
        blocks = [
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)
            )
            for a, b in pairwise(widths)
        ]
        side = DEMO_PIXELS // 2 ** len(blocks)
        head = nn.Linear(widths[-1] * side**2, num_labels)
        super().__init__(*blocks, nn.Flatten(), head)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(F.adaptive_avg_pool2d(images, DEMO_PIXELS))
        return logits


RESNET_18 = ClassifierForm(
    "ResNet-18 of real images", "classification_error", _resnet_18,
    steps=4000, batch_size=64, learning_rate=1e-3,
)  # fmt: skip
DEMO_CLASSIFIER = ClassifierForm(
    "small classifier of real images", "demo_classification_error", DemoClassifier,
    steps=400, batch_size=32, learning_rate=4e-3,
)  # fmt: skip


def draw_positions(form: ClassifierForm, count: int, step: int) -> list[int]:
    """Draw the images of a step of training, by their positions among `count` images."""
    rng = seeded_rng(0, "classifier", step)
    positions: list[int] = rng.integers(count, size=form.batch_size).tolist()
    return positions


class ClassifierTraining:
    """The training of a classifier. It depends on the images and the kind of device alone.

    Args:
        form: the network.
        space: the labels of the data source.
        device: where to train.
    """

    def __init__(self, form: ClassifierForm, space: LabelSpace, device: torch.device) -> None:
        self.form, self.labels, self.steps_done = form, Labels((space,)), 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = form.build(len(space.columns)).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), form.learning_rate)

    def step(self, images: Tensor, columns: np.ndarray) -> None:
        """Train one step.

        Args:
            images: uint8 (B, 3, H, H), on the device.
            columns: their labels (B, number of columns), 0 or 1.
        """
        flips = seeded_rng(0, "classifier flips", self.steps_done).random(len(images)) < 0.5
        x = to_unit(images)
        x = torch.where(torch.from_numpy(flips).to(x.device)[:, None, None, None], x.flip(3), x)
        y = torch.from_numpy(columns.astype(np.float32)).to(x.device)
        self.optimizer.param_groups[0]["lr"] = self.form.learning_rate * self._remaining
        self.optimizer.zero_grad()
        # Without these flags, sums on a GPU would be in an order that changes between runs.
        with cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
            self.labels.classification_loss(self.network(x), y).backward()
        self.optimizer.step()
        self.steps_done += 1

    @property
    def _remaining(self) -> float:
        """The share of the training that remains."""
        return 1 - self.steps_done / self.form.steps

    def state(self) -> dict[str, Tensor]:
        """Return the weights, on the CPU."""
        return {name: t.cpu().contiguous() for name, t in self.network.state_dict().items()}


class Classifier(nn.Module):
    """A trained classifier: uint8 images (N, 3, H, H) -> logits (N, number of labels)."""

    def __init__(self, form: ClassifierForm, space: LabelSpace, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.space, self.network = space, form.build(len(space.columns))
        self.network.load_state_dict(state)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(to_unit(images))
        return logits

    def misses(self, images: Tensor, column: int, value: int) -> Tensor:
        """Return which images (N,) are not classified as having this value in a column.

        An attribute is read from the sign of its logit, a category from the largest logit.
        """
        logits = self(images)
        if self.space.binary:
            return (logits[:, column] > 0) != bool(value)
        return (logits.argmax(1) == column) != bool(value)
