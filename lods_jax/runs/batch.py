"""Many prompts, one run folder each: a folder belongs to one prompt and one configuration, and one that fails ends no other."""

import gc
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lods_jax.config import Config, differences, dump
from lods_jax.core.errors import UserError, one_line

Jobs = Sequence[tuple[str, Path]]  # prompts and the folders of their runs


def place_of(shard: str) -> tuple[int, int]:
    """The place of a process among those that share the work.

    Args:
        shard: "I/N", with I from 1 to N.

    Returns:
        I and N.

    Raises:
        UserError: the shard does not read like that.

    Examples:
        >>> place_of("2/8")
        (2, 8)
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"shard must read like 1/4, the first of four, got {shard}")
    return int(match[1]), int(match[2])


def share(items: Sequence[Any], shard: str) -> list[Any]:
    """The I-th of N shares of a list: every N-th item from the I-th on, for the jobs of an array.

    Args:
        items: of all jobs.
        shard: "I/N", with I from 1 to N.

    Returns:
        The items of the share.

    Raises:
        UserError: the shard does not read like that.

    Examples:
        >>> share(["a", "b", "c", "d", "e"], "1/2")
        ['a', 'c', 'e']
    """
    i, n = place_of(shard)
    return list(items[i - 1 :: n])


def piece(items: Sequence[Any], shard: str) -> list[Any]:
    """The I-th of N pieces of a list, which are whole and as long as each other or one longer.

    Args:
        items: of all jobs.
        shard: "I/N", with I from 1 to N.

    Returns:
        The items of the piece.

    Raises:
        UserError: the shard does not read like that.

    Examples:
        >>> piece(["a", "b", "c", "d", "e"], "2/2")
        ['c', 'd', 'e']
    """
    i, n = place_of(shard)
    return list(items[len(items) * (i - 1) // n : len(items) * i // n])


def slug(prompt: str) -> str:
    """A prompt as words of a folder's name.

    Examples:
        >>> slug("A red mug!")
        'a-red-mug'
    """
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "prompt"


def folder_name(prompt: str) -> str:
    """The name of a prompt's folder: its words, and a hash where the words are not the whole prompt.

    It depends on the prompt alone: other lines of a file do not change it, and no two prompts share a folder.

    Args:
        prompt: any.

    Returns:
        The name.

    Examples:
        >>> folder_name("a red mug")
        'a-red-mug'
    """
    words = slug(prompt)
    return words if words.replace("-", " ") == prompt else f"{words}-{hashlib.sha256(prompt.encode()).hexdigest()[:10]}"


def folders(prompts: Iterable[str], out: Path) -> list[tuple[str, Path]]:
    """Each prompt with the folder of its run.

    Args:
        prompts: any number.
        out: the folder of all.

    Returns:
        (prompt, folder) pairs.
    """
    return [(prompt, out / folder_name(prompt)) for prompt in prompts]


def check_folders(config: Config, jobs: Jobs) -> None:
    """Checks, before any run begins, that each folder is empty or holds the run of its prompt and configuration.

    Args:
        config: of all runs, except the prompt.
        jobs: from `folders`.

    Raises:
        UserError: a folder holds another run, or something else.
    """
    from lods_jax.runs.run_directory import check_empty, read_run

    for prompt, folder in jobs:
        if not (folder / "config.yaml").is_file():
            check_empty(folder)
            continue
        try:
            held = read_run(folder).config
        except UserError:  # its own run will fail with this, and no other
            continue
        if held != (mine := replace(config, prompt=prompt)):
            how = "; ".join(differences(held, mine)) or "output or checkpoints"
            raise UserError(f"{folder} holds a run of other settings ({how}): pass another --out")


def run_all(config: Config, jobs: Jobs, check: Callable[[str], None] = lambda prompt: None) -> int:
    """Runs every prompt that is not finished, and resumes those that were begun. All share the prior and what is compiled.

    A prompt that fails is recorded in its folder with the reason, and tried again by the next call; the others are run.

    Args:
        config: of all runs, except the prompt.
        jobs: from `folders`.
        check: raises for a prompt that cannot be run.

    Returns:
        The exit code: 0, 1 after failures, or that of the run that a signal stopped, after which no other is begun.

    Raises:
        UserError: a folder holds another run, or something else; then nothing has begun.
    """
    from lods_jax.runs import run
    from lods_jax.runs.run_directory import read_run
    from lods_jax.training.compilation import memory

    check_folders(config, jobs)
    once, failed = memory(), []
    for i, (prompt, folder) in enumerate(jobs, 1):
        mine, begun = replace(config, prompt=prompt), (folder / "config.yaml").is_file()
        try:
            if begun and read_run(folder).end == "finished":
                run.log("skip", f"{i} of {len(jobs)}, {prompt!r}: finished in {folder}")
                continue
            check(prompt)
            run.log("prompt", f"{i} of {len(jobs)}")
            code = run.resume(mine, folder, once) if begun else run.start(mine, folder, once)
        except Exception as error:  # whatever it is: the other prompts are run
            if os.environ.get("LODS_TRACEBACK"):
                raise
            failed.append(prompt)
            run.log("failed", f"{i} of {len(jobs)}, {prompt!r}: {record(mine, folder, error)}")
            continue
        finally:
            gc.collect()  # the arrays of a run hang in circles, and would wait for their turn
        if code:
            return code
    if failed:
        run.log(
            "failed", f"{len(failed)} of {len(jobs)} prompts: {', '.join(map(repr, failed))}; the same command tries them again"
        )
    return 1 if failed else 0


def record(config: Config, folder: Path, error: Exception) -> str:
    """Writes into a run's folder why it failed, unless another process holds the folder.

    Args:
        config: of the run.
        folder: of the run.
        error: that ended it.

    Returns:
        The reason, one line.
    """
    from lods_jax.core.files import replacing
    from lods_jax.runs.run_directory import locked, read_json, write_json

    reason = one_line(error)
    try:
        with locked(folder):
            if not (folder / "config.yaml").is_file():
                with replacing(folder / "config.yaml") as file:
                    file.write_text(dump(config), encoding="utf-8")
            write_json(folder / "run.json", read_json(folder / "run.json") | {"state": "failed", "error": reason})
    except (OSError, ValueError, UserError) as problem:  # a full disk, or the lock of another process
        return f"{reason} (not recorded: {one_line(problem)})"
    return reason


def has_failed(folder: Path) -> bool:
    """Whether the run of a folder was recorded as failed."""
    from lods_jax.runs.run_directory import read_json

    return read_json(folder / "run.json").get("state") == "failed"
