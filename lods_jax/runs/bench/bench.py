"""A bench from its suite to its page: tuning, the runs of the table, the report."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from lods_jax.config import Config
from lods_jax.core.errors import UserError, tell
from lods_jax.priors.clip import load_clip
from lods_jax.runs import run
from lods_jax.runs.batch import has_failed, piece
from lods_jax.runs.bench.execute import Measure, Stopped, check_jobs, execute, look_back, rows_in, shared_memories
from lods_jax.runs.bench.plan import Block, Chosen, Job, blocks, config_of, describe, jobs_of, shares, tuning_jobs
from lods_jax.runs.bench.ranking import loss
from lods_jax.runs.bench.report import write_report
from lods_jax.runs.bench.suite import Suite
from lods_jax.runs.bench.tuning import Proposal, Tuned, Values, first_trials, tune
from lods_jax.runs.evaluate import clip_figures
from lods_jax.runs.run_directory import write_json
from lods_jax.training.build import objective_of
from lods_jax.training.compilation import Once

NOTHING: Callable[..., dict] = lambda made: {}  # noqa: E731


class RoundUnfinished(Exception):
    """Other processes have not made their share of a round of trials yet."""


def bench(suite: Suite, out: Path, shard: str = "1/1", tuning_alone: bool = False) -> int:
    """Makes the runs of a suite that are not there yet, and writes table and page of all that are.

    Args:
        suite: the suite.
        out: folder of the bench.
        shard: "I/N": this process makes the I-th of N pieces.
        tuning_alone: whether to end after tuning; of several processes, after a round of it.

    Returns:
        The exit code: 0, 1 after failures, or that of a signal.

    Raises:
        UserError: the folder holds runs of other settings, or a shard finds tuning unfinished.
    """
    try:
        chosen, tuned = tune_all(suite, out, shard, runs=tuning_alone or shard == "1/1")
        if tuning_alone:
            return 0
        jobs = jobs_of(suite, chosen)
        mine, done = shares(jobs, shard), rows_in(out)
        check_jobs(mine, done, out)
        _, failed = execute(mine, out, out / "shards", shard, measures(suite), shared_memories(), done)
    except Stopped as stopped:
        return stopped.args[0]
    except RoundUnfinished:
        run.log("tuning", "other shards have runs of this round to make; the same command begins the next one after them")
        return 0
    write_page(suite, jobs, out, tuned)
    if failed:
        run.log("failed", f"{len(failed)} of {len(mine)} runs; the same command tries them again: {'; '.join(failed)}")
    return 1 if failed else 0


def report(suite: Suite, out: Path) -> None:
    """Writes table and page of the runs that are there, and makes none.

    Args:
        suite: the suite.
        out: folder of the bench.

    Raises:
        UserError: there are none, tuning is unfinished, or the folder holds runs of other settings.
    """
    chosen, tuned = tune_all(suite, out, "1/1", runs=False)
    jobs, done = jobs_of(suite, chosen), rows_in(out)
    check_jobs([job for job in jobs if str(job.folder) in done], done, out)
    if not write_page(suite, jobs, out, tuned):
        raise UserError(f"{out} holds no finished run of this suite: there is nothing to report")


def write_page(suite: Suite, jobs: Sequence[Job], out: Path, tuned: Mapping[tuple[str, str, str], Tuned]) -> bool:
    """Writes table and page of the runs that are there, and prints the table.

    Args:
        suite: the suite.
        jobs: of its table.
        out: folder of the bench.
        tuned: from `tune_all`.

    Returns:
        Whether there is any run.
    """
    done = rows_in(out)
    if text := write_report(suite, jobs, done, out, tuned):
        tell(text)
        run.log("done", f"{out / 'index.html'}, {sum(str(job.folder) in done for job in jobs)} of {len(jobs)} runs")
    return bool(text)


def measures(suite: Suite) -> Measure:
    """What a suite measures of its runs beside the figures against the truth: their curves, and what CLIP says.

    Args:
        suite: the suite.

    Returns:
        run -> figures.
    """
    look = look_back((suite.rank_by, *suite.curves), suite.looks)
    prompts = [prompt for held in suite.prompts.values() for prompt in held]
    clip = load_clip(Path(suite.clip)) if suite.clip else None
    return lambda made: look(made) | ({} if clip is None else clip_figures(made, clip, prompts))


def dry_run(suite: Suite, out: Path) -> None:
    """Prints the runs of a suite and what they cost; `out` may hold some of them."""
    for line in describe(suite, jobs_of(suite), rows_in(out)):
        tell(line)


def tune_all(suite: Suite, out: Path, shard: str, runs: bool) -> tuple[Chosen, Mapping[tuple[str, str, str], Tuned]]:
    """Tunes every method in every block, going on from the trials that are there, and writes tuned.json.

    Args:
        suite: the suite.
        out: folder of the bench.
        shard: "I/N": of the runs of a round this process makes the I-th of N pieces.
        runs: whether runs that are missing may be made.

    Returns:
        The values to keep, and how they were found; empty if the suite tunes nothing.

    Raises:
        UserError: a trial is missing and may not be made, or a grid holds what its method cannot take.
        RoundUnfinished: a round waits for other processes.
    """
    if not suite.tuning.prompts:
        return {}, {}
    for block, (name, arm) in product(blocks(suite), suite.methods.items()):
        for values in first_trials(arm.grid):
            objective_of(config_of(suite, name, *block, values))
    found: dict[tuple[str, str, str], Tuned] = {}
    shared, grids = shared_memories(), {name: arm.grid for name, arm in suite.methods.items()}
    for block in blocks(suite):
        allowed = lambda method, values, block=block: can_take(suite, method, block, values)  # noqa: E731
        measure = lambda trials, block=block: losses_of(suite, block, trials, out, shard, runs, shared)  # noqa: E731
        for method, end in tune(grids, allowed, measure, suite.tuning.most).items():
            found[*block, method] = end
            if end.edges:
                run.log("tuning", f"{method}: {', '.join(end.edges)} still at the edge after {len(end.trials)} trials")
    said = {" / ".join(word for word in key if word): end._asdict() for key, end in found.items()}
    write_json(out / "tuned.json", said)
    return {key: end.values for key, end in found.items()}, found


def can_take(suite: Suite, method: str, block: Block, values: Values) -> bool:
    """Whether a method can take some values.

    Args:
        suite: the suite.
        method: its name.
        block: scene and prior.
        values: of a trial.

    Returns:
        True if they are a configuration and an objective.
    """
    try:
        objective_of(config_of(suite, method, *block, values))
    except (UserError, ValueError):
        return False
    return True


def losses_of(
    suite: Suite, block: Block, trials: Sequence[Proposal], out: Path, shard: str, runs: bool, shared: Callable[[Config], Once]
) -> list[float]:
    """The losses of the trials of a round: of each the mean of the figure of tuning over its prompts and seeds.

    Args:
        suite: the suite.
        block: scene and prior.
        trials: methods and values.
        out: folder of the bench.
        shard: "I/N", the piece of this process.
        runs: whether runs that are missing may be made.
        shared: from `execute.shared_memories`.

    Returns:
        A loss for each trial, infinite if a run of it failed.

    Raises:
        UserError: a run is missing and may not be made, or the folder holds runs of other settings.
        RoundUnfinished: other processes have runs to make.
    """
    jobs = [tuning_jobs(suite, method, block, values) for method, values in trials]
    flat, done = [job for held in jobs for job in held], rows_in(out, "tuning")
    mine = piece(flat, shard) if runs else []
    check_jobs([job for job in flat if job in mine or str(job.folder) in done], done, out)  # others may be beginning theirs
    if runs:
        execute(mine, out, out / "tuning", shard, NOTHING, shared, done)
        done = rows_in(out, "tuning")
    missing = [job for job in flat if str(job.folder) not in done and not has_failed(out / job.folder)]
    if missing and not runs:
        raise UserError("the trials of this suite are not finished: run the same command with --tune first")
    if missing:
        raise RoundUnfinished
    rows = [[done.get(str(job.folder), {}) for job in held] for held in jobs]
    return [loss_of(suite, trial, held) for trial, held in zip(trials, rows, strict=True)]


def loss_of(suite: Suite, trial: Proposal, rows: Sequence[Mapping[str, Any]]) -> float:
    """The loss of a trial, which it logs.

    Args:
        suite: names the figure.
        trial: method and values.
        rows: of its runs; an empty one for a run that failed.

    Returns:
        The mean over the runs; infinite if one failed or lacks the figure.
    """
    figures, (method, values) = [row.get(suite.tuning.figure) for row in rows], trial
    if any(x is None for x in figures):
        return float("inf")
    mean = sum(loss(suite.tuning.figure, x) for x in figures) / len(figures)
    run.log("tuning", f"{method}, {', '.join(f'{key} {value}' for key, value in values.items())}: {mean:.4g}")
    return mean
