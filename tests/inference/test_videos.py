"""Videos: keyframes, the frames between them, and files that are written a frame at a time."""

import math
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from stargan_dist import Translator
from stargan_dist.errors import UserError
from stargan_dist.inference import videos
from stargan_dist.inference.pictures import to_image_of_output
from stargan_dist.inference.video_files import check_size, write_video
from stargan_dist.inference.videos import Frame, Motion
from tests.helpers.models import tiny_model
from tests.helpers.pictures import picture, shape_and_duration


@pytest.fixture(scope="module")
def translator():
    return Translator(tiny_model(dtype=torch.float64), device="cpu")


def test_a_plan_goes_from_keyframe_to_keyframe():
    motion = Motion(frames=2, hold=1, easing="linear")
    assert videos.plan(3, motion) == [
        Frame(0, 1, 0), Frame(0, 1, 0), Frame(0, 1, 0.5),
        Frame(1, 2, 0), Frame(1, 2, 0), Frame(1, 2, 0.5),
        Frame(2, 2, 0), Frame(2, 2, 0),
    ]  # fmt: skip
    loop = videos.plan(2, Motion(frames=1, loop=True))
    assert loop == [Frame(0, 1, 0), Frame(1, 0, 0), Frame(0, 0, 0)]
    assert videos.plan(1, motion) == [Frame(0, 0, 0)] * 2


@pytest.mark.parametrize("easing", videos.EASINGS)
def test_easings_rise_from_0_to_1(easing):
    values = [videos.EASINGS[easing](i / 50) for i in range(51)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0, 1)
    assert values[25] == pytest.approx(0.5)


def test_spherical_interpolation_keeps_the_length():
    a, b = torch.tensor([3.0, 0, 0]).double(), torch.tensor([0, 3.0, 0]).double()
    middle = videos.spherical(a, b, 0.5)
    torch.testing.assert_close(middle, torch.tensor([1, 1, 0]).double() * 3 / math.sqrt(2))
    assert videos.linear(a, b, 0.5).norm() < 3 / math.sqrt(2) + 1e-9
    for weight, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(videos.spherical(a, b, weight), end)
    torch.testing.assert_close(videos.spherical(a, 2 * a, 0.5), 1.5 * a)
    torch.testing.assert_close(videos.spherical(a, 0 * a, 0.5), 0.5 * a)


def test_labels_are_interpolated_linearly_in_front_of_styles():
    keyframes = torch.tensor([[1.0, 0, 0, 3, 0], [0, 1.0, 0, 0, 3]]).double()
    frame = Frame(0, 1, 0.25)
    vector = videos.between(keyframes, frame, 2, "spherical")
    torch.testing.assert_close(vector[:3], torch.tensor([0.75, 0.25, 0]).double())
    torch.testing.assert_close(vector[3:], videos.spherical(*keyframes[:, 3:], 0.25))
    linear = torch.lerp(*keyframes, 0.25)
    assert not torch.allclose(vector, linear)
    torch.testing.assert_close(videos.between(keyframes, frame, 2, "linear"), linear)
    torch.testing.assert_close(videos.between(keyframes, frame, 0, "spherical"), linear)


def test_only_styles_of_a_model_are_interpolated_spherically():
    model = Translator(tiny_model("d", dtype=torch.float64), device="cpu")
    ends = [model.conditioning(domain, seed=[seed]) for domain, seed in (("cat", 1), ("fox", 2))]
    style = videos.spherical(*(end[0, -model.model.style_dim :] for end in ends), 0.5)
    vector = torch.cat([torch.tensor([0, 0.5, 0.5]).double(), style])  # bear, cat, fox
    (expected,) = model.translate_fitted([model.fitted(picture())], vector[None])
    (frame,) = videos.render(
        model, [model.fitted(picture())], torch.cat(ends), [Frame(0, 1, 0.5)],
        interpolation="spherical",
    )  # fmt: skip
    assert frame.crop((0, 32, 32, 64)) == to_image_of_output(expected[0])


def test_frames_are_translations_of_the_style_between(translator):
    sources = [translator.fitted(picture(seed=i)) for i in range(2)]
    styles = translator.styles([1, 2], "cat")
    keyframes = translator.conditioning("cat", seed=[1, 2])
    frames = [Frame(0, 1, 0.0), Frame(0, 1, 0.25), Frame(0, 1, 1.0)]
    for frame, image in zip(
        frames, videos.render(translator, sources, keyframes, frames), strict=True
    ):
        style = torch.lerp(styles[0], styles[1], frame.weight)
        expected = translator.translate([picture(), picture(seed=1)], "cat", style=style)
        assert image.size == (64, 64)
        cells = [image.crop((32 * i, 32, 32 * i + 32, 64)) for i in range(2)]
        assert [cell.tobytes() for cell in cells] == [e.tobytes() for e in expected]
        assert image.crop((0, 0, 32, 32)).tobytes() == picture().tobytes()


def test_sources_are_computed_in_batches(monkeypatch):
    translator = Translator(tiny_model(), device="cpu", batch_size=2)
    pictures = [picture(seed=i) for i in range(5)]
    expected = translator.translate(pictures, "cat", seed=1)
    sizes = []
    encode, decode = translator.model.encode, translator.model.decode
    monkeypatch.setattr(translator.model, "encode", lambda x: sizes.append(len(x)) or encode(x))
    monkeypatch.setattr(
        translator.model, "decode", lambda e, v: sizes.append(len(v)) or decode(e, v)
    )
    sources = [translator.fitted(each) for each in pictures]
    keyframes = translator.conditioning("cat", seed=[1])
    (frame,) = videos.render(translator, sources, keyframes, [Frame(0, 0, 0.0)])
    assert sizes == [2, 2, 1] * 2
    cells = [frame.crop((32 * i, 32, 32 * i + 32, 64)) for i in range(5)]
    assert cells == expected  # in float32, as the batches are the same


def test_frames_are_rendered_when_they_are_taken(translator, monkeypatch):
    decoded = []
    original = translator.model.decode
    monkeypatch.setattr(
        translator.model, "decode", lambda *args: decoded.append(1) or original(*args)
    )
    keyframes = translator.conditioning("cat", seed=[1, 2])
    source = [translator.fitted(picture())]
    frames = videos.render(translator, source, keyframes, videos.plan(2, Motion(frames=1000)))
    for number in range(1, 4):
        next(frames)
        assert len(decoded) == number


def test_the_motion_of_the_authors():
    frames = videos.plan_of_authors([0, 0, 1, 1])
    assert len(frames) == 2 * 31 + 10
    assert {(frame.begin, frame.end) for frame in frames} == {(0, 1), (2, 3)}  # 1 to 2 is a cut
    weights = [frame.weight for frame in frames[:31]]
    assert weights[:2] == [0, pytest.approx(0.00669, abs=1e-5)]
    assert weights[20] == pytest.approx(0.989, abs=1e-3)
    assert weights[21:] == [1] * 10


def test_the_layout_of_the_authors():
    size = 32
    references = [Image.new("RGB", (size, size), colour) for colour in ("red", "blue")]
    sources = [Image.new("RGB", (size, size), "white")] * 3
    outputs = [Image.new("RGB", (size, size), "green")] * 3
    draw = videos.layout_of_authors(references)
    begin = draw(Frame(0, 1, 0.0), sources, outputs)
    assert begin.size == (size + 32 + 3 * size, 2 * size)
    pixels = np.asarray(begin)
    assert pixels[size + 1, 1].tolist() == [255, 0, 0]  # the first is below
    end = np.asarray(draw(Frame(0, 1, 1.0), sources, outputs))
    assert end[1, 1].tolist() == [255, 0, 0]
    assert end[size + 1, 1].tolist() == [0, 0, 255]
    assert end[1, size + 33].tolist() == [255, 255, 255]
    assert end[size + 1, size + 33].tolist() == [0, 128, 0]
    assert end[1, size + 16].tolist() == [0, 0, 0]  # the margin


def shades(count, size=(32, 32)):
    """Yield images that become brighter."""
    for i in range(count):
        yield Image.new("RGB", size, (i * 20, i * 20, i * 20))


@pytest.mark.parametrize("size", [(32, 32), (33, 35)])
def test_an_mp4_has_all_frames_in_order(tmp_path, size):
    av = pytest.importorskip("av", reason="PyAV (extra video) is not installed")
    write_video(str(tmp_path / "a.mp4"), shades(12, size), 12, Fraction(25, 2))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(25, 2)
        assert stream.codec_context.pix_fmt == "yuv420p"
        means = [frame.to_ndarray(format="rgb24")[:30, :30].mean() for frame in container.decode()]
        assert (stream.width, stream.height) == tuple(side + side % 2 for side in size)
    assert len(means) == 12
    assert np.abs(np.array(means) - 20 * np.arange(12)).max() < 5


def test_a_webp_has_all_frames_in_order(tmp_path):
    write_video(f"file://{tmp_path}/a.webp", shades(12), 12, Fraction(25))
    with Image.open(tmp_path / "a.webp") as image:
        assert image.n_frames == 12
        means = []
        for i in range(12):
            image.seek(i)
            means.append(np.asarray(image.convert("RGB")).mean())
            assert image.info["duration"] == 40  # once it is decoded
    assert np.abs(np.array(means) - 20 * np.arange(12)).max() < 5


@pytest.mark.parametrize("fps", ["30000/1001", "29.97", "12.5"])
@pytest.mark.parametrize("suffix", ["mp4", "webp"])
def test_frame_rates_give_the_right_duration(tmp_path, suffix, fps):
    if suffix == "mp4":
        pytest.importorskip("av", reason="PyAV (extra video) is not installed")
    rate, path = Fraction(fps), tmp_path / f"a.{suffix}"
    write_video(str(path), shades(12), 12, rate)
    if suffix == "webp":
        assert shape_and_duration(path) == (
            (32, 32),
            round(12_000 / rate),
        )  # 396 at 30000/1001 if each were rounded
    else:
        import av

        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (stream.average_rate, stream.duration * stream.time_base) == (rate, 12 / rate)


@pytest.mark.parametrize("suffix", ["mp4", "webp"])
def test_frames_are_written_one_after_the_other(tmp_path, suffix):
    if suffix == "mp4":
        pytest.importorskip("av", reason="PyAV (extra video) is not installed")
    yielded, alive = [], []

    def frames():
        for _ in range(20):
            image = Image.effect_noise((32, 32), 50).convert("RGB")
            yielded.append(weakref.ref(image))
            yield image
            del image
            alive.append(sum(reference() is not None for reference in yielded))

    write_video(str(tmp_path / f"a.{suffix}"), frames(), 20, Fraction(25))
    assert len(yielded) == 20
    assert max(alive) <= 2


@pytest.mark.parametrize(("name", "side"), [("a.mp4", 16384), ("a.webp", 16383)])
def test_frames_that_are_too_large_for_the_format_are_refused(tmp_path, name, side):
    if name == "a.mp4":
        pytest.importorskip("av", reason="PyAV (extra video) is not installed")
    check_size(name, side, 16)
    write_video(str(tmp_path / name), shades(1, (side, 16)), 1, Fraction(25))
    for size in ((side + 1, 16), (16, side + 1)):
        with pytest.raises(UserError, match=f"at most {side}: name fewer sources"):
            check_size(name, *size)
        with pytest.raises(Exception, match=r"WebP|libx264|encode"):
            write_video(str(tmp_path / f"more-{name}"), shades(2, size), 2, Fraction(25))


def test_an_earlier_video_is_replaced_and_a_folder_is_not(tmp_path):
    (tmp_path / "a.webp").write_text("earlier")
    write_video(str(tmp_path / "a.webp"), shades(2), 2, Fraction(25))
    assert shape_and_duration(tmp_path / "a.webp") == ((32, 32), 80)
    (tmp_path / "b.webp").mkdir()
    with pytest.raises(UserError, match=r"b\.webp is a folder: name a file"):
        write_video(str(tmp_path / "b.webp"), shades(2), 2, Fraction(25))


@pytest.mark.parametrize(("name", "message"), [
    ("a.gif", r"ends with \.mp4 or \.webp"), ("missing/\0/a.webp", "cannot write|null byte"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, name, message):
    with pytest.raises((UserError, ValueError), match=message):
        write_video(str(tmp_path / name), shades(2), 2, Fraction(25))


def test_nothing_is_left_of_a_video_that_fails(tmp_path):
    def failing():
        yield from shades(2)
        raise UserError("no more")

    for name in ("a.webp", "a.mp4"):
        with pytest.raises(UserError, match="no more"):
            write_video(str(tmp_path / name), failing(), 5, Fraction(25))
    assert [*tmp_path.iterdir()] == []
