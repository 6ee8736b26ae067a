"""Seeded random weights in the layouts of the published weight files."""

from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torchvision.models import alexnet, inception_v3

from stargan_dist.evaluation.metrics.pretrained import Weights


def _random_state(network: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Initialise a network at random, so that features neither vanish nor explode (He normal)."""
    rng = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=rng)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.1, generator=rng)
    return network.state_dict()


def paper_inception(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random state of torchvision's Inception-v3, the network of the protocol `paper`."""
    return _random_state(inception_v3(weights=None, init_weights=False), seed)


def tf_inception(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random state of the TensorFlow Inception-v3, the network of the protocol `clean`."""
    extractor = fidelity.FeatureExtractorInceptionV3
    with (
        mock.patch.object(fidelity, "load_state_dict_from_url"),
        mock.patch.object(extractor, "load_state_dict"),
    ):
        return _random_state(extractor("inception-v3-compat", ["2048"]), seed)


def alexnet_features(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random state of the convolutions of torchvision's AlexNet, which LPIPS uses."""
    state = _random_state(alexnet(weights=None), seed)
    return {name: tensor for name, tensor in state.items() if name.startswith("features.")}


def write(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write a state to a file; returns the path."""
    torch.save(state, path)
    return path


def make_weights(network: str, state: dict[str, torch.Tensor]) -> Weights:
    """Return a state as weights that were loaded from an unofficial file."""
    return Weights(network, "random.pth", "0" * 64, False, state)
