"""Plots of a page as SVG: they need no library, open from disk, and a screen reader reads their titles."""

import html
from collections.abc import Sequence

import numpy as np

Points = list[tuple[int, int | float]]  # (step, value)
Curve = tuple[str, list[tuple[float, float]], tuple[float, float]]  # colour, points, interval of the last one
INK = ("#2457c5", "#c2410c", "#15803d", "#9333ea", "#b8860b", "#0e7490", "#be123c", "#4d5561")


def plot(title: str, series: Sequence[tuple[str, Points]], w: int = 300, h: int = 150) -> str:
    """A line plot as an SVG, with a title that a screen reader reads.

    Args:
        title: of the plot.
        series: (colour, [(step, value), ...]) of each run.
        w: width, pixels.
        h: height, pixels.

    Returns:
        HTML.
    """
    left, right, top, bottom = 42, 6, 22, 20
    xs, ys = zip(*(point for _, points in series for point in points), strict=True)
    x_0, x_1, ticks = min(xs), max(max(xs), min(xs) + 1), round_ticks(min(ys), max(ys))
    place_x = lambda x: left + (x - x_0) / (x_1 - x_0) * (w - left - right)  # noqa: E731
    place_y = lambda y: h - bottom - (y - ticks[0]) / (ticks[-1] - ticks[0]) * (h - top - bottom)  # noqa: E731
    marks = []
    for tick in ticks:
        y = place_y(tick)
        marks.append(f"<line class=grid x1={left} x2={w - right} y1={y:.1f} y2={y:.1f} />")
        marks.append(f"<text x={left - 5} y={y + 4:.1f} text-anchor=end>{tick:g}</text>")
    for x, anchor in ((x_0, "start"), (x_1, "end")):
        marks.append(f"<text x={place_x(x):.1f} y={h - 4} text-anchor={anchor}>{x:g}</text>")
    for color, points in series:
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
        marks.append(f'<polyline fill=none stroke="{color}" stroke-width=1.6 points="{path}" />')
    ends = ", ".join(f"{points[0][1]:.3g} to {points[-1][1]:.3g}" for _, points in series if points)
    return (
        f'<svg viewBox="0 0 {w} {h}" role=img aria-label="{html.escape(title, quote=True)}; from first to last step: {ends}">'
        f"<text x=0 y=12>{html.escape(title)}</text>{''.join(marks)}</svg>"
    )


def round_ticks(low: int | float, high: int | float) -> list[float]:
    """Three to seven round numbers that enclose a range.

    Args:
        low: end of the range.
        high: end of the range.

    Returns:
        Numbers in equal steps.

    Examples:
        >>> round_ticks(0, 1)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high - low < 1e-12 * max(abs(high), abs(low), 1e-12):
        low, high = low - max(0.5 * abs(low), 1e-6), high + max(0.5 * abs(high), 1e-6)
    step = 10.0 ** np.floor(np.log10((high - low) / 2))
    step = next(k * step for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 5)
    first, last = int(np.floor(low / step + 1e-9)), int(np.ceil(high / step - 1e-9))
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


def scatter(title: str, label: str, curves: Sequence[Curve], w: int = 420, h: int = 260) -> str:
    """Ends of some curves as dots with their intervals, and the way of each there, as an SVG.

    Args:
        title: of the plot, for readers and for screen readers.
        label: of the horizontal axis, which begins at 0.
        curves: any number.
        w: width, pixels.
        h: height, pixels.

    Returns:
        SVG; "" without curves.
    """
    if not curves:
        return ""
    xs = round_ticks(0, max(x for _, points, _ in curves for x, _ in points))
    heights = [y for _, points, ends in curves for y in (*(y for _, y in points), *ends)]
    ys = round_ticks(min(heights), max(heights))
    at_x = lambda x: 48 + (x - xs[0]) / (xs[-1] - xs[0]) * (w - 60)  # noqa: E731
    at_y = lambda y: h - 36 - (y - ys[0]) / (ys[-1] - ys[0]) * (h - 62)  # noqa: E731
    marks = [f"<line class=grid x1=48 x2={w - 12} y1={at_y(y):.1f} y2={at_y(y):.1f} />" for y in ys]
    marks += [f"<text x=42 y={at_y(y) + 4:.1f} text-anchor=end>{y:g}</text>" for y in ys]
    marks += [f"<text x={at_x(x):.1f} y={h - 20} text-anchor=middle>{x:g}</text>" for x in xs]
    for color, points, (low, high) in curves:
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
        x, y = at_x(points[-1][0]), at_y(points[-1][1])
        marks.append(f'<polyline fill=none stroke="{color}" stroke-width=1.6 points="{path}" />')
        marks.append(f'<line stroke="{color}" x1={x:.1f} x2={x:.1f} y1={at_y(low):.1f} y2={at_y(high):.1f} />')
        marks.append(f'<circle fill="{color}" r=4 cx={x:.1f} cy={y:.1f} />')
    return (
        f'<svg viewBox="0 0 {w} {h}" role=img aria-label="{html.escape(title, quote=True)}"><text x=0 y=12>{html.escape(title)}'
        f"</text>{''.join(marks)}<text x={w - 12} y={h - 4} text-anchor=end>{html.escape(label)}</text></svg>"
    )
