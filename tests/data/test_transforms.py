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
    """Smooth, and like none of its mirror images."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    planes = [np.sin(9 * x + 2 * y), np.sin(3 * x * y + 8 * y), np.cos(7 * x - 5 * y * y)]
    return Image.fromarray((127.5 + 120 * np.stack(planes, axis=2)).astype(np.uint8))


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def raw_png(width, height, depth, kind, rows=b""):
    """A PNG of given bits and colour type; `rows` with the filter byte ahead of each."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


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


def test_a_jpeg_in_cmyk_is_inverted_as_adobe_does_it():
    data = encode(waves(64, 48).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert psnr(transforms.decode(data), waves(64, 48)) > 35


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_over_white_whatever_it_hides(mode):
    image = noise(8, 8).convert(mode)
    image.putalpha(
        Image.fromarray(
            np.repeat([[0, 255], [0, 255]], 4, axis=0).repeat(4, axis=1).astype(np.uint8)
        )
    )
    pixels = np.asarray(transforms.decode(encode(image)))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == np.asarray(image.convert("RGB"))[:, 4:]).all()


def test_half_transparency_mixes_with_white():
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
def test_values_of_32_bits_are_refused(mode):
    with pytest.raises(UserError, match="32 bits have no known range"):
        transforms.decode(encode(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_are_undone(orientation, kind):
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


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="40 × 30 pixels are more than 1000"):
        transforms.decode(encode(ramp()))


@pytest.mark.parametrize("side", [10_000, 12_000, 100_000])  # PIL: allows, warns, raises
def test_gigantic_headers_are_refused_with_their_size(side):
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
def test_damaged_images_are_user_errors_for_people(data, reason):
    loads = [
        transforms.decode,
        transforms.examine,
        lambda d: transforms.load_augmented(d, 8, np.random.default_rng(0), fast=True),
    ]
    for load in loads:
        with pytest.raises(UserError, match=f"^({reason})") as caught:
            load(data)
        assert "object at" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_refused_as_training_images(kind):
    first, *more = [noise(8, 8, i) for i in range(3)]
    data = encode(first, kind, save_all=True, append_images=more)
    with pytest.raises(UserError, match=r"^animated \(3 frames\)"):
        transforms.examine(data)
    assert transforms.decode(data).size == (8, 8)


def test_several_pages_are_refused_as_training_images():
    data = encode(noise(8, 8), "TIFF", save_all=True, append_images=[noise(8, 8, 1)])
    with pytest.raises(UserError, match=r"^several pages \(2\)"):
        transforms.examine(data)


def test_photos_of_phones_are_stills_though_more_follows():
    data = encode(waves(40, 30), "MPO", save_all=True, append_images=[noise(8, 8)])
    assert psnr(transforms.examine(data), waves(40, 30)) > 28


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_stills_are_examined_to_the_pixels_of_decode(kind):
    data = encode(ramp(), kind)
    assert (np.asarray(transforms.examine(data)) == np.asarray(transforms.decode(data))).all()


def reencode(image, crop=0, size=0, form="png", quality=95):
    return transforms.reencode(image, crop=crop, size=size, form=form, quality=quality)


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
def test_reencoded_images_have_the_size_asked_for(crop, size, expected):
    assert transforms.decode(reencode(waves(90, 60), crop, size)).size == expected


def test_the_crop_is_central():
    pixels = np.asarray(transforms.decode(reencode(noise(90, 60), crop=40)))
    assert (pixels == np.asarray(noise(90, 60))[10:50, 25:65]).all()


@pytest.mark.parametrize(
    ("form", "kind", "least"), [("jpeg", "JPEG", 40), ("png", "PNG", 90), ("webp", "WEBP", 35)]
)
def test_reencoded_images_are_close_and_always_the_same_bytes(form, kind, least):
    data = reencode(waves(90, 60), form=form)
    assert data == reencode(waves(90, 60), form=form)
    assert Image.open(io.BytesIO(data)).format == kind
    assert psnr(transforms.decode(data), waves(90, 60)) > least


def test_lower_quality_is_smaller():
    for form in ("jpeg", "webp"):
        sizes = [len(reencode(noise(60, 60), form=form, quality=q)) for q in (50, 80, 95)]
        assert sizes == sorted(set(sizes))


def test_a_reencoded_jpeg_keeps_all_chroma():
    with Image.open(io.BytesIO(reencode(waves(90, 60), form="jpeg"))) as image:
        assert [factors[1:3] for factors in image.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_no_metadata_is_kept(form):
    exif = Image.Exif()
    exif[274], exif[270] = 3, "description"
    source = encode(
        waves(40, 30), "JPEG", exif=exif.tobytes(), comment=b"comment", icc_profile=b"profile"
    )
    image = transforms.decode(source)
    data = reencode(image, form=form)
    assert not any(word in data for word in (b"description", b"comment", b"profile", b"Exif"))
    again = transforms.decode(data)
    assert psnr(again, image) > 35  # upright, and not turned twice
    assert reencode(image, form=form) == data  # the image itself was not touched


def test_noise_is_encoded_though_pil_cannot_optimize_it():
    data = reencode(noise(300, 300), form="jpeg", quality=90)
    assert transforms.decode(data).size == (300, 300)


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_too_long_a_side_is_a_user_error(form):
    with pytest.raises(UserError, match=f"70000 × 1 pixels as {form}"):
        reencode(Image.new("RGB", (70000, 1)), form=form)


def test_crop_boxes_have_the_documented_area_and_ratio():
    rng = np.random.default_rng(0)
    for _ in range(500):
        left, top, right, bottom = transforms.crop_box(100, 100, rng)
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 100
        width, height = right - left, bottom - top
        assert 0.75 <= width * height / 1e4 <= 1.0  # one that sticks out is cut
        assert 0.9 - 0.02 <= width / height <= 1.1 + 0.02  # sides are rounded to pixels


def test_half_of_the_images_are_flipped_and_half_are_cropped():
    image = ramp()
    plain = transforms.fit(image, 32)
    outs = [transforms.augment(image, 32, np.random.default_rng(i)) for i in range(400)]
    flipped = [out[0, 0, 0] > out[0, 0, -1] for out in outs]
    whole = [(out == plain).all() or (out[:, :, ::-1] == plain).all() for out in outs]
    assert 160 < sum(flipped) < 240
    assert 160 < sum(whole) < 240


def plain_augment(image, size, rng):
    """`augment` by torchvision, one step after the other."""
    if rng.random() < 0.5:
        left, top, right, bottom = transforms.crop_box(*image.size, rng)
        image = F.resized_crop(image, top, left, bottom - top, right - left, [size, size])
    image = F.resize(image, [size, size])
    return np.asarray(F.hflip(image) if rng.random() < 0.5 else image).transpose(2, 0, 1)


def both(load, other, seed):
    """What two functions make of equal generators, which must have drawn the same."""
    rngs = np.random.default_rng(seed), np.random.default_rng(seed)
    outs = load(rngs[0]), other(rngs[1])
    assert rngs[0].random() == rngs[1].random()
    return outs


@pytest.mark.parametrize(
    ("kind", "fast"), [("JPEG", False), ("PNG", False), ("PNG", True), ("WEBP", True)]
)
def test_the_exact_way_is_augment_bit_for_bit(kind, fast):
    data = encode(noise(70, 50), kind)
    for seed in range(12):
        loaded, expected = both(
            lambda rng: transforms.load_augmented(data, 32, rng, fast=fast),
            lambda rng: plain_augment(transforms.decode(data), 32, rng),
            seed,
        )
        assert loaded.dtype == np.uint8
        assert loaded.flags.c_contiguous
        assert (loaded == expected).all()


def worst_psnr(data, size, seeds=16):
    """Of the fast way, against the exact one."""
    pairs = [
        both(
            lambda rng: transforms.load_augmented(data, size, rng, fast=True),
            lambda rng: transforms.load_augmented(data, size, rng, fast=False),
            seed,
        )
        for seed in range(seeds)
    ]
    assert all(a.shape == (3, size, size) and a.flags.c_contiguous for a, _ in pairs)
    return min(psnr(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (80, 97), (128, 128), (300, 200), (515, 389), (40, 30)]
)
def test_the_fast_way_is_close(width, height):
    image = waves(width, height)
    assert worst_psnr(encode(image, "JPEG", quality=95), 64) > 40
    # A flip forgotten, or a box off by 1/50 of the picture, would have been seen.
    exact = np.asarray(image.resize((64, 64)))
    assert psnr(exact, exact[:, ::-1]) < 20
    box = (0.02 * width, 0, width, height)
    assert psnr(exact, image.resize((64, 64), box=box)) < 38


@pytest.mark.parametrize("orientation", range(2, 9))
def test_the_fast_way_undoes_exif_turns(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(waves(320, 208), "JPEG", quality=95, exif=exif.tobytes())
    assert worst_psnr(data, 64, seeds=8) > 40


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_the_fast_way_takes_other_modes(mode):
    data = encode(waves(320, 208).convert(mode), "JPEG", quality=95)
    assert worst_psnr(data, 64, seeds=8) > 40


def test_the_fast_way_takes_what_its_decoder_refuses():
    plain = encode(waves(100, 100), "JPEG", quality=95)
    odd = plain[:-2] + b"\x00\x00" + plain[-2:]  # bytes to spare before the end
    assert worst_psnr(odd, 64, seeds=4) > 40


@pytest.mark.parametrize(
    ("side", "reduction"), [(95, 1), (96 * 2 - 1, 1), (96 * 2, 2), (96 * 4, 4), (96 * 50, 8)]
)
def test_jpegs_are_reduced_while_enough_pixels_are_left(side, reduction):
    assert transforms._reduction((0, 0, side, side + 7), 64) == reduction


def test_large_jpegs_are_decoded_at_a_reduced_scale(monkeypatch):
    asked = []

    def decode_jpeg(data, **least):
        asked.append(least)
        return simplejpeg_decode(data, **least)

    simplejpeg_decode = transforms.simplejpeg.decode_jpeg
    monkeypatch.setattr(transforms.simplejpeg, "decode_jpeg", decode_jpeg)
    for side in (64, 300):
        data = encode(waves(side, side), "JPEG")
        transforms.load_augmented(data, 64, np.random.default_rng(1), fast=True)
    assert [least["min_width"] for least in asked] == [64, 150]


@pytest.mark.parametrize("size", [16, 64, 128])
def test_fast_resizing_follows_resize(size):
    rng = np.random.default_rng(0)
    for _ in range(30):
        image = waves(*rng.integers(64, 200, 2))
        box = transforms.crop_box(*image.size, rng)
        expected = np.asarray(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
        error = transforms._resized(np.array(image), box, size).astype(int) - expected
        assert abs(error).max() <= 2  # both round twice, once for each axis


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 2), (50, 7), (33, 400)])
def test_images_of_any_shape_are_loaded(shape):
    data = encode(noise(*shape), "JPEG")
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert transforms.load_augmented(data, 16, rng, fast=True).shape == (3, 16, 16)


def test_exif_of_the_decoded_image_does_not_turn_it_again():
    exif = Image.Exif()
    exif[274] = 6
    image = transforms.decode(encode(ramp(), "JPEG", exif=exif.tobytes()))
    assert ImageOps.exif_transpose(image).size == image.size == (30, 40)


def test_without_crops_the_whole_image_is_seen():
    image = Image.fromarray(
        np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    )
    whole = np.asarray(image).transpose(2, 0, 1)
    seen = [transforms.augment(image, 32, np.random.default_rng(i), crops=0.0) for i in range(20)]
    flipped = [np.array_equal(one, whole[:, :, ::-1]) for one in seen]
    assert all(np.array_equal(one, whole) or flip for one, flip in zip(seen, flipped, strict=True))
    assert 3 < sum(flipped) < 17
