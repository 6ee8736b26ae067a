"""The networks of a method, by the papers' letters."""

from collections.abc import Mapping

from torch import nn

Networks = Mapping[str, nn.Module]  # G, D, and where the method has them F and E


def generator_networks(networks: Networks) -> dict[str, nn.Module]:
    """Return all networks except D: those that the generator loss trains."""
    return {letter: network for letter, network in networks.items() if letter != "D"}
