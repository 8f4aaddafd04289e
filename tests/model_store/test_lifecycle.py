"""The life of a version: which step may follow which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import BadInput, Conflict
from model_store.lifecycle import EVENTS, STATES, allowed_events, decide_transition


def test_a_version_goes_from_draft_to_the_shelf_and_off_it() -> None:
    state = "draft"
    for event, expected in [
        ("inspect", "inspected"),
        ("submit", "in_review"),
        ("return", "inspected"),
        ("submit", "in_review"),
        ("approve", "listed"),
        ("retire", "retired"),
    ]:
        state = decide_transition(state, event)
        assert state == expected


@pytest.mark.parametrize("state", [state for state in STATES if state != "withdrawn"])
def test_a_version_may_be_withdrawn_at_any_time(state: str) -> None:
    assert decide_transition(state, "withdraw") == "withdrawn"


def test_a_withdrawn_version_stays_withdrawn() -> None:
    assert allowed_events("withdrawn") == ()


@pytest.mark.parametrize(("state", "event"), [("draft", "submit"), ("inspected", "approve"), ("retired", "approve")])
def test_no_step_is_skipped(state: str, event: str) -> None:
    with pytest.raises(Conflict) as error:
        decide_transition(state, event)
    assert error.value.code == "STATE_CONFLICT"
    assert error.value.details["allowed"] == list(allowed_events(state))


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(BadInput) as error:
        decide_transition("draft", "publish")
    assert error.value.code == "EVENT_UNKNOWN"


@given(st.lists(st.sampled_from(EVENTS), max_size=12))
def test_nothing_is_listed_without_an_approval_after_an_inspection(events: list[str]) -> None:
    state, taken = "draft", []
    for event in events:
        try:
            state = decide_transition(state, event)
            taken.append(event)
        except Conflict:
            assert event not in allowed_events(state)
    if state in ("listed", "retired"):
        assert taken.index("inspect") < taken.index("submit") < taken.index("approve")
