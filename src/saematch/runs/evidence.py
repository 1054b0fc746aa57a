"""What the arms of a run read besides weights: activity, Jacobians and explanations."""

from __future__ import annotations

import os
from dataclasses import replace

from saematch.chat.asking import Chat
from saematch.core.claims import is_sharing
from saematch.core.errors import InputError
from saematch.explain.explanations import Inputs
from saematch.matching.activity import record_activity
from saematch.matching.evidence import Evidence
from saematch.matching.explained import Explained
from saematch.matching.jacobian import record_jacobians
from saematch.matching.matches import matched_paths
from saematch.runs.context import Context
from saematch.sae.passes import TextPass

CONTEXTS = "contexts of features"
"""Name of the recording for explanations; no evaluation may have this name."""


def evidence(context: Context) -> Evidence:
    """Return what arms read besides weights, from passes over the calibration texts."""
    explained = _explained(context)
    if not context.experiment.matches_on_texts:
        return Evidence(explained=explained)
    saes, arms, texts = context.saes, context.experiment.arms, context.calibration_pass
    paths = matched_paths(saes.facts, context.chosen.pairs, arms)
    activity = record_activity(saes, paths, arms, texts, context.cache / "activity")
    jacobians = record_jacobians(paths, arms, texts, context.cache / "jacobians")
    if jacobians.means:
        context.results.provenance["jacobians"] = jacobians.facts()
    return Evidence(activity, jacobians, explained)


def _explained(context: Context) -> Explained | None:
    """Return the explanations that objectives read.

    If they come from the run's own texts, these are the calibration texts.
    """
    if not context.experiment.matches_explanations:
        return None
    explain, texts = context.experiment.explain, context.calibration_pass
    # ``open`` deletes this folder, so processes that share their work do not share it
    folder = f"calibration_contexts_{os.getpid()}" if is_sharing() else "calibration_contexts"
    inputs = inputs_of(context, texts, folder)
    recorder = explain.recorder(context.saes, inputs)
    if recorder is not None:
        recordings = texts.record(context.saes, {CONTEXTS: recorder}, "find contexts")
        inputs = replace(inputs, recording=recordings[CONTEXTS])
    explanations = explain.open(context.saes, inputs)
    for key in context.saes:
        if not explanations.features(key):
            raise InputError(
                f"no feature of {key.name} is active on the calibration texts, so none can be "
                "matched by its explanation: take more texts (dataset.n_texts)"
            )
    return Explained(explanations, context.saes.facts, context.replies)


def inputs_of(context: Context, texts: TextPass, folder: str) -> Inputs:
    """Return the inputs that explanations may use, without a recording.

    ``folder`` is the name of the recorder's folder.
    """
    judge = context.judges[0]
    return Inputs(
        context.cache,
        texts=texts if context.readers else None,
        recorder_folder=context.folder / folder,
        chat=judge if isinstance(judge, Chat) else None,
    )
