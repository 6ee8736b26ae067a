"""Small models without training."""

from dataclasses import replace

import torch

from stargan_dist.config import Config, ModelConfig
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.models.saved import SavedModel
from stargan_dist.objectives.recipes import resolve

SIZES = ModelConfig(
    image_size=32, base_width=4, max_width=8, latent_dim=4, style_dim=6, mapping_dim=8
)
DOMAINS = ("bear", "cat", "fox")


def tiny_model(recipe="f", domains=DOMAINS, *, binary=False, dtype=torch.float32, seed=0, **sizes):
    """Return a model with random weights, D included.

    Args:
        domains: names of the labels.
        binary: they are attributes.
        sizes: fields of `ModelConfig` that differ from `SIZES`.
    """
    spec = resolve(Config(run="tiny", recipe=recipe, model=replace(SIZES, **sizes)))
    labels = domain_labels(list(domains))
    if binary:
        labels = Labels((replace(labels.spaces[0], binary=True),))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = spec.recipe.build_networks(labels, spec.config.model)
    tensors = {
        f"{letter}.{name}": tensor.to(dtype)
        for letter, network in networks.items()
        for name, tensor in network.state_dict().items()
    }
    return SavedModel("tiny", spec.config, labels, 7, tensors).check()
