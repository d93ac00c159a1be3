"""A run: a loop around the compiled step that leaves a folder (`run_directory` lists its files) and tells a person how it goes.

All that training changes is in the checkpoint: a resumed run continues bit for bit.
"""

import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lods_jax.config import Config, check, differences, dump, parse_yaml
from lods_jax.core.errors import UserError, one_line, release_remarks
from lods_jax.core.files import replacing
from lods_jax.core.types import TrainState
from lods_jax.priors.user_adapters import note_line, unused_words
from lods_jax.runs import provenance
from lods_jax.runs.artifacts import scene_renderer, write_page_of, write_results
from lods_jax.runs.export import mesh_of_run
from lods_jax.runs.log_window import Window, read_window
from lods_jax.runs.run_directory import check_empty, check_files, locked, point_latest_at, read_json, read_metrics, write_json
from lods_jax.runs.training_loop import Start, diagnosis, log, stops, tolerate_io_errors, training_loop
from lods_jax.training import checkpoint, image_to_3d, textual_inversion
from lods_jax.training.build import Components, build, predictions_per_view
from lods_jax.training.checks import note_on_timesteps
from lods_jax.training.compilation import Once, memory
from lods_jax.training.cost import memory_errors_told
from lods_jax.training.distributed import agreed, all_or_none, from_first, is_first
from lods_jax.training.loop import first_state, mode_of, state_shapes, train
from lods_jax.training.memory_plan import read_memory
from lods_jax.training.planning import plan_run
from lods_jax.training.run_inputs import changed_inputs, keep_object, keep_psi
from lods_jax.training.scene_setups import read_shapes


# --- a run and its folder ---------------------------------------------------------------------------------------------------
def start(config: Config, folder: Path, once: Once | None = None) -> int:
    """Runs a configuration in a new or empty folder.

    Args:
        config: of the run.
        folder: of the run.
        once: holds what is compiled, see `compilation.memory`. Runs that differ only in the prompt may share it.

    Returns:
        The exit code: 0, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: the configuration is invalid, or the folder holds something.
    """
    once = memory() if once is None else once
    with ExitStack() as held:
        with all_or_none():
            if is_first():
                check_empty(folder)
            config = check(config)
            components = build(config, once=once)  # before anything is written: most mistakes show here
            notes = components.setup.notes()
            mode_of(components)
        components, said = plan_run(config, components, once)
        with all_or_none():
            if is_first():
                held.enter_context(locked(folder, empty=True))
        if is_first():  # and all of them can begin
            with replacing(folder / "config.yaml") as file:
                file.write_text(dump(config), encoding="utf-8")
            point_latest_at(folder)
        for note in notes:
            log("scene", note)
        if note := note_on_timesteps(config, components.objective):
            log("objective", note)
        if said:
            log("memory", said)
        return execute(config, components, folder, Start(first_state(components)), once)


def resume(config: Config, folder: Path, once: Once | None = None, changed: bool = False) -> int:
    """Continues a run from its newest whole checkpoint, bit for bit on the same number of devices.

    Args:
        config: of the folder's config.yaml.
        folder: of the run.
        once: holds what is compiled, see `compilation.memory`. Runs that differ only in the prompt may share it.
        changed: whether to go on although the checkpoint was made with other settings; the end will be that of neither.

    Returns:
        The exit code, as `start`.

    Raises:
        UserError: the settings have changed, the folder is held by another process, or processes find different checkpoints.
    """
    once = memory() if once is None else once
    with ExitStack() as held:
        with all_or_none():
            components = build(check(config), folder, once)
            mode_of(components)
            if is_first():
                held.enter_context(locked(folder))
            begin = last_state(config, components, folder, changed)
        at = int(begin.state.step)
        if (agreed(at), agreed(-at)) != (at, -at):
            raise UserError(f"the newest whole checkpoint that this process finds is of step {at}, another process finds another")
        components, said = plan_run(config, components, once, begin.memory)
        if said:
            log("memory", said)
        return execute(config, components, folder, begin, once)


def last_state(config: Config, components: Components, folder: Path, changed: bool) -> Start:
    """The state that a run goes on from: its newest whole checkpoint, or the beginning.

    Args:
        config: of the run.
        components: of the run.
        folder: of the run.
        changed: whether other settings than the checkpoint's are allowed.

    Returns:
        State, static shapes, log window and memory plan.

    Raises:
        UserError: the settings or a file that they name have changed, the checkpoint does not hold its static shapes, or a
            finished run has none.
    """
    if not checkpoint.steps(folder / "checkpoints"):
        if read_json(folder / "run.json").get("state") == "finished":
            raise UserError(
                f"{folder} is finished and has no checkpoint to go on from, and its results would be written over: for the same "
                f"run once more pass --config {folder / 'config.yaml'} to the command that made it"
            )
        log("resume", f"{folder} has no checkpoint: from the beginning")
        return Start(first_state(components))
    like = state_shapes(components)
    state, meta = checkpoint.restore(folder / "checkpoints", like, tell=lambda line: log("resume", line))
    step = int(state.step)
    meta = meta if isinstance(meta, dict) else {}
    before, shapes = meta.get("config"), meta.get("static")
    # Which checkpoints did not always hold.
    differ = differences(parse_yaml(before, "the checkpoint"), config) if isinstance(before, str) else []
    if differ and not changed:
        raise UserError(
            f"the settings of {folder} have changed since its checkpoint: {'; '.join(differ)}. Put them back in config.yaml, "
            "or pass --changed to go on with them"
        )
    if (files := changed_inputs(meta.get("inputs"), components.inputs)) and not changed:
        raise UserError(
            f"{files[0]} is not what it was at the checkpoint of {folder}: put it back, or pass --changed to go on with it"
        )
    log("resume", f"{folder} from step {step}" + (f", changed: {'; '.join(differ)}" if differ else ""))
    try:
        rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["step"] <= step]
        before = Window(step, skipped=int(state.skipped), seconds=rows[-1].get("seconds", 0.0) if rows else 0.0)
        # With other settings the plan is made anew.
        plan = None if differ else read_memory(meta.get("memory"))
        return Start(state, read_shapes(shapes), read_window(meta.get("log"), before), plan)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoint of step {step} of {folder} does not say what it was compiled for") from error


def execute(config: Config, components: Components, folder: Path, begin: Start, once: Once) -> int:
    """Runs from a state to the end or to a signal, and writes the results in both cases.

    Args:
        config: of the run.
        components: of the run.
        folder: of the run.
        begin: state, static shapes and log window.
        once: holds what is compiled, see `compilation.memory`. Runs that differ only in the prompt may share it.

    Returns:
        The exit code, as `start`.
    """
    jax.config.update("jax_debug_nans", config.debug_nans)
    components = with_picture(config, components, folder) if components.image_inputs else components
    if not is_first():
        return worker_loop(config, components, begin, once)
    note = note_of(config, components)
    open_folder(config, components, folder, note, fresh=begin.shapes is None)
    render_fn, diagnose = scene_renderer(components.setup, config.output.size, once), diagnosis(components, begin.shapes, once)
    with catch_signals() as stop:
        try:
            steps = train(components, begin.state, begin.shapes, once=once)
            with memory_errors_told(config, components.prior.views):
                state, seconds = training_loop(config, components, folder, begin, steps, diagnose, render_fn, stop)
            log("write", "video, stills, scene and page")
            began = time.monotonic()
            write_results(config, components, folder, state, render_fn, log)
            if components.setup.exports_mesh:
                log("", mesh_of_run(components, folder, state, once))
            seconds["write"] = round(time.monotonic() - began, 1)
        except BaseException as error:
            with suppress(OSError):  # what went wrong may be the disk
                write_json(folder / "run.json", note | {"state": "failed", "error": f"{type(error).__name__}: {one_line(error)}"})
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


def note_of(config: Config, components: Components) -> dict[str, Any]:
    """The entries of run.json that say what a run is made by and of.

    Args:
        config: of the run.
        components: of the run.

    Returns:
        A dict of JSON values.
    """
    note = provenance.describe() | {"prior_sha256": components.prior_sha256}
    note |= {"predictions_per_view": predictions_per_view(config, components.objective)}
    if components.image_inputs:
        note |= {"pose_sha256": components.image_inputs.zero123_sha256}
    if components.reward and components.reward.judge.sha256:
        note |= {"reward_sha256": components.reward.judge.sha256}
    if components.adapters:
        note |= {"adapters": components.adapters}
    if config.prior.memory == "auto":
        note |= {"memory": components.plan.memory._asdict()}
    return note


def open_folder(config: Config, components: Components, folder: Path, note: dict[str, Any], fresh: bool) -> None:
    """Says that a run has begun, on the screen and in its folder, and keeps there what it starts from.

    Args:
        config: of the run.
        components: of the run.
        folder: of the run.
        note: from `note_of`.
        fresh: whether this is its first sitting.
    """
    check_files(folder)
    release_remarks()
    write_json(folder / "run.json", note | {"state": "running"})
    log("run", f"{config.prompt!r}, {config.objective.name} on the prior {config.prior.name}, seed {config.seed}: {folder}")
    for adapter in components.adapters:
        log("prior", note_line(adapter))
    texts = (config.prompt, config.negative_prompt, config.source_prompt, config.objective.adapter_text)
    for line in unused_words(components.adapters, texts):
        log("prior", line)
    if config.objective.init_psi and fresh:
        keep_psi(folder, components.psi)
    if components.source and fresh:
        keep_object(folder, components.source)


def with_picture(config: Config, components: Components, folder: Path) -> Components:
    """The components with the prompt fitted to the image, and copies of both in the folder, by the first process for all.

    Args:
        config: of the run.
        components: of the run.
        folder: of the run.

    Returns:
        New components.
    """
    if is_first():
        with tolerate_io_errors("the picture", "stop"):
            image_to_3d.keep(folder, config.image, components.image_inputs)
    if not config.image.invert:
        return components
    by = np.zeros(components.texts["prompt"].shape[1:], np.float32)
    if is_first():
        held = textual_inversion.load_textual_inversion(folder, config)
        by = fitted_prompt(config, components, folder) if held is None else held
    by = from_first(by)  # the others may have a folder of another name, and need not see this one
    return components._replace(texts=textual_inversion.shift_embeddings(components.texts, jnp.asarray(by)))


def fitted_prompt(config: Config, components: Components, folder: Path) -> Float[np.ndarray, "k d"]:
    """The shift of the prompt's embedding that makes it denoise the image of a run, with a copy in the folder.

    Args:
        config: of the run.
        components: of the run.
        folder: of the run.

    Returns:
        [k d].
    """
    log("picture", f"fits the embedding of the prompt, {config.image.invert} steps")
    c = components
    by = textual_inversion.textual_inversion(config, c.prior, c.weights, c.texts["prompt"], c.image_inputs.reference.image)
    with tolerate_io_errors("the fitted embedding", "stop"):
        textual_inversion.save_textual_inversion(folder, config, by, c.texts, c.prior.pooled)
    return np.asarray(by)


def worker_loop(config: Config, components: Components, begin: Start, once: Once) -> int:
    """The steps of every process but the first: the same steps to the same end, without writing anything.

    Args:
        config: of the run.
        components: of the run.
        begin: state, static shapes and log window.
        once: holds what is compiled, see `compilation.memory`. Runs that differ only in the prompt may share it.

    Returns:
        The exit code, as `start`.
    """
    with catch_signals() as stop:
        for done, _, _, _ in train(components, begin.state, begin.shapes, once=once):
            if stops(config, done, stop):
                break
        agreed(0)  # the first process writes the results, and is waited for: without it the others could not stay
    return 128 + stop[0] if stop else 0


# --- the end, and signals ----------------------------------------------------------------------------------------------------
def outcome(config: Config, state: TrainState, seconds: dict[str, float]) -> dict[str, Any]:
    """The entries of run.json at the end of a run.

    Args:
        config: of the run.
        state: its last state.
        seconds: {phase: seconds}.

    Returns:
        A dict of JSON values.
    """
    done = int(state.step)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes there, in KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    end = "finished" if done >= config.steps else "stopped"
    return {"state": end, "step": done, "skipped": int(state.skipped), "seconds": seconds, "peak_gib": round(peak, 2)}


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Yields a list that receives the number of a SIGINT or SIGTERM. A second Ctrl-C ends the program at once.

    Yields:
        The list.
    """
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
