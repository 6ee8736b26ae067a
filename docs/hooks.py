"""Hook of mkdocs: pages that show files of the top folder."""

from pathlib import Path
from typing import Any

FILES = {"contribute.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the file of the top folder that a page stands for, with links as seen from docs/."""
    file = FILES.get(page.file.src_uri)
    return Path(file).read_text().replace("](docs/", "](") if file else markdown
