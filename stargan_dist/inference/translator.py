"""Translation of pictures with a trained model."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stargan_dist.data.batch import to_unit
from stargan_dist.data.order import seeded_rng
from stargan_dist.errors import UserError
from stargan_dist.inference import card, pictures
from stargan_dist.inference.model import TrainedModel
from stargan_dist.inference.pictures import Fitted, Picture
from stargan_dist.inference.targets import target_label
from stargan_dist.models import folder, hub
from stargan_dist.models.authors import Options
from stargan_dist.models.opening import open_model
from stargan_dist.models.saved import SavedModel
from stargan_dist.nets.blocks import Encoded
from stargan_dist.nets.fusing import fuse_kernels
from stargan_dist.runs.checkpoint import LATEST

MEAN_LATENTS = 1000  # of a domain's mean style: its error is 3 % of the styles' deviation
MEAN_BATCH = 64
BATCH_SIZE = 8
CPU_BATCH_PIXELS = 2**15  # more at a time do not fit a CPU's caches, and take longer


class Translator:
    """Translates pictures into domains, guided by seeds, reference pictures or style codes.

    Pictures are paths or URLs, PIL images, uint8 arrays (H, W, 3) or (N, H, W, 3), tensors
    (3, H, W) or (N, 3, H, W), uint8 or float in [-1, 1]; one or many, of any size. Outputs have the
    kind that was given (paths: PIL images) and the size of the model's images.

    ```python
    >>> from stargan_dist import Translator
    >>> translator = Translator.from_pretrained(model)  # a run, a model folder, …
    >>> translator.domains
    ['bear', 'cat', 'fox']
    >>> translator.translate(cat, domain="fox", seed=1).size  # cat: a PIL image or a path
    (32, 32)
    >>> foxes = translator.translate([cat, cat], domain="fox", seed=[1, 2, 3])
    >>> len(foxes), len(foxes[0])  # a list for each picture
    (2, 3)
    >>> style = translator.styles(cat, domain="cat")  # of a reference
    >>> style.shape
    torch.Size([64])
    >>> image = translator.translate(cat, domain="cat", style=style, strength=0.7)

    ```

    Args:
        saved: the model.
        device: where to compute. None: a GPU if there is one.
        bfloat16: run G under bfloat16 autocast. None: on GPUs that have it.
        batch_size: outputs that are computed at a time. None: 8, fewer of large images on a CPU.

    Raises:
        UserError: the model has the high-pass option and no landmark network.
    """

    def __init__(
        self,
        saved: SavedModel,
        *,
        device: str | torch.device | None = None,
        bfloat16: bool | None = None,
        batch_size: int | None = None,
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if bfloat16 is None:
            bfloat16 = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
        self.saved = saved
        self.model = TrainedModel.from_saved(saved, device, bfloat16=bfloat16)
        for network in self.model.networks.values():
            fuse_kernels(network)
        self.batch_size = batch_size or self._default_batch_size()
        self._mean_styles: dict[int, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        location: str,
        checkpoint: str = LATEST,
        *,
        device: str | torch.device | None = None,
        bfloat16: bool | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> "Translator":
        """Load a model.

        Args:
            location: path or URL of a run, of one of its checkpoints, of a model folder or of a
                checkpoint of the papers' authors; or USER/NAME of a model on the Hugging Face hub.
            checkpoint: of a run: `latest`, `best` or a step.
            device: see the class.
            bfloat16: see the class.
            batch_size: see the class.
            options: what the authors' files do not say: the fields of
                `stargan_dist.models.authors.Options`, such as `domains`.

        Raises:
            UserError: there is no such model, or it cannot be read or used.
        """
        saved = open_model(location, checkpoint, options=Options(**options))
        return cls(saved, device=device, bfloat16=bfloat16, batch_size=batch_size)

    def save_pretrained(self, url: str, *, license: str = card.UNKNOWN) -> None:
        """Write a model folder, which replaces an earlier one at the URL.

        Args:
            url: path or URL.
            license: of the weights, an identifier of the Hugging Face hub such as `mit`.

        Raises:
            UserError: the URL holds other files, or cannot be written.
        """
        values = replace(card.of_model(self.saved), license=license)
        folder.write(str(url), self.saved, card.text(values))

    def push_to_hub(self, name: str, *, private: bool = False, license: str = card.UNKNOWN) -> str:
        """Upload the model to the Hugging Face hub as USER/NAME. Return its address.

        Args:
            name: USER/NAME.
            private: hide a new model from others.
            license: see `save_pretrained`.

        Raises:
            UserError: the hub refuses or cannot be reached, or its package is missing.
        """
        with tempfile.TemporaryDirectory() as staging:
            values = replace(card.of_model(self.saved), license=license, address=name)
            folder.write(f"{staging}/model", self.saved, card.text(values))
            return hub.upload(f"{staging}/model", name, private=private)

    def _default_batch_size(self) -> int:
        if self.model.device.type != "cpu":
            return BATCH_SIZE
        return min(BATCH_SIZE, max(1, CPU_BATCH_PIXELS // self.image_size**2))

    @property
    def domains(self) -> list[str]:
        """The names of the labels: domains, categories or attributes."""
        return self.model.domains

    @property
    def image_size(self) -> int:
        """Width and height of the model's images, in pixels."""
        return self.model.config.model.image_size

    def label(
        self,
        domain: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        data_source: str | None = None,
    ) -> Tensor:
        """Return the label of a target. See `target_label`."""
        label = target_label(self.model.labels, domain, attributes, data_source)
        return label.to(self.model.device)

    # Styles.

    @torch.no_grad()
    def styles(
        self,
        guides: int | Picture | Sequence[int | Picture],
        domain: str | None = None,
        *,
        fit: str = "crop",
    ) -> Tensor:
        """Return style codes of a domain, to keep, mix and use as `style`.

        Args:
            guides: seeds of latents (int), or reference pictures of the domain.
            domain: the domain. It may be left out if there is only one.
            fit: how references are fitted into a square; see `translate`.

        Returns:
            (dim,) for one guide, (N, dim) for many; on the device of the model.

        Raises:
            UserError: the recipe has no styles, there is no such domain, or a picture cannot be
                read.
        """
        if not self.model.diverse:
            raise UserError("the networks of this model have no styles: name a target alone")
        first: Any = guides[0] if isinstance(guides, list | tuple | range) and guides else guides
        named: dict[str, Any] = {"seed" if isinstance(first, int) else "reference": guides}
        codes, is_many = self._codes(self.label(domain), fit, **named)
        return codes if is_many else codes[0]

    def _styles_of_seeds(self, seeds: Sequence[int], label: Tensor) -> Tensor:
        dim = self.model.config.model.latent_dim
        drawn = np.stack([seeded_rng(seed, "latent").standard_normal(dim) for seed in seeds])
        z = torch.from_numpy(drawn).to(self.model.device, self.model.dtype)
        return self.model.conditioning.style_from_latents(z, _repeated(label, len(z)))

    def _styles_of_references(self, references: Sequence[Fitted], label: Tensor) -> Tensor:
        parts = [
            self.model.conditioning.style_from_images(x, _repeated(label, len(x)))
            for x in map(self._to_batch, _chunks(references, self.batch_size))
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def mean_style(self, domain: str | None = None) -> Tensor:
        """Return the mean style (dim,) of a domain, over random latents."""
        label = self.label(domain)
        if int(label) not in self._mean_styles:
            dim = self.model.config.model.latent_dim
            drawn = seeded_rng(0, "mean style").standard_normal((MEAN_LATENTS, dim))
            latents = torch.from_numpy(drawn).to(self.model.device, self.model.dtype)
            parts = [
                self.model.conditioning.style_from_latents(z, _repeated(label, len(z)))
                for z in latents.split(MEAN_BATCH)
            ]
            self._mean_styles[int(label)] = torch.cat(parts).mean(0)
        return self._mean_styles[int(label)]

    # Translation.

    @torch.no_grad()
    def translate(
        self,
        images: Picture | Sequence[Picture],
        domain: str | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        reference: Picture | Sequence[Picture] | None = None,
        style: Tensor | None = None,
        strength: float = 1.0,
        attributes: Mapping[str, Any] | None = None,
        data_source: str | None = None,
        fit: str = "crop",
    ) -> Any:
        """Translate pictures into a domain.

        Args:
            images: one or many sources.
            domain: the domain of the outputs; also the one of the references.
            seed: of the latents. With several, each source has an output for each. The default is 0
                if there is no other guide.
            reference: pictures of the domain whose style the outputs have, one or many.
            style: style codes, (dim,) or (n, dim), from `styles`.
            strength: of the style: 1 as it is, 0 the mean style of the domain, which is safer and
                less varied (the authors' psi).
            attributes: for models of attributes, in place of a domain: all attributes of the
                output; those left out are false.
            data_source: whose attributes they are, if the model has several.
            fit: how a picture is fitted into the square of the model: `crop` (the central square),
                `pad` (all of it; outputs have its aspect ratio) or `stretch` (distorted).

        Returns:
            An output for each source, of the kind of the sources; or, with many guides, a list of
            outputs for each.

        Raises:
            UserError: a picture cannot be read, or the target or the guide does not suit the model.
        """
        label = self.label(domain, attributes, data_source)
        codes, is_many = self._codes(label, fit, seed, reference, style)
        vectors = self._vectors(codes, label, domain, strength)
        given = pictures.unpack(images)
        rows = self.translate_fitted([self.fitted(p, fit) for p in given.items], vectors)
        converted = [[given.kind.convert(output) for output in row] for row in rows]
        return given.restore(converted if is_many else [row[0] for row in converted])

    @torch.no_grad()
    def conditioning(
        self,
        domain: str | None = None,
        *,
        seed: Sequence[int] | None = None,
        reference: Sequence[Picture] | None = None,
        strength: float = 1.0,
        attributes: Mapping[str, Any] | None = None,
        data_source: str | None = None,
        fit: str = "crop",
    ) -> Tensor:
        """Return what G is conditioned on for each guide, (n, conditioning_dim).

        For `translate_fitted`. The arguments are those of `translate`.
        """
        label = self.label(domain, attributes, data_source)
        codes, _ = self._codes(label, fit, seed, reference)
        return self._vectors(codes, label, domain, strength)

    @torch.no_grad()
    def translate_fitted(self, sources: Sequence[Fitted], vectors: Tensor) -> list[list[Tensor]]:
        """Translate fitted pictures with each of n conditioning vectors.

        The encoder half of G runs once per source.

        Returns:
            n outputs (3, h, w), in about [-1, 1], for each source.
        """
        rows: list[list[Tensor]] = []
        for chunk in _chunks(sources, max(1, self.batch_size // len(vectors))):
            encoded = self.encode(chunk)
            parts = [
                self.model.decode(encoded, part.repeat(len(chunk), 1)).unflatten(
                    0, (len(chunk), -1)
                )
                for part in vectors.split(max(1, self.batch_size // len(chunk)))
            ]
            outputs = torch.cat(parts, 1)
            rows += [
                [_cut(output, source) for output in row]
                for row, source in zip(outputs, chunk, strict=True)
            ]
        return rows

    def encode(self, sources: Sequence[Fitted]) -> Encoded:
        """Compute the half of G that depends on the sources alone. See `TrainedModel.decode`."""
        return self.model.encode(self._to_batch(sources))

    def encode_batches(self, sources: Sequence[Fitted]) -> list[Encoded]:
        """Encode many sources, `batch_size` at a time. See `encode`."""
        return [self.encode(chunk) for chunk in _chunks(sources, self.batch_size)]

    def fitted(self, picture: Picture, fit: str = "crop") -> Fitted:
        """Fit a picture into the square of the model. See `pictures.fit`."""
        return pictures.fit(picture, self.image_size, fit)

    def _codes(
        self,
        label: Tensor,
        fit: str,
        seed: int | Sequence[int] | None = None,
        reference: Picture | Sequence[Picture] | None = None,
        style: Tensor | None = None,
    ) -> tuple[Tensor, bool]:
        """Return the style codes (n, dim) of the guide, and whether it is many."""
        if sum(guide is not None for guide in (seed, reference, style)) > 1:
            raise UserError("give one guide: seed, reference or style")
        if reference is not None:
            if not self.model.guided_by_references:
                raise UserError("reference: the networks of this model take none")
            given = pictures.unpack(reference)
            fitted = [self.fitted(picture, fit) for picture in given.items]
            return self._styles_of_references(fitted, label), not given.is_one
        if style is not None:
            return self._given_codes(style), style.dim() > 1
        seeds = [seed or 0] if seed is None or isinstance(seed, int) else list(seed)
        if not seeds:
            raise UserError("seed: name at least one")
        if min(seeds) < 0:
            raise UserError(f"seed: {min(seeds)} is negative: name 0 or more")
        return self._styles_of_seeds(seeds, label), not (seed is None or isinstance(seed, int))

    def _given_codes(self, style: Tensor) -> Tensor:
        dim = self.model.style_dim
        if not self.model.diverse:
            raise UserError("style: the networks of this model have no styles")
        if style.dim() not in (1, 2) or style.shape[-1] != dim or not style.numel():
            raise UserError(
                f"style: codes of this model have length {dim}, not shape {tuple(style.shape)}"
            )
        return style.to(self.model.device, self.model.dtype).view(-1, dim)

    def _vectors(self, codes: Tensor, label: Tensor, domain: str | None, strength: float) -> Tensor:
        """Return conditioning vectors of style codes, moved towards the domain's mean style."""
        if not math.isfinite(strength):
            raise UserError(f"strength: {strength} is not a finite number")
        if strength != 1:
            if not self.model.diverse:
                raise UserError("strength: the networks of this model have no styles")
            codes = torch.lerp(self.mean_style(domain), codes, strength)
        return self.model.conditioning.vector(codes, _repeated(label, len(codes)))

    def _to_batch(self, fitted: Sequence[Fitted]) -> Tensor:
        """Return fitted pictures as (B, 3, H, H) in [-1, 1] on the device."""
        pixels = torch.stack([each.pixels for each in fitted])
        return to_unit(pixels.to(self.model.device), self.model.dtype)


def _repeated(label: Tensor, count: int) -> Tensor:
    return label.expand(count, *label.shape)


def _chunks(items: Sequence[Fitted], size: int) -> list[Sequence[Fitted]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _cut(output: Tensor, source: Fitted) -> Tensor:
    """Return the part of an output that shows the source's picture."""
    left, top, right, bottom = source.box
    return output[:, top:bottom, left:right]
