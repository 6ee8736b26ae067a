"""Time loading of 512 px JPEGs to augmented 256 px batches, per core, against plain torchvision.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--count 96] [--rounds 15] [--images FOLDER]

The baseline is torchvision's ImageFolder with the transforms of StarGAN v2's published code, up to
a batch of floats. The project's loaders read shards through its own reader, in one process with one
thread, up to a batch of bytes. A batch leaves a loader worker in this form and becomes floats on
the GPU; `float` ratios include that conversion on the CPU.

    exact      the original JPEGs, with PIL's pixels bit for bit
    original   the original JPEGs, with `data.fast_decoding`
    reencoded  shards built with `Encoding(size=320)` (quality 92, 4:4:4), `data.fast_decoding`

The loaders alternate, because the machine's speed varies; a ratio is the median of the ratios of
all rounds. PSNR is the mean over images, for the range [0, 255], against the original's pixels,
cropped by the same box and resized in floating point. The images are synthetic, with the size and
spectrum of photographs, unless `--images` names a folder with JPEGs. The last line is JSON.
"""

import argparse
import io
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stargan_dist.console.progress import progress_bar
from stargan_dist.data import transforms
from stargan_dist.data.batch import to_unit
from stargan_dist.data.index import read_index
from stargan_dist.data.order import Location, seeded_rng
from stargan_dist.data.reader import ShardReader
from stargan_dist.errors import UserError, run_command
from stargan_dist.shards.build import build
from stargan_dist.shards.pack import Encoding

SIDE, SIZE, BATCH = 512, 256, 8
ENCODING = Encoding(size=320)
FAST = {"exact": False, "original": True, "reencoded": True}  # loader: data.fast_decoding


def noise(rng: np.random.Generator, slope: float) -> np.ndarray:
    """Draw a random field (SIDE, SIDE), amplitudes ~ 1 / frequency^slope, standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    frequency[0, 0] = np.inf
    phases = rng.standard_normal((2, *frequency.shape))
    field = np.fft.irfft2((phases[0] + 1j * phases[1]) * frequency**-slope, (SIDE, SIDE))
    return field / field.std()


def draw_photograph(rng: np.random.Generator) -> Image.Image:
    """Draw shaded, textured ovals, sharp and blurred, on clouds; colours vary smoothly."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    luma = 128 + 35 * noise(rng, 1.3)
    chroma = 10 * np.stack([noise(rng, 1.6), noise(rng, 1.6)])
    for _ in range(rng.integers(6, 14)):
        (cx, cy), radius = rng.random(2), rng.uniform(0.05, 0.35)
        aspect, angle, blur = rng.uniform(0.5, 2), rng.uniform(0, np.pi), rng.choice([0.7, 1.5, 6])
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        inside = SIDE * (radius - np.hypot(u / aspect, v * aspect)) / blur
        mask = 1 / (1 + np.exp(-inside.clip(-30, 30)))
        texture = rng.uniform(4, 16) * noise(rng, rng.uniform(0.6, 1.4))
        luma += mask * (rng.uniform(50, 205) + texture + 25 * u / radius - luma)
        chroma += mask * (rng.normal(0, 18, (2, 1, 1)) + 0.2 * texture - chroma)
    cb, cr = chroma
    rgb = np.stack([luma + 1.402 * cr, luma - 0.344 * cb - 0.714 * cr, luma + 1.772 * cb], axis=2)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def draw_jpegs(count: int) -> Iterator[bytes]:
    """Draw synthetic photographs, encoded as JPEGs."""
    for i in range(count):
        buffer = io.BytesIO()
        draw_photograph(np.random.default_rng(i)).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


def read_jpegs(folder: Path, count: int) -> Iterator[bytes]:
    """Read the first `count` JPEGs below a folder.

    Raises:
        UserError: there are fewer than two.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:count]
    if len(paths) < 2:
        raise UserError(f"--images: {folder} has fewer than two JPEGs; name a folder with more")
    sizes = {transforms.decode(path.read_bytes()).size for path in paths}
    if sizes != {(SIDE, SIDE)}:
        print(f"the images are not {SIDE} px: {min(sizes)} to {max(sizes)}")
    yield from (path.read_bytes() for path in paths)


def write_source(jpegs: Iterator[bytes], folder: Path) -> None:
    """Write images as the `train` split of two domains."""
    sizes = []
    for i, data in enumerate(jpegs):
        path = folder / "train" / f"domain{i % 2}" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sizes.append(len(data) / 1024)
    print(f"{len(sizes)} JPEGs of {min(sizes):.0f} to {max(sizes):.0f} KB, mean {mean(sizes):.0f}")


def make_baseline(folder: Path) -> Callable[[], Any]:
    """Return a function that loads all images once with plain torchvision."""
    crop = T.RandomResizedCrop(SIZE, scale=[0.8, 1.0], ratio=[0.9, 1.1])
    transform = T.Compose(
        [
            T.Lambda(lambda x: crop(x) if random.random() < 0.5 else x),
            T.Resize([SIZE, SIZE]),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]),
        ]
    )
    loader = torch.utils.data.DataLoader(ImageFolder(folder, transform), batch_size=BATCH)
    return lambda: [None for _ in loader]


class Loader:
    """Loads the samples of some shards, one after the other."""

    def __init__(self, url: Path, fast: bool) -> None:
        self.reader, self.fast = ShardReader(str(url), read_index(str(url)), "train"), fast
        counts = self.reader.index.counts("train")
        self.locations = [
            Location(domain, shard, i)
            for domain, shards in enumerate(counts)
            for shard, n in enumerate(shards)
            for i in range(n)
        ]

    def load(self, number: int) -> torch.Tensor:
        """Load one augmented image, uint8 (3, SIZE, SIZE)."""
        data = self.reader.read(self.locations[number]).image
        rng = seeded_rng(0, "augment", number)
        return torch.from_numpy(transforms.load_augmented(data, SIZE, rng, fast_decoding=self.fast))

    def batches(self) -> Iterator[torch.Tensor]:
        """Yield batches of all images once, uint8 (B, 3, SIZE, SIZE)."""
        for first in range(0, len(self.locations), BATCH):
            numbers = range(first, min(first + BATCH, len(self.locations)))
            yield torch.stack([self.load(i) for i in numbers])

    def load_all(self) -> None:
        """Load all images once."""
        for _ in self.batches():
            pass

    def load_all_as_floats(self) -> None:
        """Load all images once, converted to floats."""
        for batch in self.batches():
            to_unit(batch)


def exact_image(original: bytes, data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Compute `load_augmented(data)` from the original in floating point: (3, SIZE, SIZE)."""
    pixels = np.asarray(transforms.decode(original), np.float32)
    width, height = transforms.decode(data).size
    box, flip = transforms.draw_augmentation(width, height, rng)
    original_box = tuple(edge * pixels.shape[1] / width for edge in box)
    planes = [Image.fromarray(plane) for plane in np.ascontiguousarray(pixels.transpose(2, 0, 1))]
    bilinear = Image.Resampling.BILINEAR
    image = np.stack(
        [np.asarray(p.resize((SIZE, SIZE), bilinear, box=original_box)) for p in planes]
    )
    return image[:, :, :: -1 if flip else 1]


def mean_psnr(loader: Loader, originals: Loader) -> float:
    """Return the mean over all images of their PSNR in dB."""
    values = []
    for i, location in enumerate(originals.locations):
        original = originals.reader.read(location).image
        data = loader.reader.read(location).image
        error = loader.load(i).numpy() - exact_image(original, data, seeded_rng(0, "augment", i))
        values.append(10 * math.log10(255**2 / np.square(error, dtype=np.float64).mean()))
    return mean(values)


def time_rounds(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    progress = progress_bar(1 + rounds, "rounds", description="timing")
    for _ in range(1 + rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
        progress.update(1)
    progress.close()
    return {name: values[1:] for name, values in seconds.items()}


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Build the shards, time all loaders and compare their pixels; prints a table."""
    build(str(folder / "source"), str(folder / "originals"))
    build(str(folder / "source"), str(folder / "reencoded"), encoding=ENCODING)
    shards = {"exact": "originals", "original": "originals", "reencoded": "reencoded"}
    loaders = {name: Loader(folder / shards[name], fast) for name, fast in FAST.items()}
    runs: dict[str, Callable[[], Any]] = {"baseline": make_baseline(folder / "source" / "train")}
    runs |= {name: loader.load_all for name, loader in loaders.items()}
    runs |= {f"{name}_float": loader.load_all_as_floats for name, loader in loaders.items()}
    seconds = time_rounds(runs, rounds)
    ratios = {
        name: median(a / b for a, b in zip(seconds["baseline"], values, strict=True))
        for name, values in seconds.items()
    }
    count = len(loaders["exact"].locations)
    row = {"baseline_img_s": count / median(seconds["baseline"])}
    print(f"{'':10} {'img/s':>8} {'ratio':>6} {'float':>6} {'PSNR dB':>8}")
    print(f"{'baseline':10} {row['baseline_img_s']:8.0f} {1:6.2f} {1:6.2f}")
    for name, loader in loaders.items():
        rate, psnr = count / median(seconds[name]), mean_psnr(loader, loaders["exact"])
        ratio, floats = ratios[name], ratios[f"{name}_float"]
        print(f"{name:10} {rate:8.0f} {ratio:6.2f} {floats:6.2f} {psnr:8.2f}")
        row |= {f"{name}_ratio": ratio, f"{name}_float_ratio": floats, f"{name}_psnr_db": psnr}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=96, help="images at most (default: 96)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: 15)")
    parser.add_argument("--images", type=Path, help="folder with JPEGs (default: synthetic images)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    jpegs = read_jpegs(args.images, args.count) if args.images else draw_jpegs(args.count)
    folder = Path(tempfile.mkdtemp(prefix="loader-"))
    try:
        write_source(jpegs, folder / "source")
        row = measure(folder, args.rounds)
    finally:
        shutil.rmtree(folder)
    print(json.dumps({name: round(value, 3) for name, value in row.items()}))


if __name__ == "__main__":
    run_command(main)
