"""View-dependent prompts: one row of the prompt table per camera view (DreamFusion; Poole et al. 2023, section 3.2)."""

from collections.abc import Callable, Collection, Mapping, Sequence

from lods_jax.core.cameras import VIEWS

Truncate = Callable[[str, str], str]  # (text, ending) -> text, cut so that ending fits behind it: a Prior's `truncate`


def whole(text: str, ending: str) -> str:
    """The `truncate` of a prior that reads texts of any length."""
    return text


def view_prompts(
    prompt: str, with_view: bool = True, without: Mapping[str, Collection[str]] | None = None, truncate: Truncate = whole
) -> list[str]:
    """The prompt for each of cameras.VIEWS, "{prompt}, front view"; unchanged where the object has no front.

    Args:
      prompt: what the object is.
      with_view: whether the prompts name the view.
      truncate: of the prior. A prompt that is too long is cut in front of the view's words: without them all views are one.
      without: {word: views}; the word is left out of the prompts of these views. Prompt debiasing (Hong et al. 2023), with the
        words that contradict a view ("face", in the back) named by hand instead of found by a language model.
    """
    for word, views in (without or {}).items():
        if word not in prompt.split():
            raise ValueError(f"debias names {word!r}, which is no word of the prompt {prompt!r}")
        if unknown := sorted(set(views) - set(VIEWS)):
            raise ValueError(f"debias leaves {word!r} out of the view {unknown[0]!r}; there are {', '.join(VIEWS)}")

    ending = dict(zip(VIEWS, view_endings(with_view), strict=True))

    def said(view):
        words = [word for word in prompt.split(" ") if view not in (without or {}).get(word, ())]
        if without and not any(words):
            raise ValueError(f"debias leaves nothing of the prompt {prompt!r} for the view {view!r}")
        text, follows = " ".join(words), ending[view]
        return truncate(text, follows) + follows if follows else text

    return [said(view) for view in VIEWS]


def view_endings(with_view: bool = True) -> list[str]:
    """What follows a prompt for each of cameras.VIEWS."""
    return [f", {view} view" if with_view else "" for view in VIEWS]


def prompt_table(
    prompt: str,
    negative_prompt: str = "",
    with_view: bool = True,
    source: str | None = None,
    without: Mapping[str, Collection[str]] | None = None,
    adapter: str | None = None,
    truncate: Truncate = whole,
) -> dict[str, Sequence[str]]:
    """The texts that a run may ask with, one per view.

    prompt (by view, `without` some words), plain (no view), null (the negative prompt) and empty; and where there is one, source
    (what the images show now) and adapter (what an adapter is asked with).
    """
    texts = {"plain": prompt, "null": negative_prompt, "empty": "", "source": source, "adapter": adapter}
    texts = {name: text for name, text in texts.items() if text is not None}
    select_view_prompts = view_prompts(prompt, with_view, without, truncate)
    return {"prompt": select_view_prompts} | {name: [text] * len(VIEWS) for name, text in texts.items()}
