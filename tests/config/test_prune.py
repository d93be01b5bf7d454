"""What a [prune] section may not say, each in one message at its key."""

from __future__ import annotations

import pytest

from ratrain.errors import ManifestError

MAGNITUDE = ("prune.kind=magnitude", "prune.target=0.5")


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        (("prune.kind=magnitude",), "prune.target", "missing; expected a number"),
        (("prune.kind=size", "prune.target=0.5"), "prune.kind", "is not one of 'magnitude', 'movement', 'state'"),
        (("prune.kind=magnitude", "prune.target=1"), "prune.target", "must be below 1"),
        (("prune.kind=state", "prune.target=0.5"), "prune", "needs a score, bitter0 to bitter9"),
        ((*MAGNITUDE, "prune.score=bitter3"), "prune", "no other kind reads one"),
        (("prune.kind=state", "prune.target=0.5", "prune.score=bitter10"), "prune.score", "bitter10 never ran"),
        (
            ("prune.kind=state", "prune.target=0.5", "prune.score=better"),
            "prune.score",
            "'better' is not one of 'bitter0'",
        ),
        ((*MAGNITUDE, "prune.end={steps=101}"), "prune.end", "the budget has 100 steps"),
        ((*MAGNITUDE, "prune.start={fraction=0.9}"), "prune.end", "must come after start"),
        ((*MAGNITUDE, "train.budget={seconds=9.0}", "prune.end={steps=9}"), "prune.end.steps", "in seconds"),
        ((*MAGNITUDE, "prune.sparsity=0.5"), "prune.sparsity", "here it is 'prune.target'"),
        (("optim.kind=adamwprune",), "optim.kind", "expected [prune] kind = 'state', or optim.kind = 'adamw'"),
        ((*MAGNITUDE, "optim.kind=adamwprune"), "optim.kind", "expected [prune] kind = 'state'"),
        *(
            ((f"optim.kind={kind}", "prune.kind=state", "prune.score=bitter0", "prune.target=0.5"), "prune.kind", kind)
            for kind in ("sgd", "muon", "sinkgd", "sinkgd_legacy")
        ),
    ],
)
def test_a_section_that_cannot_be_meant_is_one_fault(tiny, overrides, key, message):
    with pytest.raises(ManifestError) as refused:
        tiny("gpt2", *overrides)
    (fault,) = refused.value.faults
    assert fault.key == key
    assert message in fault.message


@pytest.mark.parametrize(
    "kind", ["adam", "adamw", "adamwadv", "adamw_amsgrad", "adamwspam", "spam_legacy", "adamwprune"]
)
def test_state_goes_with_every_adam(tiny, kind):
    manifest = tiny("gpt2", f"optim.kind={kind}", "prune.kind=state", "prune.score=bitter0", "prune.target=0.5")
    assert manifest.prune.score == "bitter0"


def test_without_a_section_nothing_is_pruned(tiny):
    assert tiny().prune is None
