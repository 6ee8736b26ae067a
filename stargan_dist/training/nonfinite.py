"""Gradients that are not finite: told, written down, and the end of the run unless it may skip."""

import json
import math
import sys
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


class NonFiniteGuard:
    """Looks at the flags of every iteration, while the next one runs.

    The engine has left a network whose gradient was not finite as it was, on every rank alike;
    so nothing is lost by looking late, and the host never waits for the device.

    Args:
        samples: the samples of a step, for the report.
        scales: of float16. Overflows that a lower scale can mend are no fault.
        iterations: those with such a gradient so far, in the run.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        samples: Callable[[int], list[dict[str, Any]]],
        scales: Mapping[str, LossScale],
        iterations: int = 0,
    ) -> None:
        self.config, self.world = config, world
        self.samples, self.scales = samples, scales
        self.iterations = iterations
        self._pending: tuple[int, Mapping[str, Tensor], Tensor] | None = None
        self._copied = torch.cuda.Event() if world.device.type == "cuda" else None

    def watch(self, step: int, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take note of iteration `step`, having looked at the one before. Returns the terms
        without the flags.

        Raises:
            WorldError: as `check`.
        """
        self.check()
        flags = [terms[name] for name in terms if FLAG in name]
        lowest = [scale.value.double() for scale in self.scales.values()]
        on_host = torch.stack([*flags, *lowest]).to("cpu", non_blocking=True)
        if self._copied:
            self._copied.record()
        self._pending = step, terms, on_host
        return {name: term for name, term in terms.items() if FLAG not in name}

    def check(self) -> None:
        """Look at the last iteration.

        Raises:
            WorldError: a gradient was not finite, and the run may not skip that, or not so often.
        """
        if self._pending is None:
            return
        (step, terms, on_host), self._pending = self._pending, None
        if self._copied:
            self._copied.synchronize()
        names = [name for name in terms if FLAG in name]
        flags, scales = on_host[: len(names)].bool().tolist(), on_host[len(names) :].tolist()
        if all(flags):
            return
        if not scales or min(scales) < 1:
            self.iterations += 1
            self._report(step, terms, [n for n, flag in zip(names, flags, strict=True) if not flag])

    def _report(self, step: int, terms: Mapping[str, Tensor], names: list[str]) -> None:
        steps = [name.replace(FLAG, "") for name in names]
        mine = {n: v for n, term in terms.items() if not math.isfinite(v := term.item())}
        row = {
            "step": step,
            "left_as_they_were": steps,
            "terms_by_rank": [
                {n: str(v) for n, v in row.items()} for row in self.world.all_gather(mine)
            ],
        }
        where = storage.join(self.config.run, FOLDER, f"step_{step:08d}.json")
        told = f"step {step}: the gradient of {', '.join(steps)} was not finite; see {where}"
        if self.world.is_main:
            row["samples"] = self.samples(step - 1)
            storage.write_bytes(where, (json.dumps(row, indent=1) + "\n").encode())
        optim = self.config.optim
        if optim.on_nonfinite == "stop":
            raise WorldError(
                f"{told}. The same command repeats it from the last checkpoint; "
                "--optim.on_nonfinite skip leaves such steps out"
            )
        if self.iterations > optim.max_nonfinite:
            raise WorldError(f"{told}. These are more than optim.max_nonfinite iterations")
        if self.world.is_main:
            print(told, file=sys.stderr, flush=True)
