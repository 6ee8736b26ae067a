"""Small models without training."""

from dataclasses import replace

import torch

from stargan_dist.config import Config, ModelConfig
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.models.landmarks import Description, SavedLandmarks
from stargan_dist.models.saved import SavedModel
from stargan_dist.nets.fan import FAN
from stargan_dist.nets.masks import Move, Part
from stargan_dist.objectives.recipes import resolve

SIZES = ModelConfig(
    image_size=32, base_width=4, max_width=8, latent_dim=4, style_dim=6, mapping_dim=8
)
DOMAINS = ("bear", "cat", "fox")


PARTS = (Part((0,), (Move(0, 2),)), Part((1, 2), (Move(-2, 4),), inner=False))


def tiny_landmarks(seed=0, num_maps=3):
    """Return a landmark network with random weights, whose heat maps differ by the image.

    All heat is above the threshold of the masks, where rounding could make a mask jump.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FAN(num_maps, width=16, input_size=64)
        torch.nn.init.normal_(network.l0.weight)
        torch.nn.init.constant_(network.l0.bias, 9.0)
    return SavedLandmarks("tiny", network.state_dict(), Description(64, PARTS)).check()


def tiny_model(recipe="f", domains=DOMAINS, *, binary=False, dtype=torch.float32, seed=0, **sizes):
    """Return a model with random weights, D and perhaps a landmark network included.

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
    landmarks = tiny_landmarks() if spec.config.model.w_hpf else None
    return SavedModel("tiny", spec.config, labels, 7, tensors, landmarks).check()
