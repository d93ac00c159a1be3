"""View-dependent prompts: one row of the prompt table per camera view (DreamFusion; Poole et al. 2023, section 3.2)."""

from collections.abc import Sequence

from lods_jax.cameras import VIEWS


def view_prompts(prompt: str, with_view: bool = True) -> list[str]:
    """The prompt for each of cameras.VIEWS, "{prompt}, front view"; unchanged where the object has no front."""
    return [f"{prompt}, {view} view" if with_view else prompt for view in VIEWS]


def prompt_table(prompt: str, negative_prompt: str = "", with_view: bool = True) -> dict[str, Sequence[str]]:
    """The texts that a run may ask with, one per view: prompt (by view), plain (no view) and null (the negative prompt)."""
    n = len(VIEWS)
    return {"prompt": view_prompts(prompt, with_view), "plain": [prompt] * n, "null": [negative_prompt] * n}
