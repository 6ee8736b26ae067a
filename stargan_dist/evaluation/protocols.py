"""Protocols by name: which networks look at the images, and what their numbers are called."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from safetensors.torch import save
from torch import nn

from stargan_dist.config import EvaluationConfig
from stargan_dist.data.reader import ShardReader
from stargan_dist.distributed.world import World
from stargan_dist.evaluation.metrics import demo_network
from stargan_dist.evaluation.metrics.feature_extractors import (
    PaperInception,
    TensorFlowInception,
    alexnet_lpips,
)
from stargan_dist.evaluation.metrics.pretrained import (
    ALEXNET,
    PAPER_INCEPTION,
    TF_INCEPTION,
    Source,
    Weights,
    load_all,
)
from stargan_dist.evaluation.tensor_cache import TensorCache


@dataclass(frozen=True)
class MetricSet:
    """What an evaluation measures with.

    Attributes:
        protocol: its name.
        features: uint8 (N, 3, H, H) -> (N, num_features), for the distances of sets.
        diversity: (S, n, 3, H, H) in [-1, 1] -> (S,), the mean distance of n outputs.
        names: of the Fréchet distance, of the kernel distance and of the diversity. They are
            `fid`, `kid` and `lpips` for the published weights alone.
        extractors: facts about the networks, for the results; `official` are the protocol's own.
        num_features: the length of a feature vector.
    """

    protocol: str
    features: nn.Module
    diversity: nn.Module
    names: tuple[str, str, str]
    extractors: dict[str, dict[str, Any]]
    num_features: int


def _pretrained(
    source: Source,
    network: type[PaperInception] | type[TensorFlowInception],
    config: EvaluationConfig,
    world: World,
    _reader: ShardReader,
    _store: TensorCache,
) -> MetricSet:
    wanted = {source: config.inception_weights, ALEXNET: config.alexnet_weights}
    # From rank 0 to all: nodes may have no way to the internet, nor share a disk.
    inception, alexnet = world.broadcast_from_main(lambda: [_slim(w) for w in load_all(wanted)])
    features, diversity = world.run_on_all_ranks(
        lambda: (network(inception), alexnet_lpips(alexnet))
    )

    def named(metric: str, weights: Weights) -> str:
        return metric if weights.official else f"{metric}_{weights.sha256[:8]}"

    return MetricSet(
        config.protocol,
        features,
        diversity,
        (named("fid", inception), named("kid", inception), named("lpips", alexnet)),
        {"features": inception.facts, "diversity": alexnet.facts},
        network.num_features,
    )


def _slim(weights: Weights) -> Weights:
    """Without the classifier of AlexNet, which is most of it."""
    kept = {name: t for name, t in weights.state.items() if not name.startswith("classifier.")}
    return dataclasses.replace(weights, state=kept)


def _own(
    config: EvaluationConfig, world: World, reader: ShardReader, store: TensorCache
) -> MetricSet:
    facts = {"what": "demo network", "version": 2, "data": reader.index.fingerprint}

    def produce() -> dict[str, Any]:
        kept = store.load(facts)
        if kept is None:
            kept = demo_network.train(reader)
            store.save(facts, kept)
        return kept

    state = world.broadcast_from_main(produce)
    network = demo_network.build(len(reader.index.domains), state)
    told = {"network": "small classifier of the set's domains", "official": True}
    told["sha256"] = sha256(save(state)).hexdigest()
    return MetricSet(
        config.protocol,
        demo_network.DemoFeatures(network),
        demo_network.DemoDiversity(network),
        demo_network.NAMES,
        {"features": told, "diversity": told},
        demo_network.DemoFeatures.num_features,
    )


Build = Callable[[EvaluationConfig, World, ShardReader, TensorCache], MetricSet]
PROTOCOLS: dict[str, Build] = {
    "paper": partial(_pretrained, PAPER_INCEPTION, PaperInception),
    "clean": partial(_pretrained, TF_INCEPTION, TensorFlowInception),
    "demo": _own,
}


def load_metrics(
    config: EvaluationConfig, world: World, reader: ShardReader, store: TensorCache
) -> MetricSet:
    """The networks of a protocol, on the world's device, the same on all ranks.

    Args:
        reader: of the training images.

    Raises:
        UserError: weights cannot be had, or are of another network.
    """
    measure = PROTOCOLS[config.protocol](config, world, reader, store)
    for network in (measure.features, measure.diversity):
        network.to(world.device)
    return measure
