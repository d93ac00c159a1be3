"""The loop of a run as a person sees it: the steps, and beside them progress, metrics, previews and checkpoints."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from lods_jax.config import Config, dump
from lods_jax.core.errors import UserError, escaped, one_line
from lods_jax.core.random import run_key
from lods_jax.core.trees import leaf_names
from lods_jax.core.types import TrainState
from lods_jax.distillation.diagnosis import make_diagnosis
from lods_jax.distillation.view_chunks import chunk_size
from lods_jax.runs.artifacts import SceneRenderer, write_preview
from lods_jax.runs.log_window import INDEX, Window
from lods_jax.runs.run_directory import append, event_log, truncate_metrics
from lods_jax.training import checkpoint
from lods_jax.training.build import Components
from lods_jax.training.compilation import Once, compilations, compile_seconds
from lods_jax.training.distributed import agreed, is_first
from lods_jax.training.loop import Progress, first_shapes, views_per_device, views_together
from lods_jax.training.memory_plan import MemoryPlan
from lods_jax.training.scene_setups import StaticShapes

FIRST_PREVIEW = 10  # steps: something to look at within a minute
GIVE_UP = 20  # updates in a row that were dropped


class Start(NamedTuple):
    """What a run begins with, or resumes from.

    Attributes:
        state: of the training.
        shapes: static shapes of the last step; None before the first.
        window: measurements since the last line of the log.
        memory: plan of the run that goes on; None where it has none yet.
    """

    state: TrainState
    shapes: StaticShapes | None = None
    window: Window = Window()
    memory: MemoryPlan | None = None


def training_loop(
    config: Config,
    components: Components,
    folder: Path,
    begin: Start,
    steps: Iterator[Progress],
    diagnose: Callable[[TrainState], dict[str, float]],
    render_fn: SceneRenderer,
    stop: list[int],
) -> tuple[TrainState, dict[str, float]]:
    """Goes through the steps, with progress bar, log, previews and checkpoints.

    Args:
        config: of the run.
        components: of the run.
        folder: of the run.
        begin: state, static shapes and log window.
        steps: from `loop.train`.
        diagnose: state -> further metrics.
        render_fn: from `scene_renderer`.
        stop: holds a signal once the run is to end early.

    Returns:
        The last state, and seconds: of compilation in this sitting, of optimisation in all sittings. Compilation at any step, and
            for previews, is no optimisation.
    """
    first, window, state, recent, shape, began = int(begin.state.step), begin.window, begin.state, [], None, time.monotonic()
    truncate_metrics(folder / "metrics.jsonl", window.logged)
    if first < config.steps:
        log("compile", "about a minute on a new machine, some seconds on one that has done it before")
    bar = tqdm(total=config.steps, initial=first, disable=None, unit="step", mininterval=0.5)
    with bar, event_log(folder / "events", window.logged, config.output.tensorboard) as write_events, compilations() as compiled:
        elapsed = lambda: time.monotonic() - began - compile_seconds(compiled) if first < config.steps else 0.0  # noqa: E731
        for done, state, shapes, metrics in steps:
            recent.append(metrics)
            last = stops(config, done, stop)
            on_error = config.checkpoint.on_error
            if last or is_logged(config, done):
                window = window.after(recent)
                line = {"step": done} | window.means() | components.setup.count(state.aux) | diagnose(state)
                line |= {"skipped": int(state.skipped), "seconds": round(begin.window.seconds + elapsed(), 1)}
                with tolerate_io_errors("metrics.jsonl", on_error):
                    append(folder / "metrics.jsonl", line)
                    write_events(line)
                show(bar, line, config, elapsed(), done - first)
                closed = check_alive(window, recent, state)
                # A line that a signal asks for is none of the uninterrupted run: the next goes over its steps too.
                window, recent = closed if is_logged(config, done) else window, []
            if done == first + 1:
                took = f"{compile_seconds(compiled):.0f} s of compilation"
                log("optimise", f"{config.steps - first} steps of {config.batch} views ({took})")
            elif shapes != shape:
                log("compile", f"the step again: {shapes.resolution} pixels, capacity {shapes.capacity:,} a view")
            shape = shapes
            if last or due(config.checkpoint.every, done):  # before the preview, whose failure may end the run
                with tolerate_io_errors(f"the checkpoint of step {done}", "stop" if last else on_error):
                    measured = window.after(recent)._replace(seconds=begin.window.seconds + elapsed())
                    save(config, components, folder, state, shapes, measured)
            if is_previewed(config, done):
                with tolerate_io_errors("a preview", on_error):
                    path = write_preview(config, components, folder, done, state, render_fn)
                    if done == FIRST_PREVIEW:
                        log("preview", f"{path} and so on; `lods view {folder}` shows the scene while it grows")
            bar.update()
            if last:
                break
        seconds = {"compile": compile_seconds(compiled), "optimise": begin.window.seconds + elapsed()}
    return state, {name: round(x, 1) for name, x in seconds.items()}


def is_logged(config: Config, done: int) -> bool:
    """Whether the log of an uninterrupted run has a line for a step.

    Args:
        config: of the run.
        done: the step.

    Returns:
        True if it has.
    """
    return done in (1, config.steps) or due(config.output.log_every, done)


def is_previewed(config: Config, done: int) -> bool:
    """Whether a preview is written after a step.

    Args:
        config: of the run.
        done: the step.

    Returns:
        True if it is.
    """
    return due(config.output.preview_every, done) or (config.output.preview_every > 0 and done == FIRST_PREVIEW)


def save(config: Config, components: Components, folder: Path, state: TrainState, shapes: StaticShapes, window: Window) -> None:
    """Saves a checkpoint: the state, and what a resumed run needs to decide and log alike.

    Args:
        config: of the run.
        components: of the run.
        folder: of the run.
        state: of the training.
        shapes: static shapes of the last step.
        window: measurements since the last line of the log.
    """
    meta = {"static": shapes._asdict(), "config": dump(config), "inputs": components.inputs, "log": window._asdict()}
    meta |= {"memory": components.plan.memory._asdict()}
    checkpoint.save(folder / "checkpoints", state, meta, config.checkpoint.keep)


def stops(config: Config, done: int, stop: list[int]) -> bool:
    """Whether a run ends with a step. Several processes tell each other of signals at logged steps, so that all end alike.

    Args:
        config: of the run.
        done: the step.
        stop: signals that this process has received.

    Returns:
        True if it ends.
    """
    if jax.process_count() > 1:
        heard = agreed(stop[0] if stop else 0) if due(config.output.log_every, done) else 0
        stop[:] = [heard] if heard else stop
        return done == config.steps or heard > 0
    return done == config.steps or bool(stop)


def diagnosis(components: Components, shapes: StaticShapes | None, once: Once) -> Callable[[TrainState], dict[str, float]]:
    """Builds the function that measures whether the learnable branch has learned.

    Args:
        components: of the run.
        shapes: static shapes, or None for the first.
        once: holds what is compiled, see `compilation.memory`.

    Returns:
        state -> {"psi_displacement", "fit_gain"}; {} for objectives that train no query.
    """
    if components.objective.trained_query is None:
        return lambda state: {}
    plan, key, shapes = components.plan, run_key(components.plan.seed, "train"), shapes or first_shapes(components)

    def compiled() -> Callable:
        scene = components.setup.scene(shapes)
        return make_diagnosis(
            scene,
            components.prior,
            components.objective,
            components.cameras,
            plan.batch,
            plan.memory.vae_slicing,
            chunk_size(plan.memory.view_chunk or plan.batch, views_per_device(components), views_together(components)),
        )

    diagnose = once(("diagnose", shapes, plan.memory), compiled)
    return lambda state: {
        name: float(x) for name, x in diagnose(state, components.psi, components.weights, components.texts, key).items()
    }


def check_alive(window: Window, recent: Sequence[dict[str, jax.Array]], state: TrainState) -> Window:
    """Logs dropped updates, and ends a run in which all of the last GIVE_UP were dropped.

    Args:
        window: of the line that was just written.
        recent: metrics of its steps in this sitting.
        state: after these steps.

    Returns:
        The next window.

    Raises:
        UserError: the last GIVE_UP updates were dropped.
    """
    skipped, done = int(state.skipped) - window.skipped, window.logged + window.steps
    broken = [(done - len(recent) + 1 + i, leaf) for i, m in enumerate(recent) if (leaf := int(m[INDEX])) >= 0]
    if skipped:
        first = ""
        if broken:  # else it was in a sitting before, which has told of it
            step, leaf = broken[0]
            name = leaf_names({"theta": state.theta, "psi": state.psi, "fit": 0})[leaf]
            first = f": the first in step {step}, in {'the fit loss' if name == 'fit' else f'the gradient of {name}'}"
        log("skip", f"{skipped} of the {window.steps} updates up to step {done} were not finite and changed nothing{first}")
    closed = window.closed(int(state.skipped))
    if closed.dead >= GIVE_UP:
        raise UserError(
            f"step {done}: none of the last {closed.dead} gradients was finite; try a smaller learning rate or guidance scale, "
            "or --debug-nans to find the operation"
        )
    return closed


@contextmanager
def tolerate_io_errors(what: str, on_error: str) -> Iterator[None]:
    """Logs an error of a file that cannot be written, and goes on or ends the run.

    Args:
        what: was to be written.
        on_error: "continue" or "stop".

    Raises:
        UserError: there was an error, and `on_error` is "stop".
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore raises any of them for a full disk
        reason = one_line(error)[:300]
        if on_error == "stop":
            raise UserError(f"{what} could not be written: {reason}") from error
        log("disk", f"{what} could not be written, training goes on: {reason}")


def due(every: int, done: int) -> bool:
    """Whether a thing that happens every so many steps happens after a step.

    Args:
        every: number of steps; 0 is never.
        done: the step.

    Returns:
        True if it does.

    Examples:
        >>> due(100, 200), due(0, 200)
        (True, False)
    """
    return every > 0 and done % every == 0


# --- what a person sees -----------------------------------------------------------------------------------------------------
def log(phase: str, text: str) -> None:
    """Prints a line of a run, beside the progress bar. Of several processes only the first prints.

    Args:
        phase: first word of the line.
        text: the rest.
    """
    if not is_first():
        return
    tqdm.write(f"{phase:<10}{escaped(text)}")
    sys.stdout.flush()


def show(bar: tqdm, line: dict[str, Any], config: Config, elapsed: float, done: int) -> None:
    """Shows the newest figures in the progress bar; without a terminal, prints a line for each tenth of the run.

    Args:
        bar: of the run.
        line: row of the log.
        config: of the run.
        elapsed: seconds of optimisation in this sitting.
        done: steps of this sitting.
    """
    step, names = line["step"], ("score_rms", "fit", "psi_displacement", "fit_gain", "gaussians", "samples")
    figures = {name: line[name] for name in names if name in line}
    text = ", ".join(f"{name} {x:.3g}" if isinstance(x, float) else f"{name} {x}" for name, x in figures.items())
    bar.set_postfix_str(text, refresh=False)
    if bar.disable and done > 1 and 10 * step // config.steps > 10 * (step - config.output.log_every) // config.steps:
        log("", f"step {step} of {config.steps}: {text}, {elapsed / done * (config.steps - step):.0f} s left")
