"""Follow the features of a language model from layer to layer.

Match two SAEs, and see how good the match is::

    from saematch import Arm, ZooSaes

    saes = ZooSaes("chain")  # your own: SaeFolders("my_saes/layer_{layer}")
    match = Arm().match(saes.load(3), saes.load(4))
    match.to_pandas(), match.certificate

Do a run with the settings of the command line, and read its tables::

    results = saematch.run(["layers=[3,4]", "dataset.n_texts=30"])
    results.frame("matches")

Main names: ``SaeFolders`` loads SAEs, ``Arm`` matches them with an objective (``Parts``,
``DecoderCosine``, ...) and a matcher (``Optimal``, ``TopK``, ...), ``Match`` is the result, ``run``
does a run, ``Results.load`` reads one, and ``solve_assignment`` matches any vectors.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Python imports each public name when it is first used, so ``import saematch`` is fast; type
# checkers and editors read the imports under ``TYPE_CHECKING``
if TYPE_CHECKING:
    from saematch.app.library import run as run
    from saematch.chat.embeddings import EmbeddingEndpoint as EmbeddingEndpoint
    from saematch.core.columns import Column as Column
    from saematch.core.errors import InputError as InputError
    from saematch.core.match import Certificate as Certificate
    from saematch.core.match import Match as Match
    from saematch.core.pairs import Pair as Pair
    from saematch.core.pairs import SaeKey as SaeKey
    from saematch.core.results import Results as Results
    from saematch.core.specs import spec as spec
    from saematch.core.tables import Tables as Tables
    from saematch.core.tables import frame_of as frame_of
    from saematch.evaluate.evaluation import Evaluation as Evaluation
    from saematch.evaluate.evaluation import PairFacts as PairFacts
    from saematch.evaluate.evaluation import Subject as Subject
    from saematch.evaluate.measures import Cell as Cell
    from saematch.evaluate.measures import Measures as Measures
    from saematch.explain.tf_idf import TfIdf as TfIdf
    from saematch.lm.hooks import LanguageModel as LanguageModel
    from saematch.lm.source import LmSource as LmSource
    from saematch.matching.arm import Arm as Arm
    from saematch.matching.matchers import CandidateMatcher as CandidateMatcher
    from saematch.matching.matchers import ChanceLevel as ChanceLevel
    from saematch.matching.matchers import Greedy as Greedy
    from saematch.matching.matchers import Identity as Identity
    from saematch.matching.matchers import Matcher as Matcher
    from saematch.matching.matchers import MutualNearest as MutualNearest
    from saematch.matching.matchers import Optimal as Optimal
    from saematch.matching.matchers import Random as Random
    from saematch.matching.matchers import Scipy as Scipy
    from saematch.matching.matchers import Sinkhorn as Sinkhorn
    from saematch.matching.matchers import TopK as TopK
    from saematch.matching.objectives.candidates import Candidates as Candidates
    from saematch.matching.objectives.decoder_cosine import DecoderCosine as DecoderCosine
    from saematch.matching.objectives.encoder_decoder_cosine import (
        EncoderDecoderCosine as EncoderDecoderCosine,
    )
    from saematch.matching.objectives.explanation_cosine import (
        ExplanationCosine as ExplanationCosine,
    )
    from saematch.matching.objectives.factors import Factors as Factors
    from saematch.matching.objectives.feature_texts import FeatureTexts as FeatureTexts
    from saematch.matching.objectives.from_activity import FromActivity as FromActivity
    from saematch.matching.objectives.jaccard import Jaccard as Jaccard
    from saematch.matching.objectives.necessity import Necessity as Necessity
    from saematch.matching.objectives.objective import ActivityObjective as ActivityObjective
    from saematch.matching.objectives.objective import CandidateObjective as CandidateObjective
    from saematch.matching.objectives.objective import (
        ExplanationObjective as ExplanationObjective,
    )
    from saematch.matching.objectives.objective import Objective as Objective
    from saematch.matching.objectives.parts import Parts as Parts
    from saematch.matching.objectives.pearson import Pearson as Pearson
    from saematch.matching.objectives.read_write import ReadWrite as ReadWrite
    from saematch.matching.objectives.sparse_map import SparseMap as SparseMap
    from saematch.matching.objectives.sufficiency import Sufficiency as Sufficiency
    from saematch.matching.objectives.written_share import WrittenShare as WrittenShare
    from saematch.matching.pairing import Pairing as Pairing
    from saematch.matching.solver.solve import SolverResources as SolverResources
    from saematch.matching.solver.solve import solve_assignment as solve_assignment
    from saematch.matching.synchronised import Synchronise as Synchronise
    from saematch.matching.transport import transport as transport
    from saematch.sae.folding import fold as fold
    from saematch.sae.params import SaeOrigin as SaeOrigin
    from saematch.sae.params import SaeParams as SaeParams
    from saematch.sae.recorders import Forward as Forward
    from saematch.sae.recorders import Recorder as Recorder
    from saematch.sae.recorders import Recording as Recording
    from saematch.sae.sources.disk import SaeFolders as SaeFolders
    from saematch.sae.sources.source import SaeOffer as SaeOffer
    from saematch.sae.sources.source import SaeSource as SaeSource
    from saematch.sae.sources.source import ZooSaes as ZooSaes
    from saematch.sae.suites import SaeFacts as SaeFacts
    from saematch.texts.sources import TextSource as TextSource

__version__ = "0.2.0"

_HOMES = {
    "ActivityObjective": "saematch.matching.objectives.objective",
    "Arm": "saematch.matching.arm",
    "CandidateMatcher": "saematch.matching.matchers",
    "CandidateObjective": "saematch.matching.objectives.objective",
    "Candidates": "saematch.matching.objectives.candidates",
    "Cell": "saematch.evaluate.measures",
    "Certificate": "saematch.core.match",
    "ChanceLevel": "saematch.matching.matchers",
    "Column": "saematch.core.columns",
    "DecoderCosine": "saematch.matching.objectives.decoder_cosine",
    "EmbeddingEndpoint": "saematch.chat.embeddings",
    "EncoderDecoderCosine": "saematch.matching.objectives.encoder_decoder_cosine",
    "Evaluation": "saematch.evaluate.evaluation",
    "ExplanationCosine": "saematch.matching.objectives.explanation_cosine",
    "ExplanationObjective": "saematch.matching.objectives.objective",
    "Factors": "saematch.matching.objectives.factors",
    "FeatureTexts": "saematch.matching.objectives.feature_texts",
    "Forward": "saematch.sae.recorders",
    "FromActivity": "saematch.matching.objectives.from_activity",
    "Greedy": "saematch.matching.matchers",
    "Identity": "saematch.matching.matchers",
    "InputError": "saematch.core.errors",
    "Jaccard": "saematch.matching.objectives.jaccard",
    "LanguageModel": "saematch.lm.hooks",
    "LmSource": "saematch.lm.source",
    "Match": "saematch.core.match",
    "Matcher": "saematch.matching.matchers",
    "Measures": "saematch.evaluate.measures",
    "MutualNearest": "saematch.matching.matchers",
    "Necessity": "saematch.matching.objectives.necessity",
    "Objective": "saematch.matching.objectives.objective",
    "Optimal": "saematch.matching.matchers",
    "Pair": "saematch.core.pairs",
    "PairFacts": "saematch.evaluate.evaluation",
    "Pairing": "saematch.matching.pairing",
    "Parts": "saematch.matching.objectives.parts",
    "Pearson": "saematch.matching.objectives.pearson",
    "Random": "saematch.matching.matchers",
    "ReadWrite": "saematch.matching.objectives.read_write",
    "Recorder": "saematch.sae.recorders",
    "Recording": "saematch.sae.recorders",
    "Results": "saematch.core.results",
    "SaeFacts": "saematch.sae.suites",
    "SaeFolders": "saematch.sae.sources.disk",
    "SaeKey": "saematch.core.pairs",
    "SaeOffer": "saematch.sae.sources.source",
    "SaeOrigin": "saematch.sae.params",
    "SaeParams": "saematch.sae.params",
    "SaeSource": "saematch.sae.sources.source",
    "Scipy": "saematch.matching.matchers",
    "Sinkhorn": "saematch.matching.matchers",
    "SolverResources": "saematch.matching.solver.solve",
    "SparseMap": "saematch.matching.objectives.sparse_map",
    "Subject": "saematch.evaluate.evaluation",
    "Sufficiency": "saematch.matching.objectives.sufficiency",
    "Synchronise": "saematch.matching.synchronised",
    "Tables": "saematch.core.tables",
    "TextSource": "saematch.texts.sources",
    "TfIdf": "saematch.explain.tf_idf",
    "TopK": "saematch.matching.matchers",
    "WrittenShare": "saematch.matching.objectives.written_share",
    "ZooSaes": "saematch.sae.sources.source",
    "fold": "saematch.sae.folding",
    "frame_of": "saematch.core.tables",
    "run": "saematch.app.library",
    "solve_assignment": "saematch.matching.solver.solve",
    "spec": "saematch.core.specs",
    "transport": "saematch.matching.transport",
}
"""Module that defines each public name."""

__all__ = ["__version__", *_HOMES]


if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'saematch' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
