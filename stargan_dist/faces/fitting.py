"""Fit a landmark network to images with known landmarks.

All random draws are functions of (seed, step), so a resumed fit has the bits of an uninterrupted
one on the same machine.
"""

import math
from collections.abc import Iterable

import msgspec
import torch
from torch import Tensor

from stargan_dist.data.batch import to_unit
from stargan_dist.data.order import seeded_rng
from stargan_dist.faces import augmentation
from stargan_dist.faces.points import points_of
from stargan_dist.faces.samples import LandmarkBatch
from stargan_dist.faces.targets import LOSSES, gaussians
from stargan_dist.models.landmarks import MAX_INPUT_SIZE
from stargan_dist.nets.fan import FAN

WARM_UP = 0.05  # share of the steps in which the learning rate rises


class Settings(msgspec.Struct, frozen=True):
    """Everything that a fit depends on, apart from the data.

    Attributes:
        width: channels of the hourglass.
        input_size: pixels that images are resized to.
        steps: iterations.
        batch_size: images of an iteration.
        lr: largest learning rate of Adam; it rises and then falls to 0 (cosine).
        loss: a key of `LOSSES`.
        sigma: of the Gaussians, in pixels of a heat map.
        augment: strength of the augmentation; 0: none.
        seed: of all random draws.
    """

    width: int = 256
    input_size: int = 256
    steps: int = 20_000
    batch_size: int = 16
    lr: float = 1e-3
    loss: str = "adaptive-wing"
    sigma: float = 1.5
    augment: float = 1.0
    seed: int = 0

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of an iteration."""
        warm_up = max(1, round(WARM_UP * self.steps))
        if step < warm_up:
            return self.lr * (step + 1) / warm_up
        return self.lr * (1 + math.cos(math.pi * (step - warm_up) / (self.steps - warm_up))) / 2

    def fault(self) -> str:
        """Return what is wrong with the settings, or an empty text."""
        rules = {
            "--width must be a multiple of 16": self.width > 0 and self.width % 16 == 0,
            f"--input-size must be a multiple of 64 up to {MAX_INPUT_SIZE}":
                0 < self.input_size <= MAX_INPUT_SIZE and self.input_size % 64 == 0,
            "--steps must be at least 1": self.steps >= 1,
            "--lr and --sigma must be positive": 0 < self.lr < 1e9 and 0 < self.sigma < 1e9,
            "--augment must be at least 0 and at most 5": 0 <= self.augment <= 5,
            "--seed must not be negative": self.seed >= 0,
        }  # fmt: skip
        return "".join([text for text, is_kept in rules.items() if not is_kept][:1])


class Fit:
    """A landmark network in training.

    Args:
        settings: of the fit.
        num_landmarks: heat maps of the network.
        data: fingerprint of shards and landmarks.

    Attributes:
        step: number of finished iterations.
    """

    def __init__(
        self, settings: Settings, num_landmarks: int, data: str, device: torch.device | str = "cpu"
    ) -> None:
        self.settings, self.data, self.step = settings, data, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seeded_rng(settings.seed, "landmarks").integers(2**63)))
            self.network = FAN(num_landmarks, settings.width, settings.input_size)
        self.network.to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters())

    def update(self, batch: LandmarkBatch) -> Tensor:
        """Do one iteration; return the loss, a scalar on the device."""
        settings, device = self.settings, self.network.l0.weight.device
        images, points = to_unit(batch.images.to(device), torch.float32), batch.points.to(device)
        if settings.augment:
            rng = seeded_rng(settings.seed, "augment", self.step)
            maps = augmentation.draw(rng, len(images), settings.augment).to(device)
            images, points = augmentation.warp(images, points, maps)
        targets = gaussians(points, settings.input_size, settings.sigma)
        self.optimizer.param_groups[0]["lr"] = settings.learning_rate(self.step)
        self.optimizer.zero_grad()
        loss = LOSSES[settings.loss](self.network.train()(images), targets)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def errors(self, batches: Iterable[LandmarkBatch]) -> Tensor:
        """Return the mean error (L,) of each landmark, in pixels of the network's input.

        Landmarks that a crop has cut off do not count. NaN if there are no others.
        """
        self.network.eval()
        size, device = self.settings.input_size, self.network.l0.weight.device
        total, count = torch.zeros(2, self.network.l0.out_channels, dtype=torch.float64)
        for images, points in batches:
            x = to_unit(images.to(device), torch.float32)
            found = points_of(self.network(x), size).cpu().double()
            inside = ((points >= 0) & (points <= size)).all(2)
            distances = torch.linalg.vector_norm(found - points, dim=2)
            total += torch.where(inside, distances, 0).sum(0)
            count += inside.sum(0)
        return total / count

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict of the network on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}
