import numpy as np
import pytest
import torch
from PIL import Image

from stargan_dist.evaluation.metrics.resize import resize_bilinear


@pytest.mark.parametrize("size", [32, 64, 256, 299, 300, 512, 1024])
def test_resizing_equals_pil_bit_for_bit(size):
    rng = np.random.default_rng(size)
    noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    noise[: size // 2] = np.where(noise[: size // 2] > 127, 255, 0)  # the ends of the value range
    expected = np.asarray(Image.fromarray(noise).resize((299, 299), Image.Resampling.BILINEAR))
    resized = resize_bilinear(torch.from_numpy(noise).permute(2, 0, 1)[None], 299)
    assert np.array_equal(resized[0].permute(1, 2, 0).numpy(), expected)
