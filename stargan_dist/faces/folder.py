"""Alignment of many photographs into a folder, in several processes and resumable."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.errors import UserError
from stargan_dist.faces.aligner import Aligner, NetworkDetector
from stargan_dist.faces.alignment import Face, opencv
from stargan_dist.inference import output_folder
from stargan_dist.inference.sources import Source
from stargan_dist.models import landmarks
from stargan_dist.shards.process_pool import map_in_processes

SETTINGS = "alignment.json"


@dataclass(frozen=True)
class Settings:
    """What decides the contents of the outputs, beside the photographs.

    Attributes:
        landmarks: hash of the landmark network.
        reference: reference landmarks, x and y in pixels of a frame of 256 px.
        face: the landmarks that the alignment goes by.
        size: width and height of the outputs, in pixels.
        format: suffix of the outputs: jpg, png or webp.
        split: of photographs that are in shards.
    """

    landmarks: str
    reference: tuple[tuple[float, float], ...]
    face: Face
    size: int
    format: str
    split: str


@dataclass(frozen=True)
class Work:
    """What a process needs to align a photograph.

    Attributes:
        network: file or URL of the landmark network.
        min_heat: below it there is no face.
        out: folder or URL of the outputs.
    """

    settings: Settings
    network: str
    min_heat: float
    out: str

    def file(self, source: Source) -> str:
        """Return the name of the output of a photograph."""
        return f"{source.name}.{self.settings.format}"


def align_all(work: Work, sources: Sequence[Source], num_processes: int) -> list[str]:
    """Align the photographs whose outputs are missing. Return the errors of those that fail.

    Raises:
        UserError: the folder has other outputs, an output cannot be written, OpenCV is missing.
    """
    opencv()
    missing = _missing(work, sources)
    results = map_in_processes(partial(_align, work), missing, num_processes, "--workers")
    errors: dict[str, str] = {}
    with progress_bar(len(missing), "pictures", description="aligning", brief=True) as progress:
        for source, error in zip(missing, results, strict=True):
            errors |= {source.name: error} if error else {}
            progress.update(1)
    aligned = [source for source in sources if source.name not in errors]
    output_folder.write_index(work.out, _lines(work, aligned))
    return [*errors.values()]


def _lines(work: Work, sources: Sequence[Source]) -> list[dict[str, str]]:
    return [{"file": work.file(source), "source": source.origin} for source in sources]


def _missing(work: Work, sources: Sequence[Source]) -> list[Source]:
    """Check the folder and return the photographs without an output."""
    out = work.out
    existing = storage.find_files(out).keys() if storage.exists(out) else set()
    missing = [source for source in sources if work.file(source) not in existing]
    if len(missing) < len(sources) and SETTINGS not in existing:
        raise UserError(f"{out} has files of the names of the outputs: name another folder")
    output_folder.check_settings(out, SETTINGS, asdict(work.settings), "aligned pictures")
    present = [source for source in sources if work.file(source) in existing]
    output_folder.check_sources(out, _lines(work, present))
    return missing


def _align(work: Work, source: Source) -> str:
    """Align a photograph and write the output. Return an error, or nothing."""
    try:
        image = source.read()
    except UserError as error:
        return str(error)
    try:
        aligned = _aligner(replace(work, out=""))(image)
    except UserError as error:
        return f"{source.origin}: {error}"
    output_folder.write_image(storage.join(work.out, work.file(source)), aligned)
    return ""


@lru_cache(maxsize=1)
def _aligner(work: Work) -> Aligner:
    """Load the network, once per process. It computes in one thread: so bits do not differ."""
    torch.set_num_threads(1)
    opencv().setNumThreads(1)
    settings, saved = work.settings, landmarks.read(work.network)
    detector = NetworkDetector(saved.build(), len(settings.reference))
    return Aligner(
        detector, saved.description.input_size, np.array(settings.reference), settings.face,
        settings.size, work.min_heat,
    )  # fmt: skip
