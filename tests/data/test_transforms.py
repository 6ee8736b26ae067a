"""Image decoding, training augmentation, and re-encoding for storage."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.transforms import functional as F

from stargan_dist.data import transforms
from stargan_dist.errors import UserError

LOSSY = ("JPEG", "WEBP", "MPO")


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width=40, height=30):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, x], axis=2).astype(np.uint8))


def waves(width, height):
    """Return a smooth image that differs from all of its mirror images."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    planes = [np.sin(9 * x + 2 * y), np.sin(3 * x * y + 8 * y), np.cos(7 * x - 5 * y * y)]
    return Image.fromarray((127.5 + 120 * np.stack(planes, axis=2)).astype(np.uint8))


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def raw_png(width, height, depth, colour_type, rows=b""):
    """Return a PNG of a bit depth and colour type; each of `rows` begins with its filter byte."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def psnr(a, b):
    error = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return 10 * np.log10(255**2 / max(np.square(error).mean(), 1e-9))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = ramp().convert(mode)
    decoded = transforms.decode(encode(image, kind))
    assert decoded.mode == "RGB"
    assert (np.asarray(decoded) == np.asarray(image.convert("RGB"))).all()


def test_a_cmyk_jpeg_is_inverted_as_by_adobe():
    data = encode(waves(64, 48).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert psnr(transforms.decode(data), waves(64, 48)) > 35


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white_whatever_their_colour(mode):
    image = noise(8, 8).convert(mode)
    image.putalpha(
        Image.fromarray(
            np.repeat([[0, 255], [0, 255]], 4, axis=0).repeat(4, axis=1).astype(np.uint8)
        )
    )
    pixels = np.asarray(transforms.decode(encode(image)))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == np.asarray(image.convert("RGB"))[:, 4:]).all()


def test_half_transparent_pixels_are_mixed_with_white():
    image = Image.new("RGBA", (4, 4), (0, 100, 200, 128))
    assert transforms.decode(encode(image)).getpixel((1, 1)) == (127, 177, 227)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_colours_of_a_palette_become_white(kind):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((3, 0), 1)
    decoded = transforms.decode(encode(image, kind, transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((3, 0)) == (40, 50, 60)


def test_a_transparent_colour_without_a_palette_becomes_white():
    image = Image.new("RGB", (4, 2), (1, 2, 3))
    image.putpixel((3, 0), (9, 9, 9))
    decoded = transforms.decode(encode(image, transparency=(1, 2, 3)))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((3, 0)) == (9, 9, 9)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind):
    values = np.array([[0, 0x00FF, 0x0100, 0x8040, 0xFFFF]], np.uint16)
    pixels = np.asarray(transforms.decode(encode(Image.fromarray(values), kind)))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 0x80, 0xFF]
    assert (pixels == pixels[:, :, :1]).all()


def test_16_bit_rgb_is_scaled():
    row = b"\x00" + struct.pack(">6H", 0x8040, 0x01FF, 0xFFFF, 0, 0x00FF, 0x0100)
    pixels = np.asarray(transforms.decode(raw_png(2, 1, 16, 2, row)))
    assert pixels.tolist() == [[[0x80, 0x01, 0xFF], [0, 0, 1]]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_values_are_rejected(mode):
    with pytest.raises(UserError, match="32 bits have no known range"):
        transforms.decode(encode(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_undone(orientation, kind):
    undo = [
        None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90,
        Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270,
    ][orientation - 1]  # fmt: skip
    upright = waves(40, 30)
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[274] = orientation
    decoded = transforms.decode(encode(stored, kind, exif=exif.tobytes()))
    assert decoded.size == (40, 30)
    assert psnr(decoded, upright) > (28 if kind in LOSSY else 90)


def test_too_many_pixels_are_rejected_before_decoding(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="40 × 30 pixels are more than 1000"):
        transforms.decode(encode(ramp()))


@pytest.mark.parametrize("side", [10_000, 12_000, 100_000])  # PIL allows, warns, raises
def test_gigantic_sizes_in_headers_are_rejected(side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=f"{side} × {side} pixels are more than"):
            transforms.decode(raw_png(side, side, 8, 2))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"no image", "not an image that can be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be decoded"),
        (encode(ramp(), "PPM"), "not an image that can be decoded"),
        (encode(noise(40, 30))[:900], "truncated"),
        (encode(noise(40, 30), "JPEG")[:900], "truncated"),
        (encode(noise(40, 30), "GIF")[:900], "truncated"),
        (encode(noise(40, 30), "TIFF")[:900], "truncated"),
        (encode(noise(40, 30), "BMP")[:900], "truncated"),
        (encode(noise(40, 30), "WEBP")[:200], "damaged"),
        (encode(noise(40, 30))[:60] + bytes(900), "damaged|truncated"),
    ],
)
def test_damaged_images_are_readable_user_errors(data, reason):
    loaders = [
        transforms.decode,
        transforms.decode_still,
        lambda d: transforms.load_augmented(d, 8, np.random.default_rng(0), fast_decoding=True),
    ]
    for load in loaders:
        with pytest.raises(UserError, match=f"^({reason})") as caught:
            load(data)
        assert "object at" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_rejected_as_training_images(kind):
    first, *more = [noise(8, 8, i) for i in range(3)]
    data = encode(first, kind, save_all=True, append_images=more)
    with pytest.raises(UserError, match=r"^animated \(3 frames\)"):
        transforms.decode_still(data)
    assert transforms.decode(data).size == (8, 8)


def test_images_of_several_pages_are_rejected_as_training_images():
    data = encode(noise(8, 8), "TIFF", save_all=True, append_images=[noise(8, 8, 1)])
    with pytest.raises(UserError, match=r"^several pages \(2\)"):
        transforms.decode_still(data)


def test_mpo_photos_of_phones_count_as_stills():
    data = encode(waves(40, 30), "MPO", save_all=True, append_images=[noise(8, 8)])
    assert psnr(transforms.decode_still(data), waves(40, 30)) > 28


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_decode_still_returns_the_pixels_of_decode(kind):
    data = encode(ramp(), kind)
    assert (np.asarray(transforms.decode_still(data)) == np.asarray(transforms.decode(data))).all()


def reencode(image, crop=0, size=0, image_format="png", quality=95):
    return transforms.reencode(
        image, crop=crop, size=size, image_format=image_format, quality=quality
    )


@pytest.mark.parametrize(
    ("crop", "size", "expected"),
    [
        (0, 0, (90, 60)),
        (0, 30, (45, 30)),
        (0, 300, (90, 60)),  # never enlarged
        (50, 0, (50, 50)),
        (50, 20, (20, 20)),
        (500, 0, (60, 60)),
    ],
)
def test_reencoded_images_have_the_requested_size(crop, size, expected):
    assert transforms.decode(reencode(waves(90, 60), crop, size)).size == expected


def test_the_crop_is_central():
    pixels = np.asarray(transforms.decode(reencode(noise(90, 60), crop=40)))
    assert (pixels == np.asarray(noise(90, 60))[10:50, 25:65]).all()


@pytest.mark.parametrize(
    ("image_format", "pil_format", "min_psnr"),
    [("jpeg", "JPEG", 40), ("png", "PNG", 90), ("webp", "WEBP", 35)],
)
def test_reencoded_images_are_close_and_reproducible(image_format, pil_format, min_psnr):
    data = reencode(waves(90, 60), image_format=image_format)
    assert data == reencode(waves(90, 60), image_format=image_format)
    assert Image.open(io.BytesIO(data)).format == pil_format
    assert psnr(transforms.decode(data), waves(90, 60)) > min_psnr


def test_lower_quality_gives_smaller_files():
    for image_format in ("jpeg", "webp"):
        encoded = (
            reencode(noise(60, 60), image_format=image_format, quality=quality)
            for quality in (50, 80, 95)
        )
        sizes = [len(data) for data in encoded]
        assert sizes == sorted(set(sizes))


def test_a_reencoded_jpeg_has_full_chroma_resolution():
    with Image.open(io.BytesIO(reencode(waves(90, 60), image_format="jpeg"))) as image:
        assert [factors[1:3] for factors in image.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_reencoded_images_have_no_metadata(image_format):
    exif = Image.Exif()
    exif[274], exif[270] = 3, "description"
    source = encode(
        waves(40, 30), "JPEG", exif=exif.tobytes(), comment=b"comment", icc_profile=b"profile"
    )
    image = transforms.decode(source)
    data = reencode(image, image_format=image_format)
    assert not any(word in data for word in (b"description", b"comment", b"profile", b"Exif"))
    decoded = transforms.decode(data)
    assert psnr(decoded, image) > 35  # upright: the orientation is not applied twice
    assert reencode(image, image_format=image_format) == data  # the image itself did not change


def test_noise_is_encoded_although_pil_cannot_optimize_it():
    data = reencode(noise(300, 300), image_format="jpeg", quality=90)
    assert transforms.decode(data).size == (300, 300)


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_a_side_too_long_for_the_format_is_a_user_error(image_format):
    with pytest.raises(UserError, match=f"cannot encode 70000 × 1 pixels as {image_format}"):
        reencode(Image.new("RGB", (70000, 1)), image_format=image_format)


def test_crop_boxes_have_the_documented_area_and_ratio():
    rng = np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = transforms.crop_box(100, 100, rng)
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 100
        width, height = right - left, bottom - top
        assert 0.75 <= width * height / 1e4 <= 1.0  # boxes that exceed the image are shrunk
        assert 0.9 - 0.02 <= width / height <= 1.1 + 0.02  # sides are rounded to pixels


def test_half_of_the_images_are_flipped_and_half_are_cropped():
    image = ramp()
    plain = transforms.resize(image, 32)
    outs = [transforms.augment(image, 32, np.random.default_rng(i)) for i in range(400)]
    flipped = [out[0, 0, 0] > out[0, 0, -1] for out in outs]
    uncropped = [(out == plain).all() or (out[:, :, ::-1] == plain).all() for out in outs]
    assert 160 < sum(flipped) < 240
    assert 160 < sum(uncropped) < 240


def torchvision_augment(image, size, rng):
    """Compute `augment` with torchvision, operation by operation."""
    if rng.random() < 0.5:
        left, top, right, bottom = transforms.crop_box(*image.size, rng)
        image = F.resized_crop(image, top, left, bottom - top, right - left, [size, size])
    image = F.resize(image, [size, size])
    return np.asarray(F.hflip(image) if rng.random() < 0.5 else image).transpose(2, 0, 1)


def call_both(first, second, seed):
    """Call two functions with equal generators; check that both drew the same numbers."""
    rngs = np.random.default_rng(seed), np.random.default_rng(seed)
    results = first(rngs[0]), second(rngs[1])
    assert rngs[0].random() == rngs[1].random()
    return results


@pytest.mark.parametrize(
    ("kind", "fast_decoding"), [("JPEG", False), ("PNG", False), ("PNG", True), ("WEBP", True)]
)
def test_exact_decoding_equals_torchvision_bit_for_bit(kind, fast_decoding):
    data = encode(noise(70, 50), kind)
    for seed in range(12):
        loaded, expected = call_both(
            lambda rng: transforms.load_augmented(data, 32, rng, fast_decoding=fast_decoding),
            lambda rng: torchvision_augment(transforms.decode(data), 32, rng),
            seed,
        )
        assert loaded.dtype == np.uint8
        assert loaded.flags.c_contiguous
        assert (loaded == expected).all()


def worst_psnr(data, size, seeds=16):
    """Return the lowest PSNR of fast decoding with respect to exact decoding, over all seeds."""
    pairs = [
        call_both(
            lambda rng: transforms.load_augmented(data, size, rng, fast_decoding=True),
            lambda rng: transforms.load_augmented(data, size, rng, fast_decoding=False),
            seed,
        )
        for seed in range(seeds)
    ]
    assert all(a.shape == (3, size, size) and a.flags.c_contiguous for a, _ in pairs)
    return min(psnr(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (80, 97), (128, 128), (300, 200), (515, 389), (40, 30)]
)
def test_fast_decoding_is_close_to_exact_decoding(width, height):
    image = waves(width, height)
    assert worst_psnr(encode(image, "JPEG", quality=95), 64) > 40
    # This would detect a missing flip, or a box that is off by 1/50 of the image.
    exact = np.asarray(image.resize((64, 64)))
    assert psnr(exact, exact[:, ::-1]) < 20
    box = (0.02 * width, 0, width, height)
    assert psnr(exact, image.resize((64, 64), box=box)) < 38


@pytest.mark.parametrize("orientation", range(2, 9))
def test_fast_decoding_undoes_exif_orientations(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(waves(320, 208), "JPEG", quality=95, exif=exif.tobytes())
    assert worst_psnr(data, 64, seeds=8) > 40


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_fast_decoding_accepts_other_modes(mode):
    data = encode(waves(320, 208).convert(mode), "JPEG", quality=95)
    assert worst_psnr(data, 64, seeds=8) > 40


def test_fast_decoding_accepts_jpegs_that_its_decoder_rejects():
    plain = encode(waves(100, 100), "JPEG", quality=95)
    padded = plain[:-2] + b"\x00\x00" + plain[-2:]  # superfluous bytes before the end
    assert worst_psnr(padded, 64, seeds=4) > 40


@pytest.mark.parametrize(
    ("side", "denominator"), [(95, 1), (96 * 2 - 1, 1), (96 * 2, 2), (96 * 4, 4), (96 * 50, 8)]
)
def test_jpegs_are_decoded_at_the_smallest_scale_with_enough_pixels(side, denominator):
    assert transforms._scale_denominator((0, 0, side, side + 7), 64) == denominator


def test_large_jpegs_are_decoded_at_a_reduced_scale(monkeypatch):
    requests = []

    def decode_jpeg(data, **min_size):
        requests.append(min_size)
        return simplejpeg_decode(data, **min_size)

    simplejpeg_decode = transforms.simplejpeg.decode_jpeg
    monkeypatch.setattr(transforms.simplejpeg, "decode_jpeg", decode_jpeg)
    for side in (64, 300):
        data = encode(waves(side, side), "JPEG")
        transforms.load_augmented(data, 64, np.random.default_rng(1), fast_decoding=True)
    assert [min_size["min_width"] for min_size in requests] == [64, 150]


@pytest.mark.parametrize("size", [16, 64, 128])
def test_fast_resizing_is_close_to_resizing_by_pil(size):
    rng = np.random.default_rng(0)
    for _ in range(30):
        image = waves(*rng.integers(64, 200, 2))
        box = transforms.crop_box(*image.size, rng)
        expected = np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
        error = transforms._resize_crop(np.array(image), box, size).astype(int) - expected
        assert abs(error).max() <= 2  # both round twice, once per axis


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (50, 7), (33, 400)])
def test_images_of_any_shape_are_loaded(shape):
    data = encode(noise(*shape), "JPEG")
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert transforms.load_augmented(data, 16, rng, fast_decoding=True).shape == (3, 16, 16)


def test_a_decoded_image_has_no_orientation_left():
    exif = Image.Exif()
    exif[274] = 6
    image = transforms.decode(encode(ramp(), "JPEG", exif=exif.tobytes()))
    assert ImageOps.exif_transpose(image).size == image.size == (30, 40)


def test_without_a_crop_images_are_complete():
    image = Image.fromarray(
        np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    )
    whole = np.asarray(image).transpose(2, 0, 1)
    outs = [
        transforms.augment(image, 32, np.random.default_rng(i), transforms.NO_CROP)
        for i in range(20)
    ]
    flipped = [np.array_equal(out, whole[:, :, ::-1]) for out in outs]
    assert all(np.array_equal(out, whole) or flip for out, flip in zip(outs, flipped, strict=True))
    assert 3 < sum(flipped) < 17
