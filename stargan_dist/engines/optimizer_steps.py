"""Steps of ordinary optimizers, whose state lies by parameter."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Moments = dict[str, Tensor]  # a network's optimizer state, by `PARAMETER:KIND`; `step` once


def step(
    network: nn.Module, optimizer: torch.optim.Optimizer, bound: float, scale: Tensor | None
) -> Tensor:
    """Unscale, clip to a norm (0: none), step unless the gradient is not finite, and drop it.

    Returns its norm, ahead of clipping.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if scale is not None:
        torch._foreach_mul_(gradients, 1 / scale)
    norm = nn.utils.get_total_norm(gradients)
    if bound:
        nn.utils.clip_grads_with_norm_(network.parameters(), bound, norm)
    _step_if(norm.isfinite(), optimizer)
    network.zero_grad(set_to_none=True)
    return norm


def _step_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    if optimizer.defaults.get("fused"):
        # On GPUs the optimizer itself looks at the flag: the host does not wait for it.
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:
        optimizer.step()


def moments_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    """The state by `PARAMETER:KIND`, and `step` once: a network's parameters step together."""
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
    state: dict[int, dict[str, Tensor]] = {}
    for number, (name, parameter) in enumerate(network.named_parameters()):
        prefix = f"{name}:"
        kinds = {
            k.removeprefix(prefix): torch.empty_like(parameter).copy_(v)  # laid out as it is
            for k, v in moments.items()
            if k.startswith(prefix)
        }
        if kinds:
            state[number] = kinds | {"step": moments["step"].clone()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
