"""Model folders on the Hugging Face hub."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from stargan_dist.errors import OutsideFault, UserError
from stargan_dist.models.folder import CONFIG, WEIGHTS

NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def is_name(location: str) -> bool:
    """Return True if a location has the form USER/NAME."""
    return NAME.fullmatch(location) is not None


def download(name: str) -> str:
    """Download a model, unless it is in the local cache. Return the folder.

    Raises:
        UserError: there is no such model, or the package is missing; OutsideFault if the hub cannot
            be reached.
    """
    hub = _package()
    try:
        return str(hub.snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except hub.errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name} is neither a local folder nor a model on the Hugging Face hub"
        ) from error
    except (hub.errors.LocalEntryNotFoundError, hub.errors.HfHubHTTPError, OSError) as error:
        raise OutsideFault(f"cannot download {name}: {_first_line(error)}") from error


def upload(folder: str | Path, name: str, *, private: bool = False) -> str:
    """Upload a local model folder. Return the model's address.

    Raises:
        UserError: the package is missing; OutsideFault if the hub refuses or cannot be reached.
    """
    hub = _package()
    try:
        url = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=str(folder))
    except (hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        raise OutsideFault(
            f"cannot upload {name}: {_first_line(error)}; log in first (hf auth login)"
        ) from error
    return str(url)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _package() -> ModuleType | Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            "the Hugging Face hub needs a package: pip install 'stargan_dist[hub]'"
        ) from error
    return huggingface_hub
