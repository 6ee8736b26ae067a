"""A trained model from anything that holds one."""

from dataclasses import replace

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.errors import UserError, explained
from stargan_dist.models import authors, folder, hub, landmarks, pairs, torch_file
from stargan_dist.models.authors import Options
from stargan_dist.models.saved import SavedModel
from stargan_dist.nets.networks import DISCRIMINATORS
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import EMA, LATEST, NETWORKS

KINDS = (
    "a run, a checkpoint of a run, a model folder, a file of the authors (.ckpt), or USER/NAME on "
    "the Hugging Face hub"
)


def open_model(
    location: str,
    checkpoint: str = LATEST,
    *,
    discriminator: bool = False,
    options: Options | None = None,
) -> SavedModel:
    """Read a trained model.

    Args:
        location: path or URL of a run, of one of its checkpoints, of a model folder or of a
            checkpoint of the papers' authors; or USER/NAME of a model on the Hugging Face hub.
        checkpoint: of a run: `latest`, `best` or a step.
        discriminator: read D and C as well, if they are there.
        options: what files of the authors do not say.

    Raises:
        UserError: there is no such model, it is damaged, or the options do not suit it.
    """
    options = options or Options()
    saved = _open(location.rstrip("/"), checkpoint, options, discriminator=discriminator)
    if not options.landmarks:
        return saved
    if not saved.config.model.w_hpf:
        raise UserError(
            f"--landmarks: {saved.origin} was trained without the high-pass option (model.w_hpf), "
            "which alone has a landmark network: leave it out"
        )
    return replace(saved, landmarks=landmarks.read(options.landmarks))


def _open(location: str, checkpoint: str, options: Options, *, discriminator: bool) -> SavedModel:
    if location.endswith(torch_file.SUFFIXES):
        saved = authors.read(location, options)
        return saved if discriminator else saved.without("D")
    try:
        names = storage.list_names(location)
    except OSError as error:
        raise explained(f"cannot read {location}: {error}", error) from error
    if folder.CONFIG in names:
        return folder.read(location, discriminator=discriminator)
    if checkpoints.FOLDER in names:
        return _of_run(location, checkpoint, discriminator=discriminator)
    if checkpoints.MANIFEST in names:
        folder_url, _, step = location.rpartition("/")
        run = storage.parent(folder_url)
        return _of_run(run, step, discriminator=discriminator)
    if not names and hub.is_name(location):
        return replace(
            folder.read(hub.download(location), discriminator=discriminator), origin=location
        )
    if pairs.FILE in names:
        run = pairs.list_pairs(location, pairs.read_domains(location))[0].run
        raise UserError(f"{location} holds the runs of all pairs: name one of them, such as {run}")
    raise UserError(f"{location} holds no model: name {KINDS}")


def _of_run(run: str, selector: str, *, discriminator: bool) -> SavedModel:
    found = checkpoints.find_existing(run, selector)
    config = replace(configs.from_dict(found.manifest.config), run=run)  # it may have moved
    tensors = found.tensors(EMA)
    if discriminator:
        networks = found.tensors(NETWORKS)
        tensors |= {n: t for n, t in networks.items() if n.partition(".")[0] in DISCRIMINATORS}
    found_landmarks = landmarks.find(run) if config.model.w_hpf else None
    labels = found.manifest.labels
    return SavedModel(found.url, config, labels, found.step, tensors, found_landmarks).check()
