"""The networks of a method, by the papers' letters."""

from collections.abc import Mapping

from torch import nn

Networks = Mapping[str, nn.Module]  # G, D, and where the method has them F, E and C
DISCRIMINATORS = ("D", "C")  # of images, and of the contents that G encodes


def generator_networks(networks: Networks) -> dict[str, nn.Module]:
    """Return all networks except D and C: those that the generator loss trains."""
    return {name: network for name, network in networks.items() if name not in DISCRIMINATORS}
