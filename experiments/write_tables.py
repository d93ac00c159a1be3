"""Writes the tables of the documentation from the rows of experiments/results: no figure can differ from its row.

    python -m experiments.write_tables          # rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`

A new or longer file of rows is copied from the `--out` folder of its experiment to experiments/results first; that of a bench is
`cat outputs/bench/NAME/shards/*/rows.jsonl > experiments/results/bench-NAME.jsonl`. The suite runs the
same and fails where a page would change.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import lods_jax
from experiments import editing_2d, generation_2d, image_to_3d, score_paths, text_to_3d
from experiments.benchmarks import against_diffusers, against_gsplat, attention, dry_runs
from lods_jax.core.paths import TABLETOP, TABLETOP_64
from lods_jax.runs.bench import report
from lods_jax.runs.bench.suite import Arm, Suite, read_suite
from lods_jax.tabletop.damage import DAMAGES

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.S)


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of experiments/results/NAME.jsonl."""
    lines = (ROOT / "experiments" / "results" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def objectives_in_2d() -> str:
    """Of the seeds that every setting has."""
    return generation_2d.table(generation_2d.SETTINGS, [row for row in rows("generation_2d") if row["seed"] < 2])


def prior_gates(folders: Mapping[str, Path], labels: Mapping[str, str]) -> str:
    """What tabletop priors reach, a column each, and what the first of them was asked to pass before it shipped."""
    columns = [json.loads((folder / "gates.json").read_text(encoding="utf-8")) for folder in folders.values()]
    gates = columns[0]["gates"]
    lines = ["| figure | " + " | ".join(folders) + " | gate | |", "|---" * (len(folders) + 3) + "|"]
    for name, label in labels.items():
        show = (lambda x: f"{x:.1f} dB") if "psnr" in name else (lambda x: f"{x:.1%}")
        error = lambda column: f" ± {column[f'{name} +-']:.1%}" if f"{name} +-" in column else ""  # noqa: B023, E731
        cells = [show(column[name]) + error(column) for column in columns]
        verdict = "" if name not in gates else "pass" if columns[0][name] >= gates[name] else "missed"
        cells += [show(gates[name]) if name in gates else "", verdict]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def public_api() -> str:
    """The names of `import lods_jax`, each with where it is defined."""
    lines = ["| name | defined in |", "|---|---|"]
    for name in lods_jax.__all__:
        found = getattr(lods_jax, name)
        module, own = (found.__name__, found.__name__) if isinstance(found, ModuleType) else (found.__module__, found.__name__)
        place = module if own == module else f"{module}.{own}"
        lines.append(f"| [`{name}`][{place}] | `{module.removeprefix('lods_jax.')}` |")
    return "\n".join(lines)


GATES = {
    "vae psnr [dB]": "VAE on unseen renders, PSNR",
    "caption swap: color": "loss rises with a wrong colour",
    "caption swap: kind": "loss rises with a wrong kind",
    "caption swap: view": "loss rises with a wrong view (kinds with a front)",
    **{
        f"{split}: {name}": f"the asked {label} is read in samples{of}"
        for name, label in (("kind", "kind"), ("color", "colour"), ("view", "view"), ("pattern", "pattern"))
        for split, of in (("samples", ""), ("samples, unseen triples", " of held-out captions"))
    },
    "samples: quality": "mean quality of samples",
    "samples, unseen triples: quality": "mean quality of samples of held-out captions",
}

CLASSIFIER = {
    "classifier: kind": "kind of unseen renders",
    "classifier: color": "their colour",
    "classifier: pattern": "their pattern",
    "classifier: view": "their view, 3 degrees and more from a boundary",
    "classifier: quality of true renders": "mean quality of true renders",
    **{
        f"classifier: none: {name}": f"reads none in {label}"
        for name, label in (
            ("blob", "blobs"),
            ("specks", "clouds of specks"),
            *(("melted", "melted objects"), ("holes", "what holes left of an object")),
            *(("smeared", "smears"), ("noised", "half-noised images")),
        )
    },
    **{
        f"classifier: ranking: {name}": f"the more damaged of two has the lower quality: {name}"
        for name in (*DAMAGES, "defects", "all")
    },
}

SEEN = ("kid", "view", "chamfer", "coverage", "floaters", "tint", "color_error", "speckle", "part_recall")  # in the README
BENCH_FIGURES = ("kid", "view", "janus", "chamfer", "coverage", "floaters", "tint", "color_error", "speckle", "part_recall")
PRESET_FIGURES = (*BENCH_FIGURES, "sharpness", "predictions")
ABLATED = ("kid", "chamfer", "coverage", "floaters", "tint", "color_error", "speckle", "part_recall", "sharpness")
QUICK = ("kid", "view", "janus", "chamfer", "coverage", "floaters", "color_error", "speckle", "part_recall", "predictions")


def bench(
    name: str,
    figures: tuple[str, ...],
    methods: tuple[str, ...] = (),
    *,
    by_method: bool = False,
    seed: int | None = None,
    minus: str = "",
) -> str:
    """The table of a shipped suite, from its rows in experiments/results/bench-NAME.jsonl.

    Args:
        name: of the suite.
        figures: to show.
        methods: to show; none for all that have rows. Their means are over the prompts and seeds that all of them have.
        by_method: whether methods are lines and figures columns.
        seed: of the rows; None for all.
        minus: a method whose figures are taken off, run by run.

    Returns:
        Markdown.
    """
    suite = read_suite(name)
    held = [row for row in rows(f"bench-{name}") if seed in (None, row["seed"])]
    shown = {*methods, minus} - {""} if methods else {row["method"] for row in held}
    held = shared_runs([row for row in held if row["method"] in shown], ("method",))
    suite = replace(suite, figures=figures, methods={method: arm for method, arm in suite.methods.items() if method in shown})
    lines = labelled(report.table(suite, held, minus or None))
    return report.markdown_table([list(column) for column in zip(*lines, strict=True)] if by_method else lines)


def labelled(lines: list[list[str]]) -> list[list[str]]:
    """The lines of a table of a bench, figures by the names that the documentation has for them."""
    return [[text_to_3d.COLUMNS.get(line[0].partition(": ")[0], line[0]), *line[1:]] for line in lines]


def shared_runs(held: list[dict[str, Any]], arm: Collection[str]) -> list[dict[str, Any]]:
    """The rows whose prompt and seed every arm of a bench has: means over other prompts do not compare.

    Args:
        held: rows.
        arm: names of the fields that tell arms apart.

    Returns:
        Some of the rows.
    """
    runs: dict[tuple, set[tuple]] = {}
    for row in held:
        runs.setdefault(tuple(row[name] for name in arm), set()).add((row["prompt"], row["seed"]))
    shared = set.intersection(*runs.values())
    return [row for row in held if (row["prompt"], row["seed"]) in shared]


PRIORS = {"tabletop-128": "single", "tabletop-views": "four"}  # of the suite multi-view, and how many views they see together


def of_priors(baseline: str = "") -> str:
    """The table of the suite multi-view, with a column for each pair of objective and prior.

    Args:
        baseline: an objective whose figures under the same prior are taken off, run by run, and which has no column.

    Returns:
        Markdown.
    """
    suite, held = multi_view()
    methods = {name: arm for name, arm in suite.methods.items() if name != baseline}
    suite, tables = replace(suite, methods=methods, figures=BENCH_FIGURES if baseline else (*BENCH_FIGURES, "predictions")), []
    for prior, views in PRIORS.items():
        head, *body = report.table(suite, [row for row in held if row["prior_name"] == prior], baseline or None)
        tables.append([[head[0], *(f"{name}, {views}" for name in head[1:])], *body])
    return side_by_side(tables)


def gains_of_views() -> str:
    """The table of the suite multi-view with the figures on four views minus those on single views, run by run."""
    (suite, held), tables = multi_view(), []
    for method in suite.methods:
        pair = [row | {"method": PRIORS[row["prior_name"]], "prior_name": ""} for row in held if row["method"] == method]
        head, *body = report.table(replace(suite, methods={"four": Arm()}, figures=BENCH_FIGURES), pair, "single")
        tables.append([[head[0], method], *body])
    return side_by_side(tables)


def multi_view() -> tuple[Suite, list[dict[str, Any]]]:
    """The suite multi-view, and those of its rows whose prompt and seed every objective has on either prior."""
    return read_suite("multi-view"), shared_runs(rows("bench-multi-view"), ("prior_name", "method"))


def side_by_side(tables: list[list[list[str]]]) -> str:
    """Tables of the same figures as one, as Markdown."""
    return report.markdown_table(
        labelled([[line[0][0], *(cell for own in line for cell in own[1:])] for line in zip(*tables, strict=True)])
    )


def prompt_by_prompt(held: list[dict[str, Any]], setting: Callable[[dict[str, Any]], str]) -> str:
    """A column for each setting that a row may have, with the figures of its prompts side by side."""
    figures = ("kid", "chamfer", "coverage", "color_error", "speckle", "part_recall", "sharpness", "predictions")
    own: dict[str, list[dict[str, Any]]] = {}
    for row in held:
        own.setdefault(setting(row), []).append(row)
    cells = lambda name: [", ".join(f"{row[name]:.3g}" for row in column) for column in own.values()]  # noqa: E731
    lines = [["", *own], *([text_to_3d.COLUMNS[name], *cells(name)] for name in figures)]
    return report.markdown_table(lines)


def scale_of(row: dict[str, Any]) -> str:
    """The objective and the guidance scale of a row."""
    return f"{'SDS' if row['objective'] == 'sds' else 'LODS-LoRA'}, s = {row['s']:g}"


def of_field(row: dict[str, Any]) -> str:
    """The views, the guidance scale and what else is set in a row of a radiance field."""
    return f"{PRIORS[row['prior']]} views, s = {row['s']:g}" + (f", {row['setting']}" if row.get("setting") else "")


def edits_in_3d() -> str:
    """The figures of each edit of an object, a column for each."""
    held, known = rows("edits_3d"), text_to_3d.COLUMNS
    named = {"attribute": "reads what was to change", "rest": "reads what was to stay", "moved": "surface moved, world units"}
    shown = (*named, "kid", "color_error", "tint", "part_recall", "predictions")
    lines = [["", *(f"{row['prompt']}, {'DDS' if row['objective'] == 'dds' else 'LODS-LoRA'}" for row in held)]]
    lines += [[named.get(name) or known[name], *(f"{row[name]:.3g}" for row in held)] for name in shown]
    return report.markdown_table(lines)


TABLES: dict[str, Callable[[], str]] = {
    "prior-gates": lambda: prior_gates({"`tabletop`": TABLETOP, "`tabletop-64`": TABLETOP_64}, GATES),
    "classifier": lambda: prior_gates({"value": TABLETOP}, CLASSIFIER),
    "text-to-3d": lambda: text_to_3d.table(rows("text_to_3d-tabletop"), list(text_to_3d.TRIALS)),
    "bench-presets": lambda: bench("presets", PRESET_FIGURES, ("now", "SDS, s = 3", "before")),
    "bench-presets-differences": lambda: bench("presets", BENCH_FIGURES, ("now",), minus="SDS, s = 3"),
    "bench-presets-others": lambda: bench("presets", PRESET_FIGURES, seed=1),
    "bench-ablation": lambda: bench("ablation", ABLATED, by_method=True),
    "bench-ablation-differences": lambda: bench("ablation", ABLATED, minus="the preset", by_method=True),
    "bench-multi-view": of_priors,
    "bench-multi-view-objectives": lambda: of_priors(baseline="SDS"),
    "bench-multi-view-priors": gains_of_views,
    "bench-tabletop-quick": lambda: bench("tabletop-quick", QUICK),
    "lods-scale": lambda: prompt_by_prompt(rows("lods_scale"), scale_of),
    "nerf-views": lambda: prompt_by_prompt(rows("nerf_views"), of_field),
    "bench-rewards": lambda: bench("rewards", ("reward", "chamfer", "coverage", "color_error", "kid", "predictions")),
    "bench-presets-short": lambda: bench("presets", SEEN, ("now", "SDS, s = 3", "before")),
    "text-to-3d-exact": lambda: text_to_3d.table(rows("text_to_3d-exact-gaussians"), list(text_to_3d.TRIALS)),
    "objectives-in-2d": objectives_in_2d,
    "lods-configurations": lambda: generation_2d.table(generation_2d.CONFIGURATIONS, rows("generation_2d")),
    "edits": lambda: editing_2d.table(rows("editing_2d")),
    "edits-3d": edits_in_3d,
    "score-paths": lambda: score_paths.table(rows("score_paths")),
    "image-to-3d": lambda: image_to_3d.table(rows("image_to_3d")),
    "image-to-3d-presets": lambda: image_to_3d.table(rows("image_to_3d-presets")),
    "public-api": public_api,
    "gpu-rasterizer": lambda: against_gsplat.table(rows("against_gsplat")),
    "gpu-steps": lambda: against_diffusers.table(rows("against_diffusers")),
    "gpu-attention": lambda: attention.table(rows("attention")),
    "tpu": lambda: dry_runs.table(rows("dry_runs"), dry_runs.TPU),
    "gpu-stand-in": lambda: against_diffusers.memory_table(rows("against_diffusers")),
    "gpu-24": lambda: dry_runs.table(rows("dry_runs"), dry_runs.GPU),
}


@cache  # a thousand bootstrap draws a cell; the README shows rows of another page's table
def table(name: str) -> str:
    """One of TABLES. Intervals do not break: "(0.1 to" on one line and "0.2)" on the next is hard to read."""
    return re.sub(r"\([^()|]* to [^()|]*\)", lambda found: found[0].replace(" ", "\u00a0"), TABLES[name]().strip())


def with_tables(page: str) -> str:
    """A page whose tables are made anew from their rows."""
    return TABLE.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", page)


def pages() -> list[Path]:
    """Where tables may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    for path in pages():
        page = path.read_text(encoding="utf-8")
        if (new := with_tables(page)) != page:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: rewritten")


if __name__ == "__main__":
    main()
