"""What a bench leaves beside its runs: table.md and index.html, which opens from disk, without a network."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lods_jax.core.errors import tell
from lods_jax.core.files import replacing
from lods_jax.core.statistics import bootstrap, interquartile_mean
from lods_jax.priors.registry import embedded_world
from lods_jax.runs.bench.figures import figures_of, is_cost
from lods_jax.runs.bench.plan import Block, Job, blocks
from lods_jax.runs.bench.ranking import (
    Order,
    Rows,
    agreement,
    differences,
    meaning,
    means,
    order_of,
    seconds_apart,
)
from lods_jax.runs.bench.suite import Suite
from lods_jax.runs.bench.tuning import Tuned
from lods_jax.runs.evaluate import format_number
from lods_jax.runs.page import document, frames_card, numbered
from lods_jax.runs.plots import INK, Curve, scatter

FRAMES, SIZE = 8, 160  # of each object in the grid


def write_report(
    suite: Suite, jobs: Sequence[Job], done: Mapping[str, Mapping[str, Any]], out: Path, tuned: Mapping[tuple, Tuned]
) -> str:
    """Writes table.md and index.html.

    Args:
        suite: the suite.
        jobs: of its table.
        done: {folder: row}.
        out: folder of the bench.
        tuned: {(scene, prior, method): what tuning kept}.

    Returns:
        The table of all runs, as text.
    """
    rows = seconds_apart([done[str(job.folder)] for job in jobs if str(job.folder) in done])
    if not rows:
        return ""
    text = markdown(suite, rows)
    with replacing(out / "table.md") as file:
        file.write_text(text, encoding="utf-8")
    store: list[str] = []
    missing = len(jobs) - len(rows)
    body = [
        f"<header><h1>{html.escape(suite.title or out.name)}</h1><p class=soft>{len(rows)} of {len(jobs)} runs. Interquartile "
        f"means with 95 % bootstrap intervals; differences are to {html.escape(suite.baseline)}, run by run.</p></header><main>",
        f"<p class=missing>{missing} runs are not there yet: the same command goes on.</p>" if missing else "",
        pictures(suite, jobs, done, out, store),
        *(section_of(suite, block, rows) for block in blocks(suite)),
        stability(suite, rows),
        tuning_section(tuned),
        repeated(rows),
        "</main>",
    ]
    with replacing(out / "index.html") as file:
        file.write_text(document(suite.title or out.name, body, store, wide=True), encoding="utf-8")
    return text


def of_block(rows: Rows, block: Block) -> Rows:
    """The rows of a block, a scene and a prior."""
    return [row for row in rows if (row["scene"], row["prior_name"]) == block]


def name_of(block: Block) -> str:
    """A block in words; "all runs" where the suite has one scene and one prior."""
    return ", ".join(word for word in block if word) or "all runs"


def table(suite: Suite, rows: Rows, baseline: str | None = None) -> list[list[str]]:
    """The cells of a table: a row for each figure, a column for each method.

    Args:
        suite: the suite.
        rows: of one block.
        baseline: a method whose figures are taken off, run by run, and which has no column; None for the figures themselves.

    Returns:
        Rows of cells; the first is the head.
    """
    methods = [method for method in suite.methods if method != baseline]
    lines = [["", *methods]]
    for figure, about in figures_of(suite, rows).items():
        hint = "" if is_cost(figure) else f" ({meaning(figure)})"
        cells = differences(rows, methods, figure, baseline) if baseline else means(rows, methods, figure)
        lines.append([f"{figure.replace(': ', ' ')}: {about}{hint}", *cells])  # a colon parts a name from its meaning
    return [*lines, ["runs", *(str(sum(row["method"] == method for row in rows)) for method in methods)]]


def markdown(suite: Suite, rows: Rows) -> str:
    """The tables of all blocks as Markdown, from the rows of a suite."""
    parts = []
    for block in blocks(suite):
        own = of_block(rows, block)
        parts += [f"## {name_of(block)}"] if len(blocks(suite)) > 1 else []
        parts += [markdown_table(table(suite, own)), f"Minus that of {suite.baseline}, run by run:"]
        parts += [markdown_table(table(suite, own, suite.baseline))]
    return "\n\n".join(parts) + "\n"


def markdown_table(lines: list[list[str]]) -> str:
    """The lines of a table, the first of them the head, as Markdown."""
    head, *body = ("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def html_table(lines: list[list[str]], caption: str = "") -> str:
    """The lines of a table, the first of them the head, as HTML with a caption."""
    unbroken = lambda cell: cell.replace(" to ", "\u00a0to\u00a0")  # noqa: E731
    head, *body = [[line[0], *map(unbroken, line[1:])] for line in lines]
    top = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in head)
    rest = "".join(
        f"<tr><th scope=row>{row_head(line[0])}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line[1:])}</tr>"
        for line in body
    )
    said = f"<p class=soft>{html.escape(caption)}</p>" if caption else ""
    return f"{said}<div class=scroll><table><tr>{top}</tr>{rest}</table></div>"


def row_head(text: str) -> str:
    """The name of a figure, and below it what it means, as HTML.

    Args:
        text: "name: meaning", or a name alone; code in backticks.

    Returns:
        HTML.

    Examples:
        >>> row_head("kid: a distance")
        'kid<small>a distance</small>'
    """
    name, _, about = html.escape(text).partition(": ")
    said = re.sub("`(.*?)`", r"<code>\1</code>", about)
    return f"{name}<small>{said}</small>" if about else name


def section_of(suite: Suite, block: Block, rows: Rows) -> str:
    """The sections of a block: its table, quality over seconds and over predictions, and the course of figures over steps.

    Args:
        suite: the suite.
        block: scene and prior.
        rows: of all blocks.

    Returns:
        HTML; "" without rows.
    """
    own = of_block(rows, block)
    if not own:
        return ""
    apart = html_table(table(suite, own, suite.baseline), f"Minus that of {suite.baseline}, run by run")
    plots = "".join(
        f"<figure>{scatter(f'{suite.rank_by} over {label} ({meaning(suite.rank_by)})', label, curves)}</figure>"
        for cost, label in (("seconds", "seconds of optimisation"), ("predictions", "thousand noise predictions"))
        if (curves := curves_of(suite, own, cost, suite.rank_by))
    )
    courses = "".join(
        f"<figure>{scatter(f'{figure} ({meaning(figure)})', 'steps', curves)}</figure>"
        for figure in suite.curves
        if (curves := curves_of(suite, own, "step", figure))
    )
    title = html.escape(name_of(block) if len(blocks(suite)) > 1 else "Figures")
    head = f"<section><h2>{title}</h2>{html_table(table(suite, own))}{apart}</section>"
    return head + plots_section(suite, "Quality over cost", plots) + plots_section(suite, "In the course of the runs", courses)


def plots_section(suite: Suite, title: str, plots: str) -> str:
    """Plots below the colours of their methods.

    Args:
        suite: names the methods.
        title: of the section.
        plots: HTML.

    Returns:
        HTML; "" without plots.
    """
    key = "".join(
        f"<span><i style='background:{INK[i % len(INK)]}'></i>{html.escape(method)}</span>"
        for i, method in enumerate(suite.methods)
    )
    return f"<section><h2>{title}</h2><p class='key soft'>{key}</p><div class=plots>{plots}</div></section>" if plots else ""


# --- quality over cost -------------------------------------------------------------------------------------------------------
def curves_of(suite: Suite, rows: Rows, cost: str, figure: str) -> list[Curve]:
    """The way of each method's figure over a cost: means over its runs, one point for each look and one for the end.

    Args:
        suite: names the methods.
        rows: of one block.
        cost: "seconds", "predictions" or "step".
        figure: of the rows.

    Returns:
        A curve for each method that has the figure.
    """
    found: list[Curve] = []
    for i, method in enumerate(suite.methods):
        own = [row for row in rows if row["method"] == method]
        looks: dict[float, list[tuple[float, float]]] = {}
        for row in own:
            for at, point in [*((point["step"], point) for point in row.get("curve", [])), (math.inf, row)]:
                if point.get(cost) is not None and point.get(figure) is not None:
                    looks.setdefault(at, []).append((float(point[cost]), float(point[figure])))
        points = [tuple(interquartile_mean(np.array(x)) for x in zip(*held, strict=True)) for _, held in sorted(looks.items())]
        if points:
            last = np.array([y for _, y in looks[max(looks)]])
            found.append((INK[i % len(INK)], points, bootstrap(last)))
    return found


# --- how firmly the order holds ----------------------------------------------------------------------------------------------
def stability(suite: Suite, rows: Rows) -> str:
    """The section on the order of methods: how often it holds, and Kendall's tau between figures, scenes, priors and sets.

    Args:
        suite: the suite.
        rows: of all blocks.

    Returns:
        HTML; "" for fewer than two methods.
    """
    methods, parts = list(suite.methods), []
    orders = {name_of(block): order_of(of_block(rows, block), methods, suite.rank_by) for block in blocks(suite)}
    for name in suite.prompts if len(suite.prompts) > 1 else ():
        orders[f"prompts {name}"] = order_of([row for row in rows if row["prompt_set"] == name], methods, suite.rank_by)
    for name, order in orders.items():
        if order:
            parts.append(html_table(order_table(order), f"{name}, by {suite.rank_by}: {order_line(order)}"))
    known = {name: order for name, order in orders.items() if order}
    parts.append(
        tau_table(known, f"Kendall's tau between orders by {suite.rank_by}; 1 is the same order") if len(known) > 1 else ""
    )
    for block in blocks(suite):
        figures = [name for name in figures_of(suite, rows) if not is_cost(name)]
        by_figure = {name: order for name in figures if (order := order_of(of_block(rows, block), methods, name, draws=1))}
        if len(by_figure) > 1:
            said = f"{name_of(block)}: Kendall's tau between orders by each two figures"
            parts.append(f"<details><summary>{html.escape(said)}</summary>{tau_table(by_figure)}</details>")
    return f"<section><h2>Does the order hold?</h2>{''.join(parts)}</section>" if any(parts) else ""


def order_line(order: Order) -> str:
    """An order in words, and how often it holds."""
    return (
        f"{' < '.join(order.methods)}; the whole order holds in {order.held:.0%} of the bootstrap's draws of {order.n} runs. "
        "Cells: in how many the method of the row is better than that of the column."
    )


def order_table(order: Order) -> list[list[str]]:
    """Cells of an order: how often each method is better than each other."""
    lines = [["", *order.methods]]
    for i, method in enumerate(order.methods):
        lines.append([method, *("" if i == j else f"{order.better[i, j]:.0%}" for j in range(len(order.methods)))])
    return lines


def tau_table(orders: Mapping[str, Order], caption: str = "") -> str:
    """Kendall's tau between each two of some orders, as HTML with a caption."""
    tau = lambda a, b: "-" if (found := agreement(orders[a], orders[b])) is None else f"{found:.2f}"  # noqa: E731
    return html_table([["", *orders], *([a, *(tau(a, b) for b in orders)] for a in orders)], caption)


def tuning_section(tuned: Mapping[tuple, Tuned]) -> str:
    """The section on tuning: every trial, and what was kept; "" if nothing was tuned."""
    rows = [["method", "kept", "trials: values and loss", "at the edge"]]
    for (scene, prior, method), end in tuned.items():
        said = lambda values: ", ".join(f"{key} {value}" for key, value in values.items()) or "as it is"  # noqa: E731
        tried = "; ".join(f"{said(trial.values)}: {trial.loss:.3g}" for trial in end.trials)
        where = ", ".join(word for word in (scene, prior, method) if word)
        rows.append([where, said(end.values), tried, ", ".join(end.edges) or "no"])
    return f"<section><h2>Tuning</h2>{html_table(rows)}</section>" if tuned else ""


# --- pictures ----------------------------------------------------------------------------------------------------------------
def pictures(suite: Suite, jobs: Sequence[Job], done: Mapping[str, Mapping[str, Any]], out: Path, store: list[str]) -> str:
    """The pictures of all runs: a row for each prompt and seed, the true object first where the world has one. All turn together.

    Args:
        suite: the suite.
        jobs: of its table.
        done: {folder: row}.
        out: folder of the bench.
        store: gets the data of the page.

    Returns:
        HTML.
    """
    cells: dict[tuple, list[str]] = {}
    for job in jobs:
        if str(job.folder) in done:
            key = (job.scene, job.prior, job.config.prompt, job.config.seed)
            row = done[str(job.folder)]
            value = row.get(suite.rank_by)
            said = f"{job.method}, {suite.rank_by} {format_number(value)}" if value is not None else job.method
            cells.setdefault(key, truth_of(job.config.prompt, store)).append(picture(out / job.folder, said, store))
    parts = []
    for (scene, prior, prompt, seed), held in cells.items():
        head = ", ".join(word for word in (prompt, f"seed {seed}", scene, prior) if word)
        parts.append(f"<h3>{html.escape(head)}</h3><div class=tiles>{''.join(held)}</div>")
    bar = "<div class=bar><button type=button data-act=spin>Turn or stop</button></div>"
    return f"<section class=runs><h2>Every run</h2>{bar}{''.join(parts)}</section>"


def truth_of(prompt: str, store: list[str]) -> list[str]:
    """The tile of a prompt's true object, in a list; an empty list for a prompt of another world. `store` gets its data."""
    frames = embedded_world().true_renders(prompt, FRAMES, SIZE)
    return [] if frames is None else [frames_card("the true object", frames, store)]


def picture(folder: Path, title: str, store: list[str]) -> str:
    """The tile of a run: its stills as frames that turn.

    Args:
        folder: of the run.
        title: below the picture.
        store: gets the data of the page.

    Returns:
        HTML.
    """
    try:
        frames = [np.asarray(Image.open(file).convert("RGB").resize((SIZE, SIZE))) for _, file in numbered(folder / "stills")]
    except OSError as error:
        tell(f"{folder}: the page does not show its stills: {error}")
        frames = []
    return frames_card(title, np.stack(frames) / 255, store) if frames else f"<figure><p>{html.escape(title)}</p></figure>"


def repeated(rows: Rows) -> str:
    """What repeats the rows: commits, versions and devices, each once."""
    said = lambda name: ", ".join(dict.fromkeys(str(row.get(name)) for row in rows))  # noqa: E731
    about = html_table([["", ""], *([name, said(name)] for name in ("commit", "versions", "devices", "prior_sha256"))])
    where = "The line of each run in shards/*/rows.jsonl holds its whole configuration."
    return f"<section><h2>To repeat it</h2><p class=soft>{where}</p>{about}</section>"
