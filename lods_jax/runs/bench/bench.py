"""A bench from its suite to its page: tuning, the runs of the table, the report."""

from collections.abc import Callable, Mapping
from pathlib import Path

from lods_jax.core.errors import UserError, tell
from lods_jax.priors.clip import load_clip
from lods_jax.runs import run
from lods_jax.runs.batch import share
from lods_jax.runs.bench.execute import Measure, Stopped, check_jobs, execute, look_back, rows_in, shared_memories
from lods_jax.runs.bench.plan import Block, Chosen, blocks, config_of, describe, jobs_of, tuning_jobs
from lods_jax.runs.bench.ranking import loss
from lods_jax.runs.bench.report import write_report
from lods_jax.runs.bench.suite import Suite
from lods_jax.runs.bench.tuning import Tuned, Values, first_trials, tune
from lods_jax.runs.evaluate import clip_figures
from lods_jax.runs.run_directory import write_json
from lods_jax.training.build import objective_of

NOTHING: Callable[..., dict] = lambda made: {}  # noqa: E731


def bench(suite: Suite, out: Path, shard: str = "1/1", tuning_alone: bool = False) -> int:
    """Makes the runs of a suite that are not there yet, and writes table and page of all that are.

    Args:
        suite: the suite.
        out: folder of the bench.
        shard: "I/N": this process makes every N-th run of the table, from the I-th on.
        tuning_alone: whether to end after tuning.

    Returns:
        The exit code: 0, 1 after failures, or that of a signal.

    Raises:
        UserError: the folder holds runs of other settings, or a shard finds tuning unfinished.
    """
    try:
        chosen, tuned = tune_all(suite, out, alone=shard == "1/1")
        if tuning_alone:
            return 0
        jobs, done = jobs_of(suite, chosen), rows_in(out)
        mine = share(jobs, shard)
        check_jobs(mine, done, out)
        folder = out / "shards" / shard.replace("/", "-of-")
        _, failed = execute(mine, out, folder, measures(suite), shared_memories(), done)
    except Stopped as stopped:
        return stopped.args[0]
    done = rows_in(out)
    if text := write_report(suite, jobs, done, out, tuned):
        tell(text)
        run.log("done", f"{out / 'index.html'}, {sum(str(job.folder) in done for job in jobs)} of {len(jobs)} runs")
    if failed:
        run.log("failed", f"{len(failed)} of {len(mine)} runs; the same command tries them again: {'; '.join(failed)}")
    return 1 if failed else 0


def measures(suite: Suite) -> Measure:
    """What a suite measures of its runs beside the figures against the truth: their curves, and what CLIP says.

    Args:
        suite: the suite.

    Returns:
        run -> figures.
    """
    look, prompts = look_back(suite.rank_by, suite.looks), [prompt for held in suite.prompts.values() for prompt in held]
    clip = load_clip(Path(suite.clip)) if suite.clip else None
    return lambda made: look(made) | ({} if clip is None else clip_figures(made, clip, prompts))


def dry_run(suite: Suite, out: Path) -> None:
    """Prints the runs of a suite and what they cost; `out` may hold some of them."""
    for line in describe(suite, jobs_of(suite), rows_in(out)):
        tell(line)


def tune_all(suite: Suite, out: Path, alone: bool) -> tuple[Chosen, Mapping[tuple[str, str, str], Tuned]]:
    """Tunes every method in every block, going on from the trials that are there, and writes tuned.json.

    Args:
        suite: the suite.
        out: folder of the bench.
        alone: whether this process may make trials; one of several may not, since each trial depends on those before.

    Returns:
        The values to keep, and how they were found; empty if the suite tunes nothing.

    Raises:
        UserError: a trial is missing, and this process is one of several.
    """
    if not suite.tuning.prompts:
        return {}, {}
    found: dict[tuple[str, str, str], Tuned] = {}
    shared = shared_memories()
    for block in blocks(suite):
        grids = {name: arm.grid for name, arm in suite.methods.items()}
        trial = lambda method, values, block=block: loss_of(suite, method, block, values, out, alone, shared)  # noqa: E731
        for method, end in tune(grids, trial, suite.tuning.most).items():
            found[*block, method] = end
            if end.edges:
                run.log("tuning", f"{method}: {', '.join(end.edges)} still at the edge after {len(end.trials)} trials")
    said = {" / ".join(word for word in key if word): end._asdict() for key, end in found.items()}
    write_json(out / "tuned.json", said)
    return {key: end.values for key, end in found.items()}, found


def loss_of(suite: Suite, method: str, block: Block, values: Values, out: Path, alone: bool, shared: Callable) -> float | None:
    """The loss of a trial: the mean of the figure of tuning over its prompts and seeds.

    Args:
        suite: the suite.
        method: its name.
        block: scene and prior.
        values: of the trial.
        out: folder of the bench.
        alone: whether runs that are missing may be made.
        shared: from `execute.shared_memories`.

    Returns:
        The loss, infinite if a run failed; None if the method cannot take the values.

    Raises:
        UserError: a run is missing and may not be made, or the folder holds runs of other settings.
    """
    try:
        objective_of(config_of(suite, method, *block, values))
    except (UserError, ValueError):
        if values in first_trials(suite.methods[method].grid):  # a mistake of the suite, and no end of a range
            raise
        return None
    jobs, done = tuning_jobs(suite, method, block, values), rows_in(out, "tuning")
    if not alone and any(str(job.folder) not in done for job in jobs):
        raise UserError("the trials of this suite are not finished: run the same command with --tune and without --shard first")
    check_jobs(jobs, done, out)
    rows, failed = execute(jobs, out, out / "tuning" / "all", NOTHING, shared, done)
    figures = [rows[str(job.folder)].get(suite.tuning.figure) for job in jobs if str(job.folder) in rows]
    if failed or any(x is None for x in figures):
        return float("inf")
    mean = sum(loss(suite.tuning.figure, x) for x in figures) / len(figures)
    run.log("tuning", f"{method}, {', '.join(f'{key} {value}' for key, value in values.items())}: {mean:.4g}")
    return mean
