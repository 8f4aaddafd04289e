"""The life of a version, decided purely::

    draft ──inspect──> inspected ──submit──> in_review ──approve──> listed ──retire──> retired
                           ^                     │
                           └──────return─────────┘            any but withdrawn ──withdraw──> withdrawn

Only listed versions are sold; a private version is used by its own organisation once inspected. Withdrawn is final.
"""

from __future__ import annotations

from typing import Literal, get_args

from model_store.errors import BadInput, Conflict

State = Literal["draft", "inspected", "in_review", "listed", "retired", "withdrawn"]
Event = Literal["inspect", "submit", "approve", "return", "retire", "withdraw"]
STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[Event, ...] = get_args(Event)
SOLD_STATES: frozenset[State] = frozenset({"listed"})

_NEXT: dict[tuple[State, Event], State] = {
    ("draft", "inspect"): "inspected",
    ("inspected", "inspect"): "inspected",
    ("inspected", "submit"): "in_review",
    ("in_review", "approve"): "listed",
    ("in_review", "return"): "inspected",
    ("listed", "retire"): "retired",
    **{(state, "withdraw"): "withdrawn" for state in STATES if state != "withdrawn"},
}
_STATE_ZH: dict[str, str] = {
    "draft": "草稿", "inspected": "已检验", "in_review": "审核中", "listed": "已上架", "retired": "已下架",
    "withdrawn": "已撤回",
}  # fmt: skip
_EVENT_ZH: dict[str, str] = {
    "inspect": "检验", "submit": "提交审核", "approve": "通过", "return": "退回", "retire": "下架", "withdraw": "撤回",
}  # fmt: skip


def decide_transition(state: str, event: str) -> State:
    """The state after `event`. Raises `Conflict` STATE_CONFLICT (says what is allowed), `BadInput` EVENT_UNKNOWN."""
    if event not in EVENTS:
        raise BadInput(
            "EVENT_UNKNOWN",
            zh=f"没有名为 {event[:40]!r} 的操作",
            en=f"there is no event {event[:40]!r}",
            remedy_zh=f"可用操作: {', '.join(EVENTS)}",
            remedy_en=f"use one of {', '.join(EVENTS)}",
            field="event",
        )
    for (before, what), after in _NEXT.items():
        if before == state and what == event:
            return after
    allowed = allowed_events(state)
    raise Conflict(
        "STATE_CONFLICT",
        zh=f"版本处于“{_STATE_ZH.get(state, state)}”, 不能{_EVENT_ZH[event]}",
        en=f"a version that is {state} cannot take the step {event!r}",
        remedy_zh=f"当前可用操作: {', '.join(_EVENT_ZH[each] for each in allowed) or '无'}",
        remedy_en=f"possible now: {', '.join(allowed) or 'nothing'}",
        field="state",
        details={"state": state, "event": event, "allowed": list(allowed)},
    )


def allowed_events(state: str) -> tuple[Event, ...]:
    """The events a version in `state` may take, in the order of `EVENTS`."""
    return tuple(event for event in EVENTS if any(before == state and what == event for before, what in _NEXT))
