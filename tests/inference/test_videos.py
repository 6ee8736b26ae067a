"""Videos: keyframes, the frames between them, and files that are written a frame at a time."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from stargan_dist import Translator
from stargan_dist.errors import UserError
from stargan_dist.inference import videos
from stargan_dist.inference.video_files import write_video
from stargan_dist.inference.videos import Frame, Motion
from tests.helpers.models import tiny_model
from tests.helpers.pictures import picture


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
    assert values[0] == pytest.approx(0, abs=0.01)
    assert values[-1] == pytest.approx(1, abs=0.01)
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
    """Yield images that become brighter, with a check that no earlier one is asked for again."""
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


def test_webp_frames_are_written_one_after_the_other(tmp_path):
    alive = []

    def frames():
        for i in range(40):
            image = Image.effect_noise((64, 64), 50).convert("RGB")
            alive.append(i)
            yield image

    taken = frames()
    write_video(str(tmp_path / "a.webp"), taken, 40, Fraction(25))
    assert len(alive) == 40
    assert next(taken, None) is None


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
