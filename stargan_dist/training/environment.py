"""The software and hardware of a run, for RUN/environment.json, and what the hardware lacks."""

import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from stargan_dist.nets.precision import Policy

PACKAGES = (
    "torch", "torchvision", "accelerate", "deepspeed", "webdataset", "fsspec", "numpy", "pillow",
)  # fmt: skip


def describe_environment(world_size: int, device: torch.device) -> dict[str, Any]:
    """Return versions, git commit, command and world of this process."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("stargan_dist", *PACKAGES)},
        "git_commit": _git_commit(),
        "command": sys.argv,
        "world_size": world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch_threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of the checkout that holds the package, with + if files were changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: allocated on the GPU, or resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def warn_of_slow_precision(policy: Policy, device: torch.device) -> str | None:
    """Return a line if a CPU is slower in a dtype of the policy than in the dtype of its weights.

    A CPU without instructions for bfloat16 computes in it by conversions.
    """
    if device.type != "cpu":
        return None
    for dtype in filter(None, dict.fromkeys((policy.G, policy.E, policy.D))):
        ratio = times_slower(dtype, policy.weights)
        if ratio > 1:
            lower, usual = (str(d).removeprefix("torch.") for d in (dtype, policy.weights))
            return (
                f"a convolution takes {ratio:.1f} times as long in {lower} as in {usual} on this "
                f"CPU: train new runs with --precision {usual} on machines like it"
            )
    return None


def times_slower(dtype: torch.dtype, other: torch.dtype) -> float:
    """Measure how many times as long a convolution takes in a dtype as in another, on the CPU."""
    return _convolution_seconds(dtype) / _convolution_seconds(other)


def _convolution_seconds(dtype: torch.dtype) -> float:
    """Return the seconds of a convolution of 64 channels, forward and backward: fastest of four."""
    # Ones, as random numbers would change those of the training.
    images = torch.ones(4, 64, 32, 32, dtype=dtype, requires_grad=True)
    weight = torch.ones(64, 64, 3, 3, dtype=dtype, requires_grad=True)

    def seconds() -> float:
        start = time.perf_counter()
        F.conv2d(images, weight, padding=1).sum().backward()
        return time.perf_counter() - start

    return min(seconds() for _ in range(4))
