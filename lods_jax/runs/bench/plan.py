"""The runs of a suite, in the order in which they are made, and what they cost."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

from lods_jax.config import Config, check, layered, leaves
from lods_jax.core.errors import UserError, one_line
from lods_jax.runs.batch import folder_name, piece, slug
from lods_jax.runs.bench.ranking import timed_on
from lods_jax.runs.bench.suite import Suite

Block = tuple[str, str]  # a scene and a prior: methods are tuned and ranked within it
Values = Mapping[str, str]  # {dotted key: value as a text of YAML}
Chosen = Mapping[tuple[str, str, str], Values]  # (scene, prior, method) -> what tuning kept


class Job(NamedTuple):
    """One run of a suite.

    Attributes:
        method: its name.
        scene: its name, "" if the suite names none.
        prior: as the suite names it, "" for that of the preset.
        prompt_set: name of the set of prompts, "" if there is one.
        config: of the run.
        folder: of the run, below that of the bench.
    """

    method: str
    scene: str
    prior: str
    prompt_set: str
    config: Config
    folder: Path

    @property
    def about(self) -> dict[str, str]:
        """What a row says of its job."""
        return {"method": self.method, "scene": self.scene, "prior_name": self.prior, "prompt_set": self.prompt_set}


def blocks(suite: Suite) -> list[Block]:
    """The pairs of scene and prior of a suite."""
    return list(product(suite.scenes, suite.priors or ("",)))


def jobs_of(suite: Suite, chosen: Chosen | None = None) -> list[Job]:
    """The runs of a suite: block by block, seed by seed, method by method.

    So few compiled steps are needed at a time, and a bench that was stopped has whole comparisons.

    Args:
        suite: the suite.
        chosen: what tuning kept; None for the settings of the suite.

    Returns:
        The jobs.

    Raises:
        UserError: a method is no valid configuration.
    """
    kept = chosen or {}
    made = []
    for scene, prior in blocks(suite):
        configs = {name: config_of(suite, name, scene, prior, kept.get((scene, prior, name), {})) for name in suite.methods}
        for seed, (method, config), (prompt_set, prompts) in product(suite.seeds, configs.items(), suite.prompts.items()):
            for prompt in prompts:
                made.append(job_of(Path("runs"), method, scene, prior, prompt_set, replace(config, prompt=prompt, seed=seed)))
    return made


def shares(jobs: list[Job], shard: str) -> list[Job]:
    """The share of one process: of the runs of every scene, prior and seed the I-th of N pieces.

    A piece has few methods, so that little is compiled, and processes that are stopped have whole seeds.

    Args:
        jobs: of all processes, in the order of `jobs_of`.
        shard: "I/N".

    Returns:
        The jobs of the share.

    Raises:
        UserError: the shard does not read like that.
    """
    comparisons = groupby(jobs, lambda job: (job.scene, job.prior, job.config.seed))
    return [job for _, held in comparisons for job in piece([*held], shard)]


def job_of(folder: Path, method: str, scene: str, prior: str, prompt_set: str, config: Config) -> Job:
    """The job of a configuration, with a folder that its names lead to.

    Args:
        folder: of all such jobs, below that of the bench.
        method: name.
        scene: name.
        prior: name.
        prompt_set: name.
        config: with prompt and seed.

    Returns:
        The job.
    """
    parts = [slug(name) for name in (scene, prior, method, prompt_set) if name]
    return Job(method, scene, prior, prompt_set, config, folder.joinpath(*parts, f"{folder_name(config.prompt)}-{config.seed}"))


def config_of(suite: Suite, method: str, scene: str, prior: str, values: Values) -> Config:
    """The configuration of a method, without prompt and seed.

    Args:
        suite: the suite.
        method: a key of its methods.
        scene: a key of its scenes.
        prior: one of its priors, or "".
        values: settings that tuning tries or kept.

    Returns:
        The configuration, checked.

    Raises:
        UserError: it is none; the line names the method.
    """
    own, around = suite.methods[method], suite.scenes[scene]
    preset = own.preset or around.preset or suite.preset
    layers: list[tuple[Mapping[str, Any], str]] = [(suite.settings, "settings"), (around.settings, f"scenes.{scene}")]
    layers += [({"prior": prior}, "priors")] if prior else []
    layers += [(own.settings, f"methods.{method}")]
    try:
        base = layered(preset, layers)
        trial = [(nested(key, value, base), f"methods.{method}.grid") for key, value in values.items()]
        config = layered(preset, layers + trial) if trial else base
        every = max(1, config.steps // suite.looks) if suite.looks else 0
        looks = replace(config.checkpoint, every=every, keep=suite.looks + 2) if every else config.checkpoint
        return check(replace(config, checkpoint=looks))
    except UserError as error:
        raise UserError(f"method {method}: {one_line(error)}") from None


def nested(key: str, value: str, config: Config) -> dict[str, Any]:
    """A dotted key and its value as nested keys; the value of a schedule holds for the whole run.

    Args:
        key: dotted.
        value: a text of YAML.
        config: that has the key, for its type.

    Returns:
        Nested keys and values.

    Examples:
        >>> nested("regularizers.sparsity", "10", Config())
        {'regularizers': {'sparsity': ['10', '10']}}
    """
    held: Any = [value, value] if any(name == key and isinstance(x, tuple) for name, _, x in leaves(config)) else value
    for part in reversed(key.split(".")):
        held = {part: held}
    return held


def tuning_jobs(suite: Suite, method: str, block: Block, values: Values) -> list[Job]:
    """The runs of one trial.

    Args:
        suite: the suite.
        method: to tune.
        block: scene and prior.
        values: of the trial.

    Returns:
        The jobs.

    Raises:
        UserError: the values are no valid configuration.
    """
    trial = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items()) or "as-it-is"
    config = config_of(suite, method, *block, values)
    config = replace(config, checkpoint=replace(config.checkpoint, every=0))
    return [
        job_of(Path("tuning", trial), method, *block, "", replace(config, prompt=prompt, seed=seed))
        for seed, prompt in product(suite.tuning.seeds, suite.tuning.prompts)
    ]


def check_methods(jobs: list[Job]) -> None:
    """Checks, before any run is made, what a run of each method checks before it reads weights: its objective, batch and reward.

    Args:
        jobs: of a suite.

    Raises:
        UserError: the runs of a method could not begin; the line names it.
    """
    from lods_jax.training.build import checked

    for job in {(job.method, job.scene, job.prior): job for job in jobs}.values():
        try:
            checked(job.config)
        except (UserError, ValueError) as error:
            raise UserError(f"the method {job.method}: {one_line(error)}") from None


# --- what it costs -----------------------------------------------------------------------------------------------------------
def predictions(config: Config) -> float:
    """Noise predictions of a run with this config, in thousands."""
    from lods_jax.training.build import objective_of, predictions_per_view

    return config.steps * config.batch * predictions_per_view(config, objective_of(config)) / 1000


def describe(suite: Suite, jobs: list[Job], done: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The plan of a suite and its cost, line by line.

    Args:
        suite: the suite.
        jobs: of its table.
        done: {folder: row} of the runs that are finished.

    Yields:
        Lines for the console.
    """
    if suite.title:
        yield suite.title
    wide = max(23, *map(len, suite.methods)) + 1
    for scene, prior in blocks(suite):
        for method in suite.methods:
            mine = [job for job in jobs if (job.scene, job.prior, job.method) == (scene, prior, method)]
            one = mine[0].config
            of = ", ".join(dict.fromkeys(word for word in (scene, one.prior.name) if word))
            cost = f"{len(mine)} runs of {one.steps} steps, {predictions(one):.3g} thousand noise predictions each"
            yield f"{method:<{wide}}{of}: {cost}"
    finished = [row for job in jobs if (row := done.get(str(job.folder)))]
    yield f"{'runs':<{wide}}{len(jobs)}, of which {len(finished)} are finished"
    t = suite.tuning
    if t.prompts:
        tried = len(t.prompts) * len(t.seeds) * len(suite.methods) * len(blocks(suite))
        yield f"{'tuning':<{wide}}{tried} runs a trial and method, at most {t.most} trials, ranked by {t.figure}"
    yield f"{'noise predictions':<{wide}}{sum(predictions(job.config) for job in jobs) / 1000:.3g} million"
    if time := minutes_left(suite, jobs, finished):
        yield f"{'time':<{wide}}{time}"


def minutes_left(suite: Suite, jobs: list[Job], finished: list[Mapping[str, Any]]) -> str:
    """How long the unfinished runs take, by the runs that are finished, else by what the suite says.

    Args:
        suite: the suite.
        jobs: of its table.
        finished: rows.

    Returns:
        Words; "" if nothing is known.
    """
    left = len(jobs) - len(finished)
    timed = [row for row in finished if row.get("seconds")]
    if timed:
        where, minutes = "; ".join(dict.fromkeys(map(timed_on, timed))), sum(row["seconds"] for row in timed) / len(timed) / 60
        return f"about {left * minutes:.0f} minutes, by the finished runs ({where})"
    return "" if suite.minutes is None else f"about {left * suite.minutes:.0f} minutes, by what the suite says of a run"
