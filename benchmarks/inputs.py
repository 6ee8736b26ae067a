"""Networks and random batches that several benchmarks measure."""

from typing import Any, cast

import torch
from torch import nn

from stargan_dist.config import ModelConfig
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import domain_labels
from stargan_dist.objectives.recipes import TABLE


def model_of_size(image_size: int, **fields: Any) -> ModelConfig:
    """Return the full-width model of an image size in pixels."""
    return ModelConfig(cast(Any, image_size), **fields)


def starganv2_networks(num_domains: int, model: ModelConfig) -> dict[str, nn.Module]:
    """Return G, F, E and D of StarGAN v2 by letter, initialised from torch's random state."""
    labels = domain_labels([str(number) for number in range(num_domains)])
    return TABLE["f"].build_networks(labels, model)


def random_batch(size: int, num_domains: int, batch_size: int) -> Batch:
    """Return a batch of random images, domains and latents on torch's default device."""
    x, x_ref, x_ref2 = torch.empty(3, batch_size, 3, size, size).uniform_(-1, 1)
    y, y_trg = torch.randint(num_domains, (2, batch_size))
    z, z2 = torch.randn(2, batch_size, TABLE["f"].latent_dim)
    return Batch(x, y, x_ref, x_ref2, y_trg, z, z2, torch.rand(batch_size))
