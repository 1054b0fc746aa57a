"""Specs as text."""

import pytest

from saematch import Arm, ExplanationCosine, InputError, Sinkhorn, SparseMap, TfIdf, TopK
from saematch.core.specs import brief


def test_a_spec_in_brief_has_the_settings_that_differ_from_their_defaults():
    assert brief(SparseMap(entries=4)) == "SparseMap"
    assert brief(Sinkhorn(rho=0.2, k=20)) == "Sinkhorn(rho=0.2)"
    assert brief(Sinkhorn(memory_gib=1.0)) == "Sinkhorn"  # not part of its text
    nested = ExplanationCosine(TfIdf(), n_candidates=8)
    assert brief(nested) == "ExplanationCosine(embedding=TfIdf, n_candidates=8)"
    assert brief(object()) == "object"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"matcher": TopK}, r"arms.matcher=.* must be an object: TopK\(...\)"),
        ({"matcher": "top_k"}, r"arms.matcher='top_k' must be an object, not text: such as Parts"),
    ],
)
def test_a_class_or_a_name_where_an_object_belongs_is_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        Arm(**settings)
