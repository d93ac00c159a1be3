"""What several commands check before they load jax: the prior, the prompt and the run folders that the user names."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from lods_jax.core.errors import UserError
from lods_jax.priors.registry import PRIORS


def prior_folder(name: str, download: bool = False) -> Path:
    """The folder of --prior.

    Args:
        name: "tabletop", a folder or a repository id.
        download: whether to fetch a repository.

    Returns:
        The folder.

    Raises:
        UserError: there is no prior.
    """
    from lods_jax.priors.hub import local

    folder = local(name, download)
    if (folder / "model_index.json").is_file():
        return folder
    from lods_jax.priors.architectures import CONFIGS

    takes = "a folder of Stable Diffusion, SDXL or MVDream in diffusers layout with safetensors, or the id of a repository in "
    takes += "the local Hugging Face cache (--prior.download fetches it)"
    if name in CONFIGS:
        raise UserError(f"{name} is an architecture by name, enough for text-to-3d --dry-run alone: pass --prior with {takes}")
    raise UserError(f"no prior at {folder}: --prior takes {', '.join(PRIORS)}, {takes}")


def check_prompt(prompt: str, folder: Path | None, anyway: bool, place: str = "", embeddings: Sequence[str | Path] = ()) -> None:
    """Checks that a prompt is not empty and uses words that the prior knows.

    Args:
        prompt: of the user.
        folder: of the prior; None for one without a vocabulary.
        anyway: whether unknown words are allowed.
        place: where the prompt stands, as the beginning of an error: "prompts.txt, line 3: ".
        embeddings: files of textual inversions, whose tokens are known words.

    Raises:
        UserError: the prompt is empty, too long, or has unknown words; the message names the nearest known prompts.
        ValueError: a file of `embeddings` is no textual inversion.
    """
    if not prompt.strip() or "\0" in prompt or len(prompt) > 2000:
        raise UserError(f"{place}the prompt must be 1 to 2000 characters of text, got {len(prompt)}")
    from lods_jax.priors.diffusers_folder import read_vocabulary
    from lods_jax.priors.tokenizer import unknown_words

    known, words = None if anyway or folder is None else read_vocabulary(folder), prompt
    if known is not None and embeddings:
        from lods_jax.priors.prompt_encoder import without_tokens
        from lods_jax.priors.user_adapters import check_adapter_file, read_token_embedding

        words = without_tokens([read_token_embedding(check_adapter_file(file)) for file in embeddings], prompt)
    if known is not None and (unknown := unknown_words(words, known.words)):
        nearest = difflib.get_close_matches(prompt.lower(), known.prompts, n=3, cutoff=0.0)
        knows = f"the nearest prompts that it knows are {'; '.join(map(repr, nearest))}"
        if not nearest:
            knows = f"it knows {', '.join(sorted(known.words)[:40])}"
        do = "Pass --prior DIR with a Stable Diffusion folder for free text, or --anyway"
        raise UserError(f"{place}this prior has never seen the words {', '.join(unknown)}; {knows}. {do}")


def some(runs: tuple[Path, ...]) -> tuple[Path, ...]:
    """The run folders of a command.

    Args:
        runs: of its flags.

    Returns:
        The same.

    Raises:
        UserError: there are none.
    """
    if not runs:
        raise UserError("name at least one run folder: outputs/latest, say")
    return runs
