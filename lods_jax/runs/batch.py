"""Many prompts, one run folder each, from lists as T3Bench has them and libraries as threestudio has them."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lods_jax.config import Config
from lods_jax.core.errors import UserError
from lods_jax.core.paths import PRESETS

MOST = 1_000_000  # bytes of a file


def read_prompts(name: str | Path) -> list[str]:
    """The prompts of a file, each once: a text with one a line, or JSON whose strings are prompts, however they are nested.

    `name` may also be a set that is shipped: "tabletop". Empty lines and lines that start with # are left out.
    """
    shipped = PRESETS / "prompts" / f"{name}.txt"
    file = Path(name) if Path(name).is_file() or not shipped.is_file() else shipped
    if not file.is_file():
        sets = ", ".join(sorted(path.stem for path in (PRESETS / "prompts").glob("*.txt")))
        raise UserError(f"no file of prompts {name}, and no set of that name: {sets}")
    if file.stat().st_size > MOST:
        raise UserError(f"{file} has {file.stat().st_size} bytes: a file of prompts may have {MOST}")
    try:
        text = file.read_text(encoding="utf-8")
        found = strings(json.loads(text)) if file.suffix == ".json" else text.splitlines()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not {'JSON' if file.suffix == '.json' else 'UTF-8 text'}: {error}") from None
    prompts = [line.strip() for line in found]
    prompts = list(dict.fromkeys(line for line in prompts if line and not line.startswith("#")))
    if not prompts:
        raise UserError(f"{file} holds no prompt")
    return prompts


def strings(value: Any) -> list[str]:
    """Every string in nested lists and objects, keys left out."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in strings(item)]


def pick(prompts: Sequence[str], name: str) -> str:
    """The one prompt that has all words of "lib:two_words", as threestudio writes it; a UserError if none or several do."""
    words = name.removeprefix("lib:").lower().split("_")
    found = [prompt for prompt in prompts if all(word in re.findall(r"\w+", prompt.lower()) for word in words)]
    if len(found) != 1:
        several = f"{len(found)} prompts have these words: {'; '.join(map(repr, found[:5]))}"
        raise UserError(f"{name}: {several if found else 'no prompt has these words'}")
    return found[0]


def share(items: Sequence[Any], shard: str) -> list[Any]:
    """Every N-th item from the I-th on, for "I/N" with I from 1: the part of one job of an array."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"shard must read like 1/4, the first of four, got {shard}")
    return list(items[int(match[1]) - 1 :: int(match[2])])


def slug(prompt: str) -> str:
    """A prompt as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "prompt"


def folders(prompts: Sequence[str], out: Path) -> list[tuple[str, Path]]:
    """Each prompt with the folder of its run; two that read alike as names get a number."""
    taken: dict[str, int] = {}
    named = []
    for prompt in prompts:
        name = slug(prompt)
        taken[name] = taken.get(name, 0) + 1
        named.append((prompt, out / (name if taken[name] == 1 else f"{name}-{taken[name]}")))
    return named


def run_all(config: Config, jobs: Sequence[tuple[str, Path]]) -> int:
    """Runs every prompt that is not finished, and goes on with those that were begun. All share their compiled steps.

    Returns the exit code: 0, or that of the run that was stopped by a signal, after which no other is begun.
    """
    from lods_jax.runs import run
    from lods_jax.runs.run_directory import read_run
    from lods_jax.training import loop

    steps: dict[Any, Callable] = {}

    def compile(config, parts, static):
        if static not in steps:
            steps[static] = loop.compiled(config, parts, static)
        return steps[static]

    for i, (prompt, folder) in enumerate(jobs, 1):
        mine = replace(config, prompt=prompt)
        begun = (folder / "config.yaml").is_file()
        if begun and read_run(folder).end == "finished":
            run.say("skip", f"{i} of {len(jobs)}, {prompt!r}: finished in {folder}")
            continue
        if begun and read_run(folder).config != mine:
            raise UserError(f"{folder} holds a run of another configuration: pass another --out")
        run.say("prompt", f"{i} of {len(jobs)}")
        code = run.resume(mine, folder, compile) if begun else run.start(mine, folder, compile)
        if code:
            return code
    return 0
