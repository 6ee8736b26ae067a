"""Translation of many pictures into a folder, shared among processes and resumable.

Sources are divided into chunks, a function of their list alone, and a chunk is translated by one
process. So the outputs do not depend on the number of processes, bit for bit: the bits of an output
may depend on what else is in its batch.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.data import transforms
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError
from stargan_dist.inference import output_folder
from stargan_dist.inference.pictures import Fitted, to_image_of_output
from stargan_dist.inference.sources import Source, read_ahead, read_all
from stargan_dist.inference.translator import Translator

SETTINGS = "translation.json"
CHUNK_SOURCES = 8


@dataclass(frozen=True)
class Settings:
    """What decides the contents of the outputs, beside the model and the sources.

    Attributes:
        domains: of the outputs. Empty: `attributes` describe them.
        attributes: all attributes of the outputs, or None.
        data_source: whose attributes they are.
        seeds: of the latents; used where there are no references.
        references: reference pictures.
        strength: of the style.
        fit: how pictures are fitted into a square.
        format: suffix of the outputs: jpg, png or webp.
        split: of sources that are shards.
    """

    domains: tuple[str, ...] = ()
    attributes: Mapping[str, str] | None = None
    data_source: str | None = None
    seeds: tuple[int, ...] = (0,)
    references: tuple[str, ...] = ()
    strength: float = 1.0
    fit: str = "crop"
    format: str = "png"
    split: str = "val"


class Guide(NamedTuple):
    """What one output of a source is made with.

    Attributes:
        target: domain of the output, or its attributes.
        name: of the seed or reference.
    """

    target: str
    name: str

    def file_name(self, source: Source, suffix: str) -> str:
        """Return the name of the output of a source: `NAME_dog_seed0.png`."""
        return f"{source.name}_{self.target}_{self.name}.{suffix}"


class Guides(NamedTuple):
    """All guides, and what G is conditioned on for each, (n, conditioning_dim)."""

    guides: list[Guide]
    vectors: Tensor


def make_guides(translator: Translator, settings: Settings, references: Sequence[Source]) -> Guides:
    """Compute what G is conditioned on for each domain, and each seed or reference.

    Raises:
        UserError: the settings do not suit the model, or a reference cannot be read.
    """
    names = [PurePosixPath(r.name).name for r in references] or [f"seed{s}" for s in settings.seeds]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two guides have the name {min(twice)}: name each once")
    guide = (
        {"reference": read_all(references, transforms.to_rgb)}
        if references
        else {"seed": settings.seeds}
    )
    common: dict[str, Any] = {"strength": settings.strength, "fit": settings.fit, **guide}
    if settings.attributes is not None:
        set_ones = [name for name, value in settings.attributes.items() if value not in ("0", "-1")]
        target = "+".join(set_ones) or "none"
        chosen: dict[str, Any] = {
            "attributes": settings.attributes,
            "data_source": settings.data_source,
        }
        return Guides(
            [Guide(target, name) for name in names], translator.conditioning(**chosen, **common)
        )
    vectors = [translator.conditioning(domain, **common) for domain in settings.domains]
    guides = [Guide(domain, name) for domain in settings.domains for name in names]
    return Guides(guides, torch.cat(vectors))


# The folder.


def check_settings(out: str, translator: Translator, settings: Settings, guides: Guides) -> None:
    """Write the settings into the folder, or check that they are those of its outputs.

    Raises:
        UserError: the folder has outputs of another model or of other settings, or is not writable.
    """
    vectors = guides.vectors.float().cpu().numpy().tobytes()
    everything = {
        **asdict(settings),
        "model": translator.saved.fingerprint(),
        "guides": hashlib.sha256(vectors).hexdigest(),
        "bfloat16": translator.model.bfloat16,
    }
    output_folder.check_settings(out, SETTINGS, everything, "translations")


@dataclass(frozen=True)
class Work:
    """What is to be translated, the same on all ranks.

    Attributes:
        sources: all of them.
        existing: names of the outputs that are in the folder.
    """

    translator: Translator
    sources: Sequence[Source]
    guides: Guides
    settings: Settings
    out: str
    existing: frozenset[str]

    def chunks(self) -> list[list[Source]]:
        """Return the chunks that lack an output."""
        parts = (
            list(self.sources[i : i + CHUNK_SOURCES])
            for i in range(0, len(self.sources), CHUNK_SOURCES)
        )
        return [chunk for chunk in parts if not {*self.files(chunk)} <= self.existing]

    def files(self, sources: Sequence[Source]) -> Iterator[str]:
        """Yield the names of the outputs of some sources."""
        for source in sources:
            for guide in self.guides.guides:
                yield guide.file_name(source, self.settings.format)


def translate_all(work: Work, world: World) -> list[str]:
    """Translate what is missing, on all ranks. Collective. Return the errors of bad sources.

    Rank 0 writes the table of all outputs, `index.jsonl`, at the end.

    Raises:
        UserError: an output is there of another picture, or cannot be written.
    """
    world.broadcast_from_main(lambda: _check_existing(work))
    chunks = work.chunks()
    errors = world.run_on_all_ranks(lambda: _translate_share(work, chunks, world))
    failed = dict(pair for pairs in world.all_gather(errors) for pair in pairs.items())
    world.broadcast_from_main(lambda: _write_index(work, failed.keys()))
    return [failed[source.name] for source in work.sources if source.name in failed]


def _translate_share(work: Work, chunks: list[list[Source]], world: World) -> dict[str, str]:
    """Translate this rank's chunks. Return errors by the name of the source."""
    errors: dict[str, str] = {}
    own = chunks[world.rank :: world.size]
    sources = [source for chunk in own for source in chunk]
    fit = partial(work.translator.fitted, fit=work.settings.fit)
    with (
        closing(read_ahead(sources, fit)) as pictures,
        progress_bar(
            len(sources), "sources", description="translating", shown=world.is_main, brief=True
        ) as progress,
    ):
        for number, chunk in enumerate(own):
            world.mark_progress(f"chunk {number + 1} of {len(own)}")
            errors |= _translate_chunk(work, chunk, [*islice(pictures, len(chunk))])
            progress.update(len(chunk))
    world.mark_progress()
    return errors


def _translate_chunk(
    work: Work, chunk: list[Source], pictures: Sequence["Future[Fitted]"]
) -> dict[str, str]:
    """Translate a chunk and write its outputs. Return errors by the name of the source."""
    fitted: dict[str, Fitted] = {}
    errors: dict[str, str] = {}
    for source, picture in zip(chunk, pictures, strict=True):
        try:
            fitted[source.name] = picture.result()
        except UserError as error:
            errors[source.name] = str(error)
    rows = work.translator.translate_fitted([*fitted.values()], work.guides.vectors)
    readable = [source for source in chunk if source.name in fitted]
    outputs = [output for row in rows for output in row]
    for name, output in zip(work.files(readable), outputs, strict=True):
        output_folder.write_image(storage.join(work.out, name), to_image_of_output(output))
    return errors


def _check_existing(work: Work) -> None:
    lines = [line for line in _lines(work) if line["file"] in work.existing]
    output_folder.check_sources(work.out, lines)


def _write_index(work: Work, failed: Collection[str]) -> None:
    output_folder.write_index(work.out, _lines(work, failed))


def _lines(work: Work, failed: Collection[str] = ()) -> list[dict[str, str]]:
    """Return a line for each output, in the order of sources and guides."""
    return [
        {
            "file": guide.file_name(source, work.settings.format),
            "source": source.origin,
            "target": guide.target,
            "guide": guide.name,
        }
        for source in work.sources
        if source.name not in failed
        for guide in work.guides.guides
    ]
