"""What an event answers, in words."""

from __future__ import annotations

import pytest

from turnout.core.model import Deployment, Identity, Snapshot, State
from turnout.core.outcome import Reason, already, apply, explain, must_hold, refuse
from turnout.errors import ConflictError

SNAP = Snapshot(deployment=Deployment(generation=7, revision=3, state=State.READY, owner=Identity(4711)))


def test_an_applied_event_raises_the_revision_by_one_and_a_refused_one_answers_the_very_snapshot() -> None:
    assert apply(SNAP, SNAP.deployment).deployment.revision == 4
    assert refuse(SNAP, Reason.WRONG_STATE).snapshot is SNAP


def test_an_event_that_took_effect_before_is_as_good_as_applied() -> None:
    assert already(SNAP).ok
    assert not already(SNAP).applied
    must_hold(already(SNAP))


@pytest.mark.parametrize("reason", list(Reason))
def test_each_reason_has_a_sentence_which_ends_with_the_detail(reason: Reason) -> None:
    assert explain(refuse(SNAP, reason, "expected 6")).endswith(": expected 6")
    assert explain(refuse(SNAP, reason))


def test_a_rollout_under_way_is_told_with_its_owner_and_an_open_window_with_what_ends_it() -> None:
    assert explain(refuse(SNAP, Reason.IN_PROGRESS)) == "the rollout of generation 7 is ready (pid 4711)"
    observed = Snapshot(deployment=Deployment(generation=7, state=State.SWITCHED))
    assert explain(refuse(observed, Reason.IN_PROGRESS)).endswith("still observed (--supersede ends that)")


def test_a_refused_event_is_a_conflict_that_says_why() -> None:
    with pytest.raises(ConflictError, match="the deployment has moved on to generation 7") as error:
        must_hold(refuse(SNAP, Reason.STALE_GENERATION))
    assert error.value.hint == "turnout status"
