"""A scatter plot of reference against candidate output, drawn by plotext (the extra `plot`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.text import Text

WIDEST = 72
HEIGHT = 20
DIAGONAL = 200
MISSING = "The scatter plot needs plotext 6 or later: pip install 'qtrace[plot]'."


def scatter(reference: Sequence[float], candidate: Sequence[float], *, width: int, title: str = "final output") -> Text:
    """Return the plot of the points (reference, candidate), with the diagonal on which equal values lie.

    Pairs with NaN or Inf are left out and counted. Without plotext, or without anything to plot, the text is one line
    that says so.
    """
    points = [(r, c) for r, c in zip(reference, candidate, strict=True) if math.isfinite(r) and math.isfinite(c)]
    left_out = len(reference) - len(points)
    if not points:
        return Text(f"No scatter plot of the {title}: none of its {len(reference)} points is finite on both sides.")
    figure = _figure()
    if figure is None:
        return Text(MISSING)
    try:
        plot = _draw(figure, points, min(width, WIDEST))
    finally:
        figure.clear()
    text = f"{title}: candidate (up) over reference (right), agreement dotted\n{plot}"
    if left_out:
        text += f"\n{left_out} of {len(reference)} points are not finite and left out"
    return Text(text)


def _figure() -> Any:
    """Return plotext's figure, or None where plotext, or this interface of it, is missing."""
    try:
        import plotext
    except ImportError:
        return None
    return getattr(plotext, "figure", None)


def _draw(figure: Any, points: Sequence[tuple[float, float]], width: int) -> str:
    low = min(min(point) for point in points)
    high = max(max(point) for point in points)
    steps = [low + (high - low) * n / DIAGONAL for n in range(DIAGONAL + 1)]
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, HEIGHT)
    figure.draw(figure.signal(steps, steps, marker="·"))
    figure.draw(figure.signal([r for r, _ in points], [c for _, c in points], marker="•"))
    plain = Text.from_ansi(str(figure.build())).plain
    return "\n".join(line.rstrip() for line in plain.splitlines())
