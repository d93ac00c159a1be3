"""A Stable Diffusion folder as diffusers and transformers lay it out: which files there are, and what their JSON says.

Loads no jax, so that a command can refuse a folder at once. `torch_weights` reads the weight files.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# {part: (its folder, the stem of its weight files)}.
PARTS = {
    "unet": ("unet", "diffusion_pytorch_model"),
    "vae": ("vae", "diffusion_pytorch_model"),
    "text": ("text_encoder", "model"),
}
# The same for a Zero-1-to-3 folder, which is conditioned on an image and a pose.
POSED_PARTS = {
    "unet": PARTS["unet"],
    "vae": PARTS["vae"],
    "image": ("image_encoder", "model"),
    "camera": ("cc_projection", "diffusion_pytorch_model"),
}
# The second text encoder of SDXL (`sdxl`).
TEXT_2 = {"text_2": ("text_encoder_2", "model")}
ALL_PARTS = PARTS | TEXT_2 | POSED_PARTS
TEXT_PARTS = ("text", "text_2")
# The class of MVDream's U-Net (Shi et al. 2024) in its config, and how many views it was trained on: no config says that.
MVDREAM, MVDREAM_VIEWS = "MultiViewUNetModel", 4
# The class of such a U-Net in diffusers' names, whose config says the number of its `views`: what `lods train-prior` writes.
MULTI_VIEW = "MultiViewUNet"
TEXT_TIME = "text_time"  # the addition_embed_type of SDXL's U-Net
PICKLES = {".bin", ".ckpt", ".pt", ".pth"}


class Vocabulary(NamedTuple):
    """The words that a prior was trained on, where these are few: `vocabulary.json` of its folder.

    Attributes:
        words: the words.
        prompts: captions of training images, as suggestions for the user; may be empty.
    """

    words: frozenset[str]
    prompts: Sequence[str]


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object of a file in a Stable Diffusion folder.

    Args:
        file: its path.

    Returns:
        The object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        expected = "unet, vae, text_encoder, tokenizer and scheduler, as diffusers saves them"
        raise FileNotFoundError(f"{file} is missing: expected a folder with {expected}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object")
    return config


def views_of_folder(folder: Path) -> int:
    """How many views of one object the prior of a folder denoises together.

    Args:
        folder: in diffusers layout.

    Returns:
        Their number; 1 also for a folder that cannot be read, since whoever loads it says why.
    """
    try:
        config = read_config(folder / "unet" / "config.json")
    except (FileNotFoundError, ValueError):
        return 1
    if config.get("_class_name") == MULTI_VIEW:
        views = config.get("views")
        return views if type(views) is int and views > 0 else 1
    return MVDREAM_VIEWS if config.get("_class_name") == MVDREAM else 1


def read_vocabulary(folder: str | Path) -> Vocabulary | None:
    """The words that the prior of a folder was trained on.

    Args:
        folder: in diffusers layout.

    Returns:
        The vocabulary; None where no `vocabulary.json` limits the words.

    Raises:
        ValueError: the file is not {"words": [...], "prompts": [...]} with lists of texts; "prompts" may be absent.
    """
    file = Path(folder) / "vocabulary.json"
    if not file.is_file():
        return None
    config = read_config(file)
    words, prompts = config.get("words"), config.get("prompts", [])
    for name, texts in (("words", words), ("prompts", prompts)):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{file}: {name} must be a list of texts")
    if not words:
        raise ValueError(f"{file}: words must name at least one word; without the file a prior takes any")
    return Vocabulary(frozenset(words), prompts)


def weight_files(folder: Path, part: str, variant: str | None = None) -> list[Path]:
    """The safetensors files of one part.

    Args:
        folder: in diffusers layout.
        part: a key of `ALL_PARTS`.
        variant: such as "fp16", of which a folder may have files beside the default ones. A part without the variant uses its
            default file, as in diffusers: "non_ema" is a variant of the U-Net alone. With None, a part that has files of one
            variant only uses these.

    Returns:
        One file, or all shards.

    Raises:
        FileNotFoundError: there are no such weights; the message names those there are.
        ValueError: there are only pickled weights, several variants to choose from, or a malformed index of shards.
    """
    directory, stem = folder / ALL_PARTS[part][0], ALL_PARTS[part][1]
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is missing: expected {stem}.safetensors in it")
    there = variants(directory, stem)
    if not there:
        refuse_pickles(directory, stem)
        raise FileNotFoundError(f"{directory / stem}.safetensors is missing")
    if variant in there:
        chosen = variant
    elif None in there or len(there) == 1:
        chosen = None if None in there else next(iter(there))
    else:
        names = ", ".join(sorted(filter(None, there)))
        raise ValueError(f"{directory} has weights of several variants, {names}: choose one by --prior.variant")
    return shards(there[chosen]) if there[chosen].suffix == ".json" else [there[chosen]]


def variants(directory: Path, stem: str) -> dict[str | None, Path]:
    """The weight files of one part, by variant.

    Args:
        directory: of the part.
        stem: of its files' names.

    Returns:
        {variant: weight file or index of shards}; the default has the key None.
    """
    found: dict[str | None, Path] = {}
    # A whole file wins over an index of shards with the same variant.
    for pattern in (rf"{stem}\.safetensors\.index(?:\.([\w-]+))?\.json", rf"{stem}(?:\.([\w-]+))?\.safetensors"):
        for file in sorted(directory.iterdir()):
            match = re.fullmatch(pattern, file.name)
            if match and file.is_file() and not re.search(r"-\d+-of-\d+", file.name):
                found[match[1]] = file
    return found


def check_variant(folder: Path, parts: Sequence[str], variant: str | None) -> None:
    """Checks that some part of a folder has weights of a variant.

    Args:
        folder: in diffusers layout.
        parts: to look at.
        variant: None is always there.

    Raises:
        FileNotFoundError: no part has it; the message names the variants there are.
    """
    directories = [(folder / directory, stem) for directory, stem in (ALL_PARTS[part] for part in parts)]
    there = set().union(*(variants(*where) for where in directories if where[0].is_dir()))
    if variant is not None and variant not in there:
        names = ", ".join(sorted(filter(None, there))) or "none"
        raise FileNotFoundError(f"{folder} has no weights of the variant {variant!r}; its variants: {names}")


def refuse_pickles(directory: Path, stem: str) -> None:
    """Refuses a part that has pickled weights, since loading them can run code.

    Args:
        directory: of the part.
        stem: of its files' names, for the message.

    Raises:
        ValueError: there are such files.
    """
    if pickles := sorted(file.name for file in directory.iterdir() if file.suffix in PICKLES):
        raise ValueError(f"{directory} has only pickled weights, {pickles[0]}: expected safetensors, as {stem}.safetensors")


def shards(index: Path) -> list[Path]:
    """The files that an index of shards names.

    Args:
        index: JSON file with `weight_map`.

    Returns:
        Paths beside the index, sorted.

    Raises:
        ValueError: the index is malformed, or names a file elsewhere.
        FileNotFoundError: a file is missing.
    """
    names = read_config(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(is_plain_name(name) for name in names.values()):
        raise ValueError(f"{index} must name files beside it under weight_map")
    files = [index.parent / name for name in sorted(set(names.values()))]
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing: the index beside it names it")
    return files


def is_plain_name(name: Any) -> bool:
    """Whether a value is the name of a file, without a way to another folder.

    Args:
        name: any value of JSON.

    Returns:
        True for a plain name.

    Examples:
        >>> is_plain_name("model.safetensors"), is_plain_name("../model.safetensors")
        (True, False)
    """
    return isinstance(name, str) and bool(name) and name == Path(name).name and "\0" not in name and len(name) < 256


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that float32 holds. JSON has integers of any length, and NaN.

    Examples:
        >>> is_number(0.5), is_number(10**40), is_number(True)
        (True, False, False)
    """
    return type(value) in (int, float) and -1e30 < value < 1e30
