import io

import numpy as np
import pytest
from PIL import Image

from stargan_dist.data import transforms
from stargan_dist.errors import UserError


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width=40, height=30):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, x], axis=2).astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert transforms.decode(encode(ramp().convert(mode), kind)).mode == "RGB"


def test_exif_turns_are_undone():
    exif = Image.Exif()
    exif[274] = 6  # orientation: turned by 90 degrees
    assert transforms.decode(encode(ramp(), "JPEG", exif=exif.tobytes())).size == (30, 40)


@pytest.mark.parametrize("data", [b"", b"no image", encode(ramp())[:80]])
def test_damaged_images_are_user_errors(data):
    with pytest.raises(UserError):
        transforms.decode(data)


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="40 × 30 pixels are more than 1000"):
        transforms.decode(encode(ramp()))


def test_crop_boxes_have_the_documented_area_and_ratio():
    rng = np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = transforms.crop_box(100, 100, rng)
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 100
        width, height = right - left, bottom - top
        assert 0.75 <= width * height / 1e4 <= 1.0  # one that sticks out is cut
        assert 0.9 - 1e-9 <= width / height <= 1.1 + 1e-9


def test_half_of_the_images_are_flipped_and_half_are_cropped():
    image = ramp()
    plain = transforms.fit(image, 32)
    outs = [transforms.augment(image, 32, np.random.default_rng(i)) for i in range(400)]
    flipped = [out[0, 0, 0] > out[0, 0, -1] for out in outs]
    whole = [(out == plain).all() or (out[:, :, ::-1] == plain).all() for out in outs]
    assert 160 < sum(flipped) < 240
    assert 160 < sum(whole) < 240
