"""Steps and states of torch optimizers that hold whole parameters."""

from collections.abc import Mapping

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

Moments = dict[str, Tensor]  # optimizer state of a network: `PARAMETER:KIND`, and `step` once


def step(
    network: nn.Module, optimizer: AcceleratedOptimizer, max_norm: float, scale: Tensor | None
) -> Tensor:
    """Unscale and clip the gradient, step if it is finite, and drop it.

    Args:
        max_norm: of the network's gradient; 0: no clipping.
        scale: the loss scale that the gradient contains.

    Returns:
        The norm of the gradient before clipping.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if scale is not None:
        torch._foreach_mul_(gradients, 1 / scale)
    norm = nn.utils.get_total_norm(gradients)
    if max_norm:
        nn.utils.clip_grads_with_norm_(network.parameters(), max_norm, norm)
    _step_if(norm.isfinite(), optimizer)
    network.zero_grad(set_to_none=True)
    return norm


def _step_if(finite: Tensor, optimizer: AcceleratedOptimizer) -> None:
    if optimizer.defaults.get("fused"):
        # On GPUs the optimizer reads the flag itself, so that the host does not wait for it.
        optimizer.optimizer.found_inf = (~finite).float()
        optimizer.step()
    elif finite:
        optimizer.step()


def moments_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    """Return the optimizer state by `PARAMETER:KIND`, with one `step` for all parameters."""
    moments: Moments = {}
    for name, parameter in network.named_parameters():
        state = dict(optimizer.state.get(parameter, {}))
        if "step" in state:
            moments["step"] = state.pop("step")
        moments |= {f"{name}:{kind}": value for kind, value in state.items()}
    return moments


def load_moments(
    network: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]
) -> None:
    """Set the optimizer state to what `moments_of` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for number, (name, parameter) in enumerate(network.named_parameters()):
        prefix = f"{name}:"
        kinds = {
            # In the memory format of the parameter.
            k.removeprefix(prefix): torch.empty_like(parameter).copy_(v)
            for k, v in moments.items()
            if k.startswith(prefix)
        }
        if kinds:
            state[number] = kinds | {"step": moments["step"].clone()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
