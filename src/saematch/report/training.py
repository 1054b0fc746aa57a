"""The figure of a run that trains SAEs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saematch.core.tables import Tables
from saematch.report.frames import numbers, table, values_of, where
from saematch.report.style import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "explained_variance": "explained variance (batch)",
    "l0": "active features a token (batch)",
    "dead_features": "dead features",
}
"""Titles of the panels, by metric."""


def training_curves(tables: Tables) -> Figure | None:
    """Training of each layer: explained variance, L0 and dead features against samples seen."""
    curves = table(tables, "training")
    if curves.empty:
        return None
    import matplotlib

    layers = values_of(curves, "layer")
    colours = matplotlib.colormaps["viridis"].resampled(max(2, len(layers)))
    figure, axes = panels(len(PANELS))
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        for number, layer in enumerate(layers):
            of_layer = where(curves, layer=layer)
            label = f"layer {layer}" if number in (0, len(layers) - 1) else None
            samples, values = (numbers(of_layer, name, 0.0) for name in ("samples", metric))
            axis.plot(samples, values, color=colours(number), linewidth=1.1, label=label)
        axis.set_title(title)
        axis.set_xlabel("hidden states seen")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
