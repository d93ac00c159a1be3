"""Where a prior lies: the shipped one, a folder, or an entry of the local Hugging Face cache by its repository id."""

import re
from pathlib import Path

from lods_jax.config import TABLETOP

PATTERNS = ("*.json", "*.txt", "*.safetensors", "*/*.json", "*/*.txt", "*/*.safetensors")


def local(name: str, download: bool = False, cache: Path | None = None) -> Path:
    """The folder of a prior, "tabletop" being the shipped one.

    What is neither a folder nor a cached repository comes back as it is, for the caller to refuse.

    Args:
      download: fetch what the cache lacks of the repository; without it nothing goes over the network.
      cache: by default that of huggingface_hub (HF_HOME, HF_HUB_CACHE).
    """
    if name == "tabletop":
        return TABLETOP
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, cache_dir=cache, local_files_only=not download, allow_patterns=list(PATTERNS)))
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        if download:
            raise ValueError(f"{name} cannot be downloaded: {' '.join(str(error).split())[:200]}") from error
        return Path(name)
