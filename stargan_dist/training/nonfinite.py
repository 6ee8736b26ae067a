"""Detection of non-finite gradients: report them, and stop the run unless it may skip them."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import LossScale
from stargan_dist.errors import WorldError

FOLDER = "nonfinite"
FLAG = "finite_"

logger = logging.getLogger(__name__)


class NonFiniteGuard:
    """Check the flags of every iteration while the next one runs.

    The engine leaves a network whose gradient is not finite unchanged, on every rank. So a late
    check loses nothing, and the host never waits for the device.

    Args:
        samples: returns the samples of a step, for the report.
        loss_scales: of float16. Overflows that a lower scale can prevent are not faults.
        iterations: iterations of the run with a non-finite gradient so far.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        samples: Callable[[int], list[dict[str, Any]]],
        loss_scales: Mapping[str, LossScale],
        iterations: int = 0,
    ) -> None:
        self.config, self.world = config, world
        self.samples, self.loss_scales = samples, loss_scales
        self.iterations = iterations
        self._pending: tuple[int, Mapping[str, Tensor], Tensor] | None = None
        self._copied_to_host = torch.cuda.Event() if world.device.type == "cuda" else None

    def watch(self, step: int, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Record the flags of iteration `step`, after checking those of the one before.

        Returns:
            The terms without the flags.

        Raises:
            WorldError: as `check`.
        """
        self.check()
        flags = [terms[name] for name in terms if FLAG in name]
        scales = [scale.value.double() for scale in self.loss_scales.values()]
        on_host = torch.stack([*flags, *scales]).to("cpu", non_blocking=True)
        if self._copied_to_host:
            self._copied_to_host.record()
        self._pending = step, terms, on_host
        return {name: term for name, term in terms.items() if FLAG not in name}

    def check(self) -> None:
        """Check the recorded iteration.

        Raises:
            WorldError: a gradient was not finite, and the run may not skip it or has skipped too
                many.
        """
        if self._pending is None:
            return
        (step, terms, on_host), self._pending = self._pending, None
        if self._copied_to_host:
            self._copied_to_host.synchronize()
        names = [name for name in terms if FLAG in name]
        flags, scales = on_host[: len(names)].bool().tolist(), on_host[len(names) :].tolist()
        if all(flags):
            return
        if not scales or min(scales) < 1:
            self.iterations += 1
            nonfinite = [name for name, flag in zip(names, flags, strict=True) if not flag]
            self._report(step, terms, [name.replace(FLAG, "") for name in nonfinite])

    def _report(self, step: int, terms: Mapping[str, Tensor], phases: list[str]) -> None:
        """Write a report, and stop the run or log a warning. Collective."""
        url = storage.join(self.config.run, FOLDER, f"step_{step:08d}.json")
        values = {n: str(v) for n, term in terms.items() if not math.isfinite(v := term.item())}
        report = {
            "step": step,
            "unchanged_networks": phases,
            "terms_by_rank": self.world.all_gather(values),
        }
        if self.world.is_main:
            report["samples"] = self.samples(step - 1)
            storage.write_bytes(url, (json.dumps(report, indent=1) + "\n").encode())
        message = f"step {step}: the gradient of {', '.join(phases)} was not finite; see {url}"
        self._stop_or_warn(message)

    def _stop_or_warn(self, message: str) -> None:
        optim = self.config.optim
        if optim.on_nonfinite == "stop":
            raise WorldError(
                f"{message}. The same command repeats it from the last checkpoint; "
                "--optim.on_nonfinite skip leaves such steps out"
            )
        if self.iterations > optim.max_nonfinite:
            raise WorldError(
                f"{message}. More than optim.max_nonfinite iterations had such gradients"
            )
        if self.world.is_main:
            logger.warning(message)
