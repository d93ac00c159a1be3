"""The runs of a bench: each finished one is a line of rows, an unfinished one is gone on with, one that fails ends no other."""

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lods_jax.config import Config, differences, dump, parse_yaml
from lods_jax.core.errors import UserError
from lods_jax.runs import run
from lods_jax.runs.batch import record
from lods_jax.runs.bench.plan import Job
from lods_jax.runs.evaluate import evaluate, plain
from lods_jax.runs.run_directory import Run, append, check_empty, locked, read_lines, read_run, truncate_log
from lods_jax.training.compilation import PRIOR_KEYS, Once, memories

ROWS = "rows.jsonl"
ALIVE = 4  # configurations whose compiled steps stay in memory, and priors: of Stable Diffusion each takes gigabytes
Row = dict[str, Any]
Measure = Callable[[Run], Mapping[str, Any]]


class Stopped(Exception):
    """A signal has stopped a run, and no other is begun. Its argument is the exit code."""


def rows_in(out: Path, kind: str = "shards") -> dict[str, Row]:
    """The rows of all finished runs of a bench, whichever process made them.

    Args:
        out: folder of the bench.
        kind: "shards" or "tuning".

    Returns:
        {folder of the run: row}.
    """
    files = sorted((out / kind).glob(f"*/{ROWS}"))
    return {row["run"]: row for file in files for row in read_lines(file) if isinstance(row.get("run"), str)}


def check_jobs(jobs: Sequence[Job], done: Mapping[str, Row], out: Path) -> None:
    """Checks, before any run begins, that rows and folders that are there are of these jobs.

    Args:
        jobs: to do.
        done: from `rows_in`.
        out: folder of the bench.

    Raises:
        UserError: a row or a run was made with other settings.
    """
    for job in jobs:
        folder = out / job.folder
        if row := done.get(str(job.folder)):
            held = parse_yaml(str(row.get("config", "")), f"the row of {folder}")
        elif (folder / "config.yaml").is_file():
            try:
                held = read_run(folder).config
            except UserError:  # its own run will fail with this, and no other
                continue
        else:
            check_empty(folder)
            continue
        if differ := differences(held, job.config):
            raise UserError(f"{folder} holds a run of other settings ({'; '.join(differ)}): pass another --out")


def shared_memories() -> Callable[[Config], Once]:
    """Builds a function from a configuration to what its run shares with others.

    All that is compiled is shared with runs that differ in prompt and seed alone, the prior and its weights with those that have
    the same prior.

    Returns:
        The function.
    """
    steps, priors = memories(ALIVE), memories(ALIVE)

    def shared(config: Config) -> Once:
        own, of_prior = steps(dump(replace(config, prompt="", seed=0))), priors(repr(config.prior))
        return lambda key, make: (of_prior if key in PRIOR_KEYS else own)(key, make)

    return shared


def execute(
    jobs: Sequence[Job],
    out: Path,
    rows: Path,
    shard: str,
    measure: Measure,
    shared: Callable[[Config], Once],
    done: Mapping[str, Row],
) -> tuple[dict[str, Row], list[str]]:
    """Makes the runs that have no row yet.

    Args:
        jobs: to do.
        out: folder of the bench.
        rows: folder of the rows; this process adds its own in a folder of the shard's name.
        shard: "I/N", which of how many processes this is.
        measure: run -> figures beside those of `lods evaluate`.
        shared: from `shared_memories`.
        done: rows that are there.

    Returns:
        {folder: row} of these jobs, and a line for each that failed.

    Raises:
        Stopped: by a signal.
        UserError: another process adds to the same rows.
    """
    found, failed, own = {}, [], rows / shard.replace("/", "-of-")
    with locked(own):
        mine = {row["run"]: row for row in truncate_log(own / ROWS)}
        for i, job in enumerate(jobs, 1):
            name = str(job.folder)
            row = done.get(name) or mine.get(name)
            if row is None:
                run.log("bench", f"{i} of {len(jobs)}: {job.method}, {job.config.prompt!r}, seed {job.config.seed}")
                try:
                    row = row_of(job, out, shared(job.config), measure) | {"shard": shard}
                    append(own / ROWS, row)
                except Exception as error:  # whatever it is: the other runs are made
                    if isinstance(error, Stopped) or os.environ.get("LODS_TRACEBACK"):
                        raise
                    failed.append(f"{job.folder}: {record(job.config, out / job.folder, error)}")
                    run.log("failed", failed[-1])
                    continue
                finally:
                    gc.collect()  # the arrays of a run hang in circles, and would wait for their turn
            found[name] = row
    return found, failed


def row_of(job: Job, out: Path, once: Once, measure: Measure) -> Row:
    """Makes a run, from where it is, and measures it.

    Args:
        job: the run.
        out: folder of the bench.
        once: what it shares with others.
        measure: run -> more figures.

    Returns:
        Its row, with all that repeats it.

    Raises:
        Stopped: by a signal.
    """
    folder = out / job.folder
    begun = (folder / "config.yaml").is_file()
    if not begun or read_run(folder).end != "finished":
        code = run.resume(read_run(folder).config, folder, once) if begun else run.start(job.config, folder, once)
        if code:
            raise Stopped(code)
    made = read_run(folder)
    row = evaluate(made) | measure(made) | job.about | {"run": str(job.folder), "config": dump(made.config)}
    row |= {name: made.note.get(name) for name in ("commit", "versions", "devices", "prior_sha256")}
    return plain([row])[0]


def look_back(figures: Sequence[str], looks: int) -> Measure:
    """Measures how figures went in the course of a run, from its checkpoints.

    Args:
        figures: of `lods evaluate`.
        looks: about as many steps of the run.

    Returns:
        run -> {"curve": [{step, seconds, predictions, figures}, ...]}; nothing for no looks.
    """

    def curve(made: Run) -> dict[str, list[Row]]:
        if not looks:
            return {}
        every, points = max(1, made.config.steps // looks), []
        for step in range(every, made.config.steps + 1, every):
            row, before = evaluate(made, step), [line for line in made.metrics if line["step"] <= step]
            share = step / max(made.step, 1)
            costs = {"seconds": before[-1].get("seconds") if before else None, "predictions": row.get("predictions", 0) * share}
            points.append({"step": step, **costs} | {figure: plain([row])[0].get(figure) for figure in figures})
        return {"curve": points}

    return curve
