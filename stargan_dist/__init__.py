"""StarGAN and StarGAN v2, trained on many GPUs and nodes, on data that does not fit one machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Translator"]

if TYPE_CHECKING:
    from stargan_dist.inference.translator import Translator


def __getattr__(name: str) -> Any:
    """Import the public class when it is first used: it needs torch."""
    if name in __all__:
        return import_module("stargan_dist.inference.translator").Translator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
