"""What a run left behind, for comparisons."""

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stargan_dist.runs import checkpoint as checkpoints


def tensors(run, which="latest"):
    """Every tensor of a checkpoint: networks, averages and optimizers, by name."""
    state = checkpoints.find(str(run), which).state()
    kinds = {"networks": state.networks, "ema": state.ema, "optimizers": state.optimizers}
    return {f"{kind}/{k}": v for kind, named in kinds.items() for k, v in named.items()}


def scalars(run, prefixes=("D/", "G/", "schedule/")):
    """What TensorBoard shows: tag -> [(step, value), …]."""
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.startswith(prefixes)]
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in tags}


def pictures(run):
    """The steps of the grids that TensorBoard shows."""
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    return {tag: [event.step for event in board.Images(tag)] for tag in board.Tags()["images"]}


def assert_same_bits(run, other):
    ours, theirs = tensors(run), tensors(other)
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not differing


def assert_close(run, other, tolerance):
    ours, theirs = tensors(run), tensors(other)
    assert ours.keys() == theirs.keys()
    apart = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
    assert max(apart.values()) <= tolerance, max(apart.items(), key=lambda item: item[1])
