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
from stargan_dist.data.sources import DataSources
from stargan_dist.distributed.world import World
from stargan_dist.evaluation.metrics import demo_network
from stargan_dist.evaluation.metrics.classifier import (
    DEMO_CLASSIFIER,
    RESNET_18,
    ClassifierForm,
)
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
        num_features: the length of a feature vector.
        names: the names of the Fréchet distance, the kernel distance and, if it is measured, the
            diversity. They are `fid`, `kid` and `lpips` for the published weights only.
        extractors: descriptions of the networks for the result file. `official` marks the
            protocol's own weights.
        classifier: the form of the classifiers that find labels in translations.
        diversity: (S, n, 3, H, H) in [-1, 1] -> (S,), the mean distance of n outputs. None where
            single labels are measured.
    """

    protocol: str
    features: nn.Module
    num_features: int
    names: tuple[str, ...]
    extractors: dict[str, dict[str, Any]]
    classifier: ClassifierForm
    diversity: nn.Module | None = None

    def with_diversity(
        self, diversity: nn.Module, name: str, description: dict[str, Any]
    ) -> "MetricSet":
        """Return these metrics and a diversity."""
        extractors = self.extractors | {"diversity": description}
        names = (*self.names, name)
        return dataclasses.replace(self, diversity=diversity, names=names, extractors=extractors)


def between_domains(config: EvaluationConfig, sources: DataSources) -> bool:
    """Return True if translation between domains is measured, False if that to single labels."""
    return sources.labels.by_domain and not config.labels


def _pretrained_metrics(
    inception_file: WeightsFile,
    network: type[PaperInception] | type[TensorFlowInception],
    config: EvaluationConfig,
    world: World,
    sources: DataSources,
    _cache: TensorCache,
) -> MetricSet:
    files = {inception_file: config.inception_weights}
    if between_domains(config, sources):
        files[ALEXNET] = config.alexnet_weights
    # Rank 0 loads for all: other nodes may have neither internet access nor a shared disk.
    inception, *others = world.broadcast_from_main(
        lambda: [_without_classifier(weights) for weights in load_all(files)]
    )
    metrics = MetricSet(
        config.protocol,
        world.run_on_all_ranks(lambda: network(inception)),
        network.num_features,
        (_metric_name("fid", inception), _metric_name("kid", inception)),
        {"features": inception.description},
        RESNET_18,
    )
    for alexnet in others:
        diversity = world.run_on_all_ranks(partial(alexnet_lpips, alexnet))
        name = _metric_name("lpips", alexnet)
        metrics = metrics.with_diversity(diversity, name, alexnet.description)
    return metrics


def _metric_name(metric: str, weights: Weights) -> str:
    return metric if weights.official else f"{metric}_{weights.sha256[:8]}"


def _without_classifier(weights: Weights) -> Weights:
    """Drop the classifier of AlexNet, which holds most of its weights."""
    kept = {name: t for name, t in weights.state.items() if not name.startswith("classifier.")}
    return dataclasses.replace(weights, state=kept)


def _demo_metrics(
    config: EvaluationConfig, world: World, sources: DataSources, cache: TensorCache
) -> MetricSet:
    labels = sources.labels
    key = {"what": "demo network", "version": 3, "data": sources.fingerprint}
    key["labels"] = labels.to_dict()

    def load_or_train() -> dict[str, Any]:
        state = cache.load(key)
        if state is None:
            state = demo_network.train(sources)
            cache.save(key, state)
        return state

    state = world.broadcast_from_main(load_or_train)
    network = demo_network.build(labels.num_labels, state)
    # Results are comparable only if their descriptions are equal: do not reword this one.
    kind = "domains" if labels.by_domain else "labels"
    description = {"network": f"small classifier of the set's {kind}", "official": True}
    description["sha256"] = sha256(save(state)).hexdigest()
    metrics = MetricSet(
        config.protocol,
        demo_network.DemoFeatures(network),
        demo_network.DemoFeatures.num_features,
        ("demo_fid", "demo_kid"),
        {"features": description},
        DEMO_CLASSIFIER,
    )
    if not between_domains(config, sources):
        return metrics
    return metrics.with_diversity(demo_network.DemoDiversity(network), "demo_lpips", description)


MetricBuilder = Callable[[EvaluationConfig, World, DataSources, TensorCache], MetricSet]
PROTOCOLS: dict[str, MetricBuilder] = {
    "paper": partial(_pretrained_metrics, PAPER_INCEPTION, PaperInception),
    "clean": partial(_pretrained_metrics, TF_INCEPTION, TensorFlowInception),
    "demo": _demo_metrics,
}


def load_metrics(
    config: EvaluationConfig, world: World, sources: DataSources, cache: TensorCache
) -> MetricSet:
    """Load the networks of the configured protocol, the same on all ranks.

    Args:
        config: the protocol and its weights.
        world: the processes. The networks are moved to the rank's device.
        sources: the training images of all domains, on which the protocol `demo` trains its
            network.
        cache: keeps that network.

    Raises:
        UserError: weights are not available, or belong to another network.
    """
    metrics = PROTOCOLS[config.protocol](config, world, sources, cache)
    for network in filter(None, (metrics.features, metrics.diversity)):
        network.to(world.device)
    return metrics
