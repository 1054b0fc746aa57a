"""The figure of a run that trains SAEs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saematch.core.tables import Tables
from saematch.report.style import panels, unique, where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "explained_variance": "explained variance (batch)",
    "l0": "active features a token (batch)",
    "dead_features": "dead features",
}


def training_curves(tables: Tables) -> Figure | None:
    """Each layer's training: explained variance, L0 and dead features against samples seen."""
    rows = tables.rows("training")
    if not rows:
        return None
    import matplotlib

    layers = [layer for (layer,) in unique(rows, "layer")]
    colours = matplotlib.colormaps["viridis"].resampled(max(2, len(layers)))
    figure, axes = panels(len(PANELS))
    for axis, (metric, title) in zip(axes, PANELS.items(), strict=True):
        for number, layer in enumerate(layers):
            of_layer = where(rows, layer=layer)
            axis.plot(
                [float(row["samples"] or 0) for row in of_layer],
                [float(row[metric] or 0) for row in of_layer],
                color=colours(number),
                linewidth=1.1,
                label=f"layer {layer}" if number in (0, len(layers) - 1) else None,
            )
        axis.set_title(title)
        axis.set_xlabel("hidden states seen")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
