"""View-dependent prompts: one row of the prompt table per camera view (DreamFusion; Poole et al. 2023, section 3.2)."""

from collections.abc import Sequence

from lods_jax.cameras import VIEWS


def view_prompts(prompt: str, with_view: bool = True) -> list[str]:
    """The prompt for each of cameras.VIEWS, "{prompt}, front view"; unchanged where the object has no front."""
    return [f"{prompt}, {view} view" if with_view else prompt for view in VIEWS]


def prompt_table(
    prompt: str, negative_prompt: str = "", with_view: bool = True, source: str | None = None
) -> dict[str, Sequence[str]]:
    """The texts that a run may ask with, one per view.

    prompt (by view), plain (no view), null (the negative prompt), empty, and source where there is one: what the images show now.
    """
    texts = {"plain": prompt, "null": negative_prompt, "empty": ""} | ({} if source is None else {"source": source})
    return {"prompt": view_prompts(prompt, with_view)} | {name: [text] * len(VIEWS) for name, text in texts.items()}
