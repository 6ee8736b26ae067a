"""Model folders on the Hugging Face hub.

Its client keeps the token of `hf auth login`, and retries what may pass.
"""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from stargan_dist.errors import OutsideFault, UserError, printable
from stargan_dist.models import landmarks
from stargan_dist.models.folder import CONFIG, WEIGHTS

NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
FILES = (CONFIG, WEIGHTS, landmarks.FILE)  # that a model is read from
REFUSED = (401, 403)  # HTTP status: no token, or not that of the owner


def is_name(location: str) -> bool:
    """Return True if a location has the form USER/NAME."""
    return NAME.fullmatch(location) is not None


def check_name(name: str) -> None:
    """Check the name of a model that will be uploaded, and that the package is there.

    Raises:
        UserError: the hub has no such names, or the package is missing.
    """
    hub = _package(f"cannot upload {name}")
    try:
        hub.utils.validate_repo_id(name)
    except hub.errors.HFValidationError as error:
        raise UserError(f"{name} cannot be a name on the hub: {_one_line(error)}") from error
    if not is_name(name):
        raise UserError(f"{name} cannot be a name on the hub: it has the form USER/NAME")


def download(name: str) -> str:
    """Download a model, unless it is in the local cache. Return the folder.

    Raises:
        UserError: there is no such model, or the package is missing; OutsideFault if the hub cannot
            be reached.
    """
    where = f"{name} is no local folder"
    hub = _package(where)
    try:
        return str(hub.snapshot_download(name, allow_patterns=[*FILES]))
    except hub.errors.GatedRepoError as error:
        raise UserError(
            f"{name} on the Hugging Face hub is gated: accept its conditions there, and log in "
            "(hf auth login)"
        ) from error
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError) as error:
        raise UserError(
            f"{where}, and no model on the Hugging Face hub: correct it, or log in if it is "
            "private (hf auth login)"
        ) from error
    except (hub.errors.HTTPError, OSError) as error:
        raise OutsideFault(
            f"{where}, and the Hugging Face hub cannot be reached: {_one_line(error)}"
        ) from error


def upload(folder: str | Path, name: str, *, private: bool = False) -> str:
    """Upload a local model folder. Return the model's address.

    Args:
        folder: all of its files are uploaded.
        name: USER/NAME.
        private: hide a new model from others. One that exists stays as it is.

    Raises:
        UserError: the name is not one, the hub refuses, or the package is missing; OutsideFault if
            the hub cannot be reached.
    """
    check_name(name)
    hub = _package(f"cannot upload {name}")
    try:
        url = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=str(folder))
    except (hub.errors.HTTPError, OSError) as error:
        message = f"cannot upload {name}: {_one_line(error)}"
        if getattr(getattr(error, "response", None), "status_code", None) in REFUSED:
            raise UserError(f"{message}; log in as its owner first (hf auth login)") from error
        raise OutsideFault(message) from error
    except ValueError as error:  # of the front matter
        raise UserError(f"cannot upload {name}: {_one_line(error)}") from error
    return str(url)


def _one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split()), 300)


def _package(purpose: str) -> ModuleType | Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise UserError(
            f"{purpose}; the Hugging Face hub needs a package: pip install 'stargan_dist[hub]'"
        ) from error
    return huggingface_hub
