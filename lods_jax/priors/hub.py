"""The folder of a prior: the shipped one, a given one, or one in the local Hugging Face cache by its repository id."""

import hashlib
import re
from pathlib import Path

from lods_jax.core.paths import TABLETOP, TABLETOP_64, TABLETOP_VIEWS
from lods_jax.priors.diffusers_folder import ALL_PARTS, MULTI_VIEW, MVDREAM, MVDREAM_VIEWS, TEXT_TIME, read_config

SHIPPED = {"tabletop": TABLETOP, "tabletop-128": TABLETOP, "tabletop-views": TABLETOP_VIEWS, "tabletop-64": TABLETOP_64}
# Of a repository only what is read: the whole model in one file that many have beside the parts takes gigabytes.
FOLDERS = ("scheduler", "tokenizer", "tokenizer_2", *(directory for directory, _ in ALL_PARTS.values()))
PATTERNS = [
    "model_index.json",
    "vocabulary.json",
    *(f"{name}/*.{end}" for name in FOLDERS for end in ("json", "txt", "safetensors")),
]


def local(name: str, download: bool = False, cache: Path | None = None) -> Path:
    """The folder of a prior.

    Args:
        name: of a shipped one ("tabletop"), a folder, or a repository id of the Hugging Face Hub, "owner/name".
        download: whether to fetch what the cache lacks of a repository; otherwise nothing goes over the network.
        cache: None for that of huggingface_hub (HF_HOME, HF_HUB_CACHE).

    Returns:
        The folder. A name that is neither a folder nor a cached repository comes back as a path, for the caller to refuse.

    Raises:
        ValueError: the download fails.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, cache_dir=cache, local_files_only=not download, allow_patterns=PATTERNS))
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        if download:
            raise ValueError(f"{name} cannot be downloaded: {' '.join(str(error).split())[:200]}") from error
        return Path(name)


def unet_hash(folder: Path) -> str | None:
    """SHA-256 of the U-Net's weights, which tells one prior from another.

    Args:
        folder: in diffusers layout.

    Returns:
        Hexadecimal digits; None without weights.
    """
    files = sorted((folder / "unet").glob("*.safetensors"))
    return file_hash(*files) if files else None


def file_hash(*files: Path) -> str:
    """SHA-256 of the bytes of files, one after the other, as hexadecimal digits.

    Args:
        *files: their paths.

    Returns:
        64 digits.
    """
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def family(folder: Path) -> str:
    """The family of a folder: SDXL, MVDream, or Stable Diffusion by the width of its text; and what sets it apart there.

    Args:
        folder: in diffusers layout.

    Returns:
        A name to print.
    """
    config = read_config(folder / "unet" / "config.json")
    if config.get("_class_name") == MVDREAM:
        return f"MVDream, {MVDREAM_VIEWS} views together, text width {config.get('context_dim')}"
    joined = f", {config.get('views')} views together" if config.get("_class_name") == MULTI_VIEW else ""
    width = config.get("cross_attention_dim")
    own = family_of(width)
    if config.get("addition_embed_type") == TEXT_TIME and own != "SDXL":
        own = f"SDXL, text width {width}"
    return own + joined + scheduler_words(folder)


def scheduler_words(folder: Path) -> str:
    """What the scheduler of a folder in diffusers layout says of its network, to follow its family; empty for that of noise."""
    from lods_jax.priors.scheduler_config import FLOW, few_steps_sign, read_scheduler, shift_of  # which loads jax

    said, kind = "", read_scheduler(folder).prediction_type
    if kind == FLOW:
        said = f", flow matching, shift {shift_of(read_config(folder / 'scheduler' / 'scheduler_config.json')):g}"
    elif kind == "v_prediction":
        said = ", v-prediction"
    return said + (", distilled to a few steps going by its scheduler" if few_steps_sign(folder) else "")


def family_of(width: int | None) -> str:
    """The family of a model by the width of its text.

    Examples:
        >>> family_of(768)
        'Stable Diffusion 1.x'
    """
    names = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
    return names.get(width, f"Stable Diffusion layout, text width {width}")
