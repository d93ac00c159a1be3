"""View-dependent prompts: one row of the prompt table per camera view (DreamFusion; Poole et al. 2023, section 3.2)."""

from collections.abc import Callable, Collection, Mapping, Sequence

from lods_jax.core.cameras import VIEWS

Truncate = Callable[[str, str], str]  # (text, ending) -> text, cut so that ending fits behind it: a Prior's `truncate`


def whole(text: str, ending: str) -> str:
    """The `truncate` of a prior that reads texts of any length: the text as it is, whatever its ending."""
    return text


def view_prompts(
    prompt: str, with_view: bool = True, without: Mapping[str, Collection[str]] | None = None, truncate: Truncate = whole
) -> list[str]:
    """The prompt for each of `cameras.VIEWS`, as "a red mug, front view".

    Args:
        prompt: describes the object.
        with_view: whether the prompts name the view. An object without a front needs none.
        without: {word: views}: the word is left out of the prompts of these views. Prompt debiasing (Hong et al. 2023), with the
            words that contradict a view ("face", seen from the back) named by hand instead of found by a language model.
        truncate: (text, ending) -> text, a prior's `truncate`. A prompt that is too long is cut before the words of the view,
            without which all views would have the same prompt.

    Returns:
        One text for each of `cameras.VIEWS`.

    Raises:
        ValueError: `without` names a word that the prompt lacks or an unknown view, or leaves nothing of the prompt.

    Examples:
        >>> view_prompts("a red mug")[:2]
        ['a red mug, side view', 'a red mug, front view']
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
    """The words that follow a prompt for each of `cameras.VIEWS`; empty unless `with_view`."""
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
    """All texts of a run, one per view: what the queries of an objective can name.

    Args:
        prompt: describes the object.
        negative_prompt: the text of "null".
        with_view: whether "prompt" names the view.
        source: describes what the images show now, for DDS and the bridge; None for no such text.
        without: {word: views} that are left out of "prompt", see `view_prompts`.
        adapter: the text of a LoRA; None for no such text.
        truncate: (text, ending) -> text, a prior's `truncate`.

    Returns:
        {name: one text for each of `cameras.VIEWS`}: "prompt" with view words, "plain" without, "null", "empty", and "source" and
            "adapter" where they are given.

    Raises:
        ValueError: as `view_prompts` does.

    Examples:
        >>> sorted(prompt_table("a red mug"))
        ['empty', 'null', 'plain', 'prompt']
    """
    given = {"plain": prompt, "null": negative_prompt, "empty": "", "source": source, "adapter": adapter}
    texts = {name: text for name, text in given.items() if text is not None}
    select_view_prompts = view_prompts(prompt, with_view, without, truncate)
    tables: dict[str, Sequence[str]] = {name: [text] * len(VIEWS) for name, text in texts.items()}
    return {"prompt": select_view_prompts} | tables
