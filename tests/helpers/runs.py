"""Comparisons of the files that runs write."""

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stargan_dist.runs import checkpoint as checkpoints


def tensors(run, selector="latest"):
    """Return every tensor of a checkpoint by name: networks, averages, optimizers, pool."""
    state = checkpoints.find(str(run), selector).state()
    kinds = {"networks": state.networks, "ema": state.ema, "optimizers": state.optimizers}
    kinds["pool"] = state.pool
    return {f"{kind}/{k}": v for kind, named in kinds.items() for k, v in named.items()}


def scalars(run, prefixes=("D/", "G/", "schedule/")):
    """Return the scalars in TensorBoard: tag -> [(step, value), …]."""
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.startswith(prefixes)]
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in tags}


def pictures(run):
    """Return the steps of the image grids in TensorBoard: tag -> [step, …]."""
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    return {tag: [event.step for event in board.Images(tag)] for tag in board.Tags()["images"]}


def assert_same_bits(run, expected_run):
    """Assert that the latest checkpoints of two runs have equal tensors."""
    actual, expected = tensors(run), tensors(expected_run)
    assert actual.keys() == expected.keys()
    differing = [name for name in actual if not torch.equal(actual[name], expected[name])]
    assert not differing


def assert_close(run, expected_run, tolerance):
    """Assert that the tensors of the latest checkpoints differ by at most `tolerance`."""
    actual, expected = tensors(run), tensors(expected_run)
    assert actual.keys() == expected.keys()
    differences = {name: (actual[name] - expected[name]).abs().max().item() for name in actual}
    assert max(differences.values()) <= tolerance, max(differences.items(), key=lambda d: d[1])
