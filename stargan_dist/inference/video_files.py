"""Video files, written a frame at a time: mp4 by PyAV, animated WebP by PIL."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from stargan_dist import storage
from stargan_dist.errors import UserError, explained

QUALITY = 80  # of WebP
MAX_SIDES = {".mp4": 16384, ".webp": 16383}  # pixels; of libx264 and libwebp


def write_video(url: str, frames: Iterable[Image.Image], count: int, fps: Fraction) -> None:
    """Write a video to a file or URL that ends with .mp4 or .webp.

    It appears complete, in place of an earlier one. Frames are encoded as they come; those of WebP,
    encoded, stay in memory until the end. WebP has whole milliseconds: each frame begins at the one
    nearest to its time.

    Args:
        frames: images of one size.
        count: their number.
        fps: frames per second.

    Raises:
        UserError: another suffix, a missing package, a folder, or the file cannot be written.
    """
    check_writer(url)
    try:
        if storage.is_folder(url):
            raise UserError(f"{url} is a folder: name a file")
        with storage.published_file(url) as path:
            WRITERS[_suffix(url)](path, frames, count, fps)
    except OSError as error:
        raise explained(f"cannot write {url}: {error}", error) from error


def check_writer(url: str) -> None:
    """Raise UserError if a file has another suffix, or the package that writes it is missing."""
    if _suffix(url) not in WRITERS:
        raise UserError(f"{url}: the name of a video ends with {' or '.join(WRITERS)}")
    if _suffix(url) == ".mp4":
        _av()


def check_size(url: str, width: int, height: int) -> None:
    """Raise UserError if frames of this size, in pixels, are too large for the format of a file."""
    suffix = _suffix(url)
    if max(width, height) > MAX_SIDES[suffix]:
        raise UserError(
            f"{url}: frames of {width} × {height} pixels are too large for {suffix}, whose sides "
            f"have at most {MAX_SIDES[suffix]}: name fewer sources"
        )


def _suffix(url: str) -> str:
    return Path(url).suffix.lower()


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(
            "mp4 files need a package: pip install 'stargan_dist[video]', or write a .webp"
        ) from error
    return av


def _write_mp4(path: Path, frames: Iterable[Image.Image], _count: int, fps: Fraction) -> None:
    av = _av()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.pix_fmt = "yuv420p"
        for number, image in enumerate(frames):
            even = _even(image)
            if number == 0:
                stream.width, stream.height = even.size
            container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())


def _even(image: Image.Image) -> Image.Image:
    """Add a black row or column where a side is odd: colours have half the resolution."""
    width, height = (side + side % 2 for side in image.size)
    return image.crop((0, 0, width, height))


class _Frames(Image.Image):
    """An image of many frames, of which one is in memory. PIL would make a list of an iterator."""

    def __init__(self, frames: Iterator[Image.Image], count: int) -> None:
        super().__init__()
        first = next(frames)
        self._frames, self._position, self.n_frames = frames, 0, count
        self.im, self._mode, self._size = first.im, first.mode, first.size

    def seek(self, frame: int) -> None:
        if frame == self._position + 1:  # PIL goes forward, and back to the first at the end
            self.im = next(self._frames).im
            self._position = frame

    def tell(self) -> int:
        return 0


def _write_webp(path: Path, frames: Iterable[Image.Image], count: int, fps: Fraction) -> None:
    images = _Frames(iter(frames), count)
    with path.open("wb") as file:
        images.save(
            file, "WEBP", save_all=True, duration=float(1000 / fps), loop=0, quality=QUALITY
        )


WRITERS = {".mp4": _write_mp4, ".webp": _write_webp}
