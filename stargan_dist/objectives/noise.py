"""Normal noise on the device, as a function of a slot's draw: no random state, no transfer."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# What a draw of noise is for: those of one slot differ.
CONTENT, CONTENT_OF_FAKE, ATTRIBUTE, ATTRIBUTE_OF_FAKE = range(1, 5)

LOW_BITS = 0xFFFFFFFF
DRAW_BITS = 24  # of a draw in float32


def _mixed(words: Tensor) -> Tensor:
    """Hash 32-bit words (int64): two rounds of multiply and xor-shift, a bijection.

    The constants are those of C. Wellons' lowbias32, where each input bit changes each output bit
    with a probability close to 1/2.
    """
    words = words ^ (words >> 16)
    words = (words * 0x7FEB352D) & LOW_BITS
    words = words ^ (words >> 15)
    words = (words * 0x846CA68B) & LOW_BITS
    return words ^ (words >> 16)


def normal_noise(draws: Tensor, shape: Sequence[int], purpose: int) -> Tensor:
    """Return normal numbers (B, *shape), a function of the draw, the purpose and the place.

    Two keys, of draw and purpose, select a sequence of hashes; Box and Muller's transform makes
    normal numbers of uniform ones with 24 bits.

    Args:
        draws: (B,) uniform in [0, 1), of each slot (`Batch.mix`).
        shape: of the noise of a slot.
        purpose: one of the constants above, or any other small number.
    """
    count = math.prod(shape)
    half = -(-count // 2)
    first = _mixed((draws.double() * 2**DRAW_BITS).long() ^ (purpose << DRAW_BITS))
    second = _mixed(first ^ 0x9E3779B9)
    places = torch.arange(2 * half, device=draws.device)
    words = _mixed(_mixed(places ^ first[:, None]) ^ second[:, None])
    uniform = ((words >> 8).to(draws.dtype) + 0.5) / 2**24
    radius = (-2 * uniform[:, :half].log()).sqrt()
    angle = (2 * math.pi) * uniform[:, half:]
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
    return normal[:, :count].reshape(len(draws), *shape)
