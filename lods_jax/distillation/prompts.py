"""View-dependent prompts: one row of the prompt table per camera view (DreamFusion; Poole et al. 2023, section 3.2)."""

from collections.abc import Collection, Mapping, Sequence

from lods_jax.core.cameras import VIEWS


def view_prompts(prompt: str, with_view: bool = True, without: Mapping[str, Collection[str]] | None = None) -> list[str]:
    """The prompt for each of cameras.VIEWS, "{prompt}, front view"; unchanged where the object has no front.

    Args:
      without: {word: views}; the word is left out of the prompts of these views. Prompt debiasing (Hong et al. 2023), with the
        words that contradict a view ("face", in the back) named by hand instead of found by a language model.
    """
    for word, views in (without or {}).items():
        if word not in prompt.split():
            raise ValueError(f"debias names {word!r}, which is no word of the prompt {prompt!r}")
        if unknown := sorted(set(views) - set(VIEWS)):
            raise ValueError(f"debias leaves {word!r} out of the view {unknown[0]!r}; there are {', '.join(VIEWS)}")

    def said(view):
        words = [word for word in prompt.split(" ") if view not in (without or {}).get(word, ())]
        if without and not any(words):
            raise ValueError(f"debias leaves nothing of the prompt {prompt!r} for the view {view!r}")
        return f"{' '.join(words)}, {view} view" if with_view else " ".join(words)

    return [said(view) for view in VIEWS]


def prompt_table(
    prompt: str,
    negative_prompt: str = "",
    with_view: bool = True,
    source: str | None = None,
    without: Mapping[str, Collection[str]] | None = None,
    adapter: str | None = None,
) -> dict[str, Sequence[str]]:
    """The texts that a run may ask with, one per view.

    prompt (by view, `without` some words), plain (no view), null (the negative prompt) and empty; and where there is one, source
    (what the images show now) and adapter (what an adapter is asked with).
    """
    texts = {"plain": prompt, "null": negative_prompt, "empty": "", "source": source, "adapter": adapter}
    texts = {name: text for name, text in texts.items() if text is not None}
    return {"prompt": view_prompts(prompt, with_view, without)} | {name: [text] * len(VIEWS) for name, text in texts.items()}
