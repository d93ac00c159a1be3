"""The page of a run, or of several side by side: one HTML file that opens from disk, without a network.

It holds what there is of each run: an interactive view of the splats, the video, stills, the metrics as plots, the configuration,
and one line on what is missing. Everything that came from a person is escaped, and the page may load nothing from outside.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from lods_jax.config import dump, leaves
from lods_jax.core.files import is_regular, replacing
from lods_jax.core.images import png_bytes, to_uint8
from lods_jax.priors import clip
from lods_jax.priors.registry import embedded_world
from lods_jax.runs.plots import INK, plot
from lods_jax.runs.run_directory import Run, is_figure, read_json

FIGURES_FILE = "figures.json"  # what `lods evaluate` leaves in the folder of a run
ASSETS = Path(__file__).parent / "assets"
SIDES = {0: "front", 90: "left", 180: "back", 270: "right"}  # of the object, by the camera's azimuth in degrees
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; media-src blob: data:"
PLOTS = {
    "score_rms": "score_rms: root mean square of the score on the latents",
    "fit": "fit: loss of the learned branch",
    "fit_gain": "fit gain: by how much learning has lowered that loss",
    "psi_displacement": "psi displacement: how far the learned branch has moved",
    "score_rms_zero123": "score_rms_zero123: the same of the Zero-1-to-3 prior",
    "image_rgb": "weighted error of the colours in the image's view",
    "image_mask": "weighted error of the mask in the image's view",
    "gaussians": "Gaussians",
    "grad": "norm of the scene's gradient",
}


def write_page(runs: Sequence[Run], path: Path, truths: Mapping[str, np.ndarray] | None = None) -> list[str]:
    """Writes a page of one run, or of several side by side.

    Args:
        runs: any number.
        path: of the HTML file.
        truths: {prompt: [n h w 3] renders of the true object at n equal azimuths from the front on}, shown beside the runs.

    Returns:
        One line for each run that lacks something.
    """
    store: list[str] = []  # the data of the page: <script> elements that are text
    prompts, named = list(dict.fromkeys(run.config.prompt for run in runs)), titles(runs)
    groups = []
    for prompt in prompts:
        cards = [truth_card(prompt, truths[prompt], store)] if prompt in (truths or {}) else []
        cards += picture_cards([run for run in runs if run.config.prompt == prompt])
        cards += [run_card(run, named[i], i, store, len(runs) == 1) for i, run in enumerate(runs) if run.config.prompt == prompt]
        head = f"<h2>{html.escape(prompt)}</h2>" if len(prompts) > 1 else ""
        groups.append(f"<section>{head}<div class='cards{' one' if len(cards) == 1 else ''}'>{''.join(cards)}</div></section>")
    lines = [line for run in runs if (line := lacking(run))]
    heading = "; ".join(prompts)
    body = [
        f"<header><h1>{html.escape(heading)}</h1>"
        "<p class=soft>Drag a view, or choose it and use the arrow keys, + and -; Home puts it back.</p></header><main>",
        *(f"<p class=missing>Missing: {html.escape(line)}</p>" for line in lines),
        "<div class=bar><button type=button data-act=spin>Turn or stop</button>"
        "<button type=button data-act=home>Put back</button>"
        "<button type=button data-act=background>Background</button></div>",
        *groups,
        plots(runs),
        settings(runs),
        "</main>",
    ]
    text = document(heading, body, store, wide=len(runs) > 1)
    with replacing(path) as file:
        file.write_text(text, encoding="utf-8")
    return lines


def document(title: str, body: Sequence[str], store: Sequence[str], wide: bool) -> str:
    """A whole page, with the style and the script that every page has.

    Args:
        title: of the page.
        body: HTML.
        store: data that its script reads by name, from `keep`.
        wide: whether it may be wider than a text.

    Returns:
        The text of the HTML file.
    """
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{(ASSETS / 'page.css').read_text()}</style></head>"
        f"<body{' class=wide' if wide else ''}>"
        f"{''.join(body)}{''.join(store)}<script>{(ASSETS / 'page.js').read_text()}</script></body></html>\n"
    )


# --- cards -----------------------------------------------------------------------------------------------------------------
def run_card(run: Run, title: str, i: int, store: list[str], alone: bool) -> str:
    """The card of one run: view, figures, video and stills, as far as they exist.

    Args:
        run: the run.
        title: of the card.
        i: its number on the page.
        store: gets the data of the page.
        alone: whether video and stills are unfolded.

    Returns:
        HTML.
    """
    prompt = html.escape(run.config.prompt, quote=True)
    parts = [f"<h2>{html.escape(title)}</h2>"]
    if is_regular(run.path / "scene.splat"):
        keep(store, f"splats-{i}", (run.path / "scene.splat").read_bytes())
        parts.append(
            f'<canvas class=view tabindex=0 role=application data-splats=splats-{i} aria-label="{prompt}: 3D view of the splats, '
            'turns with the arrow keys, zooms with plus and minus"></canvas>'
        )
    parts.append(f"<p class=soft>{html.escape(summary(run))}</p>")
    parts.append(figures_table(run))
    more = ""
    if is_regular(run.path / "video.mp4"):
        keep(store, f"video-{i}", (run.path / "video.mp4").read_bytes())
        more = f'<video controls loop muted playsinline data-from=video-{i} aria-label="{prompt}: turntable video"></video>'
    more += stills(run, prompt)
    parts.append(more if alone or not more else f"<details><summary>Video and stills</summary>{more}</details>")
    return f"<article>{''.join(parts)}</article>"


def truth_card(prompt: str, frames: np.ndarray, store: list[str]) -> str:
    """The card of the true object, which turns with the runs beside it.

    Args:
        prompt: of the object.
        frames: renders [n h w 3].
        store: gets the data of the page.

    Returns:
        HTML.
    """
    label = f"{prompt}: renders of the true object, turn with the views beside them"
    return (
        "<article><h2>the true object</h2>"
        f"{frames_canvas(label, frames, store)}"
        f"<p class=soft>{html.escape(prompt)}, {len(frames)} renders of the tabletop world at one elevation</p></article>"
    )


def frames_canvas(label: str, frames: np.ndarray, store: list[str]) -> str:
    """A view of frames in a row at equal azimuths from the front on, which turns with the other views of the page.

    Args:
        label: what it shows.
        frames: renders [n h w 3] in [0, 1], as high as wide.
        store: gets the data of the page.

    Returns:
        HTML.
    """
    name = f"frames-{len(store)}"
    keep(store, name, png_bytes(np.concatenate(list(to_uint8(frames)), axis=1)))
    about = html.escape(label, quote=True)
    return f'<canvas class=view tabindex=0 role=application data-frames={name} aria-label="{about}"></canvas>'


def frames_card(title: str, frames: np.ndarray, store: list[str]) -> str:
    """A small view of frames, with its title below.

    Args:
        title: of the tile.
        frames: renders [n h w 3] in [0, 1].
        store: gets the data of the page.

    Returns:
        HTML.
    """
    return f"<figure>{frames_canvas(title, frames, store)}<figcaption>{html.escape(title)}</figcaption></figure>"


def picture_cards(runs: Sequence[Run]) -> list[str]:
    """Cards of the images that runs began with, each once.

    Args:
        runs: of one prompt.

    Returns:
        HTML of each card.
    """
    files = [run.path / "picture.png" for run in runs]
    cards = []
    for data in dict.fromkeys(file.read_bytes() for file in files if is_regular(file)):
        source = base64.b64encode(data).decode()
        cards.append(
            f'<article><h2>the image</h2><img class=cut src="data:image/png;base64,{source}" alt="the image, cut out">'
            "<p class=soft>As it was cut out and framed; squares show where it is transparent.</p></article>"
        )
    return cards


def stills(run: Run, prompt: str) -> str:
    """The stills of a run, else its newest preview.

    Args:
        run: the run.
        prompt: escaped, for descriptions.

    Returns:
        HTML; "" if there are none.
    """
    shown = numbered(run.path / "stills")
    cells = []
    for angle, file in shown:
        side = f"{angle}°" + (f", {SIDES[angle]}" if angle in SIDES else "")
        source = base64.b64encode(file.read_bytes()).decode()
        cells.append(f'<figure><img src="data:image/png;base64,{source}" alt="{prompt}, seen from {side}">')
        cells.append(f"<figcaption>{side}</figcaption></figure>")
    if cells:
        return f"<div class=stills>{''.join(cells)}</div>"
    previews = numbered(run.path / "previews")
    if not previews:
        return ""
    step, file = previews[-1]
    source = base64.b64encode(file.read_bytes()).decode()
    return f'<img style="width:100%" src="data:image/png;base64,{source}" alt="{prompt}, four sides after step {step}">'


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The images of a folder whose names are numbers. Links are left out, since they may lead to a private file.

    Args:
        folder: need not exist.

    Returns:
        (number, file) pairs, sorted.
    """
    if folder.is_symlink():
        return []
    files = [file for file in folder.glob("*.png") if re.fullmatch("[0-9]{1,9}", file.stem) and is_regular(file)]
    return sorted((int(file.stem), file) for file in files)


def summary(run: Run) -> str:
    """One line on a run: prior, seed, size, time and how it ended."""
    c, last = run.config, run.metrics[-1] if run.metrics else {}
    words = [f"prior {c.prior.name}", f"seed {c.seed}", f"{run.step} steps of {c.batch} views"]
    words += [f"{last['gaussians']:,} Gaussians"] if "gaussians" in last else []
    words += [f"{last['seconds']:.0f} s"] if "seconds" in last else []
    return ", ".join([*words, run.end])


def lacking(run: Run) -> str:
    """One line on the files that a run lacks; "" if all are there."""
    return run.missing("run.json", "metrics.jsonl", "scene.splat", "stills", "video.mp4")


def figures_table(run: Run) -> str:
    """The figures of a run and what each means, if it was evaluated.

    Args:
        run: the run.

    Returns:
        HTML; "" without figures.
    """
    file = run.path / FIGURES_FILE
    row = read_json(file) if is_regular(file) else {}
    about = embedded_world().all_figures | clip.FIGURES if row else {}  # loads the world, which most pages do without
    known = [(name, row[name]) for name in about if is_figure(row.get(name))]
    lines = "".join(
        f"<tr><th scope=row>{name}</th><td>{value:.3g}</td><td>{html.escape(about[name])}</td></tr>" for name, value in known
    )
    step = f" after step {row['step']}" if isinstance(row.get("step"), int) else ""
    head = f"<summary>Figures against the true object{step}</summary>"
    return f"<details>{head}<div class=scroll><table>{lines}</table></div></details>" if known else ""


def titles(runs: Sequence[Run]) -> list[str]:
    """A title per run: objective and scale, and the folder's name where two are alike.

    Args:
        runs: any number.

    Returns:
        Titles in the order of the runs.
    """
    named = []
    for run in runs:
        o = run.config.objective
        named.append((run.config.prompt, o.name + (f", s = {o.guidance_scale:g}" if o.guidance_scale is not None else "")))
    return [name[1] if named.count(name) == 1 else f"{name[1]} ({run.path.name})" for name, run in zip(named, runs, strict=True)]


def keep(store: list[str], name: str, data: bytes) -> None:
    """Adds data to the page, which its script reads by name.

    Args:
        store: elements of the page.
        name: id of the element.
        data: to add.
    """
    store.append(f"<script type=text/plain id={name}>{base64.b64encode(data).decode()}</script>")


# --- plots and settings -----------------------------------------------------------------------------------------------------
def plots(runs: Sequence[Run]) -> str:
    """Plots of every metric over steps, all runs in each.

    Args:
        runs: any number.

    Returns:
        HTML; "" without metrics.
    """
    names = [name for name in PLOTS if any(name in line for run in runs for line in run.metrics)]
    names += [name for name in regularizer_names(runs) if name not in names]
    figures = []
    for name in names:
        series = []
        for i, run in enumerate(runs):
            points = [(line["step"], line[name]) for line in run.metrics if name in line]
            series.append((INK[i % len(INK)], points[:: max(1, len(points) // 300)]))
        if any(len(points) > 1 for _, points in series) and any(y for _, points in series for _, y in points):
            figures.append(f"<figure>{plot(PLOTS.get(name, f'{name}: weighted regularizer'), series)}</figure>")
    if not figures:
        return ""
    key = "".join(
        f"<span><i style='background:{INK[i % len(INK)]}'></i>{html.escape(title)}, {html.escape(run.config.prompt)}</span>"
        for i, (title, run) in enumerate(zip(titles(runs), runs, strict=True))
    )
    key = f"<p class='key soft'>{key}</p>" if len(runs) > 1 else ""
    return f"<section><h2>Metrics over steps</h2>{key}<div class=plots>{''.join(figures)}</div></section>"


def regularizer_names(runs: Sequence[Run]) -> list[str]:
    """The regularizers that the logs of some runs hold."""
    return [name for name in ("sparsity", "opaque") if any(name in line for run in runs for line in run.metrics)]


def settings(runs: Sequence[Run]) -> str:
    """The configurations of some runs, preceded by their differences.

    Args:
        runs: any number.

    Returns:
        HTML.
    """
    text = ""
    if len(runs) > 1:
        columns = [{name: value for name, _, value in leaves(run.config)} for run in runs]
        differ = [name for name in columns[0] if any(a.get(name) != b.get(name) for a, b in pairwise(columns))]
        cell = lambda x: f"<td>{html.escape(str(x))}</td>"  # noqa: E731
        rows = [f"<tr><th scope=row>{name}</th>{''.join(cell(column.get(name)) for column in columns)}</tr>" for name in differ]
        head = "".join(f"<th scope=col>{html.escape(title)}</th>" for title in titles(runs))
        text = f"<h2>What differs</h2><div class=scroll><table><tr><td></td>{head}</tr>{''.join(rows)}</table></div>"
    for title, run in zip(titles(runs), runs, strict=True):
        label = "Configuration" if len(runs) == 1 else f"Configuration of {title}"
        text += f"<details><summary>{html.escape(label)}</summary><pre>{html.escape(dump(run.config))}</pre></details>"
    return f"<section>{text}</section>"
