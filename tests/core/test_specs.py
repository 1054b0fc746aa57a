"""Specs as text."""

from saematch import ExplanationCosine, Sinkhorn, SparseMap, TfIdf
from saematch.core.specs import brief


def test_a_spec_in_brief_has_the_settings_that_differ_from_their_defaults():
    assert brief(SparseMap(entries=4)) == "SparseMap"
    assert brief(Sinkhorn(rho=0.2, k=20)) == "Sinkhorn(rho=0.2)"
    assert brief(Sinkhorn(memory_gib=1.0)) == "Sinkhorn"  # not part of its text
    nested = ExplanationCosine(TfIdf(), n_candidates=8)
    assert brief(nested) == "ExplanationCosine(embedding=TfIdf, n_candidates=8)"
    assert brief(object()) == "object"
