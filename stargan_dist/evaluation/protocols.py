"""Evaluation protocols: the networks that measure images, and the names of the metrics."""

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
    Weights,
    WeightsFile,
    load_all,
)
from stargan_dist.evaluation.tensor_cache import TensorCache


@dataclass(frozen=True)
class MetricSet:
    """The networks and metrics of a protocol.

    Attributes:
        protocol: its name.
        features: uint8 (N, 3, H, H) -> (N, num_features), for the distances between sets.
        diversity: (S, n, 3, H, H) in [-1, 1] -> (S,), the mean distance of n outputs.
        names: the names of the Fréchet distance, the kernel distance and the diversity. They are
            `fid`, `kid` and `lpips` for the published weights only.
        extractors: descriptions of the networks for the result file. `official` marks the
            protocol's own weights.
        num_features: the length of a feature vector.
    """

    protocol: str
    features: nn.Module
    diversity: nn.Module
    names: tuple[str, str, str]
    extractors: dict[str, dict[str, Any]]
    num_features: int


def _pretrained_metrics(
    inception_file: WeightsFile,
    network: type[PaperInception] | type[TensorFlowInception],
    config: EvaluationConfig,
    world: World,
    _reader: ShardReader,
    _cache: TensorCache,
) -> MetricSet:
    files = {inception_file: config.inception_weights, ALEXNET: config.alexnet_weights}
    # Rank 0 loads for all: other nodes may have neither internet access nor a shared disk.
    inception, alexnet = world.broadcast_from_main(
        lambda: [_without_classifier(weights) for weights in load_all(files)]
    )
    features, diversity = world.run_on_all_ranks(
        lambda: (network(inception), alexnet_lpips(alexnet))
    )

    def metric_name(metric: str, weights: Weights) -> str:
        return metric if weights.official else f"{metric}_{weights.sha256[:8]}"

    return MetricSet(
        config.protocol,
        features,
        diversity,
        (
            metric_name("fid", inception),
            metric_name("kid", inception),
            metric_name("lpips", alexnet),
        ),
        {"features": inception.description, "diversity": alexnet.description},
        network.num_features,
    )


def _without_classifier(weights: Weights) -> Weights:
    """Drop the classifier of AlexNet, which holds most of its weights."""
    kept = {name: t for name, t in weights.state.items() if not name.startswith("classifier.")}
    return dataclasses.replace(weights, state=kept)


def _demo_metrics(
    config: EvaluationConfig, world: World, reader: ShardReader, cache: TensorCache
) -> MetricSet:
    key = {"what": "demo network", "version": 2, "data": reader.index.fingerprint}

    def load_or_train() -> dict[str, Any]:
        state = cache.load(key)
        if state is None:
            state = demo_network.train(reader)
            cache.save(key, state)
        return state

    state = world.broadcast_from_main(load_or_train)
    network = demo_network.build(len(reader.index.domains), state)
    # Results are comparable only if their descriptions are equal: do not reword this one.
    description = {"network": "small classifier of the set's domains", "official": True}
    description["sha256"] = sha256(save(state)).hexdigest()
    return MetricSet(
        config.protocol,
        demo_network.DemoFeatures(network),
        demo_network.DemoDiversity(network),
        demo_network.METRIC_NAMES,
        {"features": description, "diversity": description},
        demo_network.DemoFeatures.num_features,
    )


MetricBuilder = Callable[[EvaluationConfig, World, ShardReader, TensorCache], MetricSet]
PROTOCOLS: dict[str, MetricBuilder] = {
    "paper": partial(_pretrained_metrics, PAPER_INCEPTION, PaperInception),
    "clean": partial(_pretrained_metrics, TF_INCEPTION, TensorFlowInception),
    "demo": _demo_metrics,
}


def load_metrics(
    config: EvaluationConfig, world: World, reader: ShardReader, cache: TensorCache
) -> MetricSet:
    """Load the networks of the configured protocol, the same on all ranks.

    Args:
        config: the protocol and its weights.
        world: the processes. The networks are moved to the rank's device.
        reader: the training images, on which the protocol `demo` trains its network.
        cache: keeps that network.

    Raises:
        UserError: weights are not available, or belong to another network.
    """
    metrics = PROTOCOLS[config.protocol](config, world, reader, cache)
    for network in (metrics.features, metrics.diversity):
        network.to(world.device)
    return metrics
