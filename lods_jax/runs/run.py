"""A run: a loop around the compiled step that leaves a folder (`folder.py` lists its files) and tells a person how it goes.

All that training changes is in the checkpoint: a resumed run continues bit for bit.
"""

import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lods_jax.config import Config, check, differences, dump, parse_yaml
from lods_jax.core.errors import UserError, escaped
from lods_jax.core.files import replacing
from lods_jax.core.types import TrainState
from lods_jax.distillation.diagnosis import make_diagnosis
from lods_jax.distillation.train_step import leaf_names
from lods_jax.runs import provenance
from lods_jax.runs.artifacts import SceneRenderer, scene_renderer, write_page_of, write_preview, write_results
from lods_jax.runs.export import mesh_of_run
from lods_jax.runs.run_directory import append, check_empty, event_log, locked, point_latest_at, truncate_log, write_json
from lods_jax.training import checkpoint, image_to_3d
from lods_jax.training.build import Components, build, predictions_per_view
from lods_jax.training.compilation import compilations, compile_seconds
from lods_jax.training.distributed import agreed, all_or_none, is_first
from lods_jax.training.loop import Compile, Progress, compiled, first_state, mode_of, state_shapes, train
from lods_jax.training.scene_setups import StaticShapes, notes_on_start, read_shapes

FIRST_PREVIEW = 10  # steps: something to look at within a minute
GIVE_UP = 20  # updates in a row that were dropped


# --- a run and its folder ---------------------------------------------------------------------------------------------------
def start(config: Config, folder: Path, compile: Compile = compiled) -> int:
    """Runs a configuration in a new or empty folder. Returns the exit code: 0, 130 after Ctrl-C, 143 after SIGTERM.

    Args:
      compile: as for `train`.
    """
    with ExitStack() as held:
        with all_or_none():
            if is_first():
                check_empty(folder)
            components = build(check(config))  # before anything is written: most mistakes show here
            notes = notes_on_start(config)
            mode_of(config)
            if is_first():
                held.enter_context(locked(folder, empty=True))
        if is_first():  # and all of them can begin
            with replacing(folder / "config.yaml") as file:
                file.write_text(dump(config), encoding="utf-8")
            point_latest_at(folder)
        for note in notes:
            log("scene", note)
        return execute(config, components, folder, first_state(config, components), None, compile)


def resume(config: Config, folder: Path, compile: Compile = compiled, changed: bool = False) -> int:
    """Continues a run from its newest whole checkpoint, bit for bit on as many devices; returns what `start` returns.

    Args:
      config: what config.yaml of the folder holds.
      changed: go on although the checkpoint was made with other settings, and the end will be that of neither.
    """
    with ExitStack() as held:
        with all_or_none():
            components = build(check(config), folder)
            mode_of(config)
            if is_first():
                held.enter_context(locked(folder))
            state, shapes = last_state(config, components, folder, changed)
        at = int(state.step)
        if (agreed(at), agreed(-at)) != (at, -at):
            raise UserError(f"the newest whole checkpoint that this process finds is of step {at}, another process finds another")
        return execute(config, components, folder, state, shapes, compile)


def last_state(config: Config, components: Components, folder: Path, changed: bool) -> tuple[TrainState, StaticShapes | None]:
    """What a run goes on from: its newest whole checkpoint, or the beginning."""
    if not checkpoint.steps(folder / "checkpoints"):
        log("resume", f"{folder} has no checkpoint: from the beginning")
        return first_state(config, components), None
    like = state_shapes(config, components)
    state, meta = checkpoint.restore(folder / "checkpoints", like, tell=lambda line: log("resume", line))
    before = meta.get("config")  # which checkpoints did not always hold
    differ = differences(parse_yaml(before, "the checkpoint"), config) if before else []
    if differ and not changed:
        raise UserError(
            f"the settings of {folder} have changed since its checkpoint: {'; '.join(differ)}. Put them back in config.yaml, "
            "or pass --changed to go on with them"
        )
    log("resume", f"{folder} from step {int(state.step)}" + (f", changed: {'; '.join(differ)}" if differ else ""))
    return state, read_shapes(meta["static"])


def execute(
    config: Config,
    components: Components,
    folder: Path,
    state: TrainState,
    shapes: StaticShapes | None,
    compile: Compile = compiled,
) -> int:
    """From a state to the end or to a signal; the results are written in both cases."""
    jax.config.update("jax_debug_nans", config.debug_nans)
    components = with_picture(config, components, folder) if components.image_inputs else components
    if not is_first():
        return worker_loop(config, components, state, shapes, compile)
    note = provenance.describe() | {"prior_sha256": components.prior_sha256}
    note |= {"predictions_per_view": predictions_per_view(config, components.objective)}
    if components.image_inputs:
        note |= {"pose_sha256": components.image_inputs.zero123_sha256}
    write_json(folder / "run.json", note | {"state": "running"})
    log("run", f"{config.prompt!r}, {config.objective.name} on the prior {config.prior.name}, seed {config.seed}: {folder}")
    render_fn, diagnose = scene_renderer(config, config.output.size), diagnosis(config, components, shapes)
    with catch_signals() as stop:
        try:
            steps = train(config, components, state, shapes, compile)
            state, seconds = training_loop(config, components, folder, state, steps, diagnose, render_fn, stop)
            log("write", "video, stills, scene and page")
            began = time.monotonic()
            write_results(config, components, folder, state, render_fn, log)
            if components.setup.exports_mesh:
                log("", mesh_of_run(config, folder, state))
            seconds["write"] = round(time.monotonic() - began, 1)
        except BaseException as error:
            with suppress(OSError):  # what went wrong may be the disk
                write_json(folder / "run.json", note | {"state": "failed", "error": f"{type(error).__name__}: {error}"})
                write_page_of(folder, log)
            raise
        write_json(folder / "run.json", note | outcome(config, state, seconds))
        write_page_of(folder, log)
        agreed(0)  # the end: `worker_loop` waits for it
    if stop:
        log("stopped", f"at step {int(state.step)} of {config.steps}; go on with `lods resume {folder}`")
        return 128 + stop[0]
    log("done", f"{folder / 'index.html'}")
    return 0


def with_picture(config: Config, components: Components, folder: Path) -> Components:
    """The parts with the prompt fitted to the image; copies of both lie in the folder. The first process does it for all."""
    if is_first():
        with tolerate_io_errors("the picture", "stop"):
            image_to_3d.keep(folder, config, components.image_inputs)
        if config.image.invert and image_to_3d.load_textual_inversion(folder, config) is None:
            log("picture", f"fits the embedding of the prompt, {config.image.invert} steps")
            by = image_to_3d.textual_inversion(
                config, components.prior, components.weights, components.texts["prompt"], components.image_inputs.reference.image
            )
            with tolerate_io_errors("the fitted embedding", "stop"):
                image_to_3d.save_textual_inversion(folder, config, by, components.texts)
    agreed(0)
    by = image_to_3d.load_textual_inversion(folder, config) if config.image.invert else None
    return (
        components if by is None else components._replace(texts=image_to_3d.shift_embeddings(components.texts, jnp.asarray(by)))
    )


def worker_loop(config: Config, components: Components, state: TrainState, shapes: StaticShapes | None, compile: Compile) -> int:
    """What every process but the first does: the same steps to the same end, and nothing that leaves a trace."""
    with catch_signals() as stop:
        for done, _, _, _ in train(config, components, state, shapes, compile):
            if stops(config, done, stop):
                break
        agreed(0)  # the first process writes the results, and is waited for: without it the others could not stay
    return 128 + stop[0] if stop else 0


def stops(config: Config, done: int, stop: list[int]) -> bool:
    """Whether a run ends with this step. Several processes tell each other of signals at logged steps: all end with the same."""
    if jax.process_count() > 1:
        heard = agreed(stop[0] if stop else 0) if due(config.output.log_every, done) else 0
        stop[:] = [heard] if heard else stop
        return done == config.steps or heard > 0
    return done == config.steps or bool(stop)


def training_loop(
    config: Config,
    components: Components,
    folder: Path,
    state: TrainState,
    steps: Iterator[Progress],
    diagnose: Callable[[TrainState], dict[str, float]],
    render_fn: SceneRenderer,
    stop: list[int],
) -> tuple[TrainState, dict[str, float]]:
    """Goes through the steps after `state`, and lets people see it: progress, metrics, previews, checkpoints.

    Ends early once `stop` holds a signal. Returns the last state, and seconds: of compilation in this sitting, of optimisation in
    all sittings. Whatever is compiled, at the first step or later, by the step or for a preview, is no optimisation.
    """
    first, began, recent = int(state.step), time.monotonic(), []
    rows = truncate_log(folder / "metrics.jsonl", lambda row: row.get("step", first) <= first)
    spent = rows[-1].get("seconds", 0.0) if rows else 0.0
    skipped, dead, shape = int(state.skipped), 0, None
    if first < config.steps:
        log("compile", "about a minute on a new machine, some seconds on one that has done it before")
    bar = tqdm(total=config.steps, initial=first, disable=None, unit="step", mininterval=0.5)
    with bar, event_log(folder / "events", first, config.output.tensorboard) as write_events, compilations() as compiled:
        elapsed = lambda: time.monotonic() - began - compile_seconds(compiled)  # noqa: E731
        for done, state, shapes, metrics in steps:
            recent.append(metrics)
            last = stops(config, done, stop)
            on_error = "stop" if last else config.checkpoint.on_error
            if last or done == first + 1 or due(config.output.log_every, done):
                line = {"step": done} | mean(recent) | components.setup.count(state.aux) | diagnose(state)
                line |= {"skipped": int(state.skipped), "seconds": round(spent + elapsed(), 1)}
                with tolerate_io_errors("metrics.jsonl", on_error):
                    append(folder / "metrics.jsonl", line)
                    write_events(line)
                dead = check_alive(line["skipped"] - skipped, recent, done, dead, state)
                skipped, recent = line["skipped"], []
                show(bar, line, config, elapsed(), done - first)
            if done == first + 1:
                took = f"{compile_seconds(compiled):.0f} s of compilation"
                log("optimise", f"{config.steps - first} steps of {config.batch} views ({took})")
            elif shapes != shape:
                log("compile", f"the step again: {shapes.resolution} pixels, capacity {shapes.capacity:,} a view")
            shape = shapes
            if due(config.output.preview_every, done) or (config.output.preview_every and done == FIRST_PREVIEW):
                with tolerate_io_errors("a preview", on_error):
                    path = write_preview(config, components, folder, done, state, render_fn)
                    if done == FIRST_PREVIEW:
                        log("preview", f"{path} and so on; `lods view {folder}` shows the scene while it grows")
            if last or due(config.checkpoint.every, done):
                with tolerate_io_errors(f"the checkpoint of step {done}", on_error):
                    meta = {"static": shapes._asdict(), "config": dump(config)}
                    checkpoint.save(folder / "checkpoints", state, meta, config.checkpoint.keep)
            bar.update()
            if last:
                break
        seconds = {"compile": compile_seconds(compiled), "optimise": spent + (elapsed() if first < config.steps else 0.0)}
    return state, {name: round(x, 1) for name, x in seconds.items()}


def diagnosis(config: Config, components: Components, shapes: StaticShapes | None) -> Callable[[TrainState], dict[str, float]]:
    """state -> psi_displacement and fit_gain; nothing for objectives that learn nothing."""
    if components.objective.trained_query is None:
        return lambda state: {}
    shapes = shapes or components.setup.choose_shapes(config, config.resolution, None)
    scene, key = components.setup.scene(config, shapes), jax.random.fold_in(jax.random.key(config.seed), 3)
    diagnose = make_diagnosis(
        scene, components.prior, components.objective, components.cameras, config.batch, config.prior.vae_slicing
    )
    return lambda state: {
        name: float(x) for name, x in diagnose(state, components.psi, components.weights, components.texts, key).items()
    }


def check_alive(skipped: int, recent: list[dict[str, jax.Array]], done: int, dead: int, state: TrainState) -> int:
    """Tells of updates that were dropped, and ends a run in which none is left.

    Args:
      skipped: of the updates with the metrics `recent`. dead: how many updates before them were dropped in a row; returns the new
        number.
    """
    if skipped:
        nonfinite_leaf = [int(m["nonfinite_leaf"]) for m in recent]
        at = next(i for i, leaf in enumerate(nonfinite_leaf) if leaf >= 0)
        name = leaf_names({"theta": state.theta, "psi": state.psi, "fit": 0})[nonfinite_leaf[at]]
        log(
            "skip",
            f"{skipped} of the {len(recent)} updates up to step {done} were not finite and changed nothing: the first in step "
            f"{done - len(recent) + at + 1}, in {'the fit loss' if name == 'fit' else f'the gradient of {name}'}",
        )
    dead = dead + len(recent) if skipped == len(recent) else 0
    if dead >= GIVE_UP:
        raise UserError(
            f"step {done}: none of the last {dead} gradients was finite; try a smaller learning rate or guidance scale, or "
            "--debug-nans to find the operation"
        )
    return dead


@contextmanager
def tolerate_io_errors(what: str, on_error: str) -> Iterator[None]:
    """Tells of a file that could not be written, and goes on or, where on_error is "stop", ends the run."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore raises any of them for a full disk
        reason = " ".join(str(error).split())[:200]
        if on_error == "stop":
            raise UserError(f"{what} could not be written: {reason}") from error
        log("disk", f"{what} could not be written, training goes on: {reason}")


def due(every: int, done: int) -> bool:
    return every > 0 and done % every == 0


# --- what a person sees -----------------------------------------------------------------------------------------------------
def log(phase: str, text: str) -> None:
    """One line of a run, beside the progress bar if there is one; of several processes the first speaks."""
    if not is_first():
        return
    tqdm.write(f"{phase:<10}{escaped(text)}")
    sys.stdout.flush()


def show(bar: tqdm, line: dict[str, Any], config: Config, elapsed: float, done: int) -> None:
    """The newest figures in the progress bar; where there is no terminal, a line for each tenth of the run."""
    step, names = line["step"], ("score_rms", "fit", "psi_displacement", "fit_gain", "gaussians", "samples")
    figures = {name: line[name] for name in names if name in line}
    text = ", ".join(f"{name} {x:.3g}" if isinstance(x, float) else f"{name} {x}" for name, x in figures.items())
    bar.set_postfix_str(text, refresh=False)
    if bar.disable and done > 1 and 10 * step // config.steps > 10 * (step - config.output.log_every) // config.steps:
        log("", f"step {step} of {config.steps}: {text}, {elapsed / done * (config.steps - step):.0f} s left")


# --- the end, and signals ----------------------------------------------------------------------------------------------------
def outcome(config: Config, state: TrainState, seconds: dict[str, float]) -> dict[str, Any]:
    """What run.json says at the end."""
    done = int(state.step)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes there, in KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    end = "finished" if done >= config.steps else "stopped"
    return {"state": end, "step": done, "skipped": int(state.skipped), "seconds": seconds, "peak_gib": round(peak, 2)}


def mean(metrics: list[dict[str, jax.Array]]) -> dict[str, float]:
    """Means over the steps that have a value, by name; a name that none of them has is left out."""
    values = {name: np.asarray([m[name] for m in metrics]) for name in metrics[0] if name != "nonfinite_leaf"}
    return {name: float(np.mean(x[~np.isnan(x)])) for name, x in values.items() if not np.isnan(x).all()}


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Yields a list that SIGINT or SIGTERM puts its number into. A second Ctrl-C ends the program at once."""
    stop: list[int] = []

    def note(number, frame):
        stop.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log("stop", "finishing the step and writing what there is; Ctrl-C again ends at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
