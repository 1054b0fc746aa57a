"""What all runs of a comparison have in common."""

from __future__ import annotations

from collections.abc import Sequence

from saematch.compare.checks import code_of
from saematch.core.pairs import layers_text
from saematch.core.results import Results


def shared_inputs(runs: Sequence[Results]) -> str:
    """Return model, SAEs, texts and code that all runs share, in one line; empty for no runs."""
    of_runs = [_inputs(run) for run in runs]
    shared = [
        f"{kind} {text}"
        for kind, text in (of_runs[0] if of_runs else {}).items()
        if all(inputs.get(kind) == text for inputs in of_runs)
    ]
    return f"all runs: {'; '.join(shared)}" if shared else ""


def _inputs(results: Results) -> dict[str, str]:
    """Return a description of each kind of input of a run."""
    provenance = results.provenance
    saes = provenance.get("saes", {}).values()
    releases = ", ".join(dict.fromkeys(str(sae["release"]) for sae in saes))
    layers = layers_text([sae["layer"] for sae in saes]) if saes else ""
    model, texts = provenance.get("model", {}), provenance.get("texts", {})
    inputs = {
        "model": str(model.get("name", "")) if model.get("revision") else "",
        "SAEs": f"{releases}, {layers}" if saes else "",
        "texts": ", ".join(
            f"{facts['n_texts']:,} {name}" if "n_texts" in facts else name  # of older code
            for name, facts in texts.items()
        ),
        "experiment": results.name,
        "code": code_of(results)[:8],
    }
    return {kind: text for kind, text in inputs.items() if text}
