"""Rolling a programme out: load the file, name what it leaves open, activate (P1 per tranche), freeze, close."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.clock import now_ms
from marketplace.ids import new_id
from marketplace.organisations import audit
from marketplace.vouchers.auditing import decide_settled, open_matters
from marketplace.vouchers.programme import OPEN_FIELDS, ProgrammeFile, read_programme, shipped, unset, unset_refusal
from marketplace.vouchers.tables import Programme
from marketplace.vouchers.versions import RUNS, lock_versions, take_over
from model_store.errors import BadInput, Conflict, NotFound

_TRANSITIONS = {
    ("draft", "activate"): "active",
    ("active", "freeze"): "frozen",
    ("frozen", "unfreeze"): "active",
    ("active", "close"): "closed",
    ("frozen", "close"): "closed",
    ("closed", "audit"): "audited",
}


def decide_programme_state(state: str, decision: str) -> str:
    """The state after a decision; `Conflict` PROGRAMME_STATE where it does not apply."""
    after = _TRANSITIONS.get((state, decision))
    if after is None:
        raise Conflict(
            "PROGRAMME_STATE",
            zh=f"状态为“{state}”的券项目不能执行“{decision}”",
            en=f"a programme that is {state} cannot {decision}",
            remedy_zh="请刷新后查看当前状态",
            remedy_en="look at its present state",
            details={"state": state},
        )
    return after


def load_programme(session: Session, file: ProgrammeFile, *, actor: str) -> Programme:
    """The draft row of a programme file; a (code, version) that is there already is answered as it stands."""
    query = select(Programme).where(Programme.code == file.code, Programme.version == file.version)
    standing = session.exec(query).first()
    if standing is not None:
        return standing
    row = Programme(
        id=new_id("prg"),
        code=file.code,
        version=file.version,
        title_zh=file.title_zh,
        title_en=file.title_en,
        document=file.model_dump(mode="json"),
        is_demo=file.is_demo,
    )
    session.add(row)
    session.flush()
    audit.record(session, actor=actor, action="programme.load", subject=row.id, code=file.code, version=file.version)
    return row


def load_shipped(session: Session, *, demo: bool, actor: str = "system") -> list[Programme]:
    """Dongguan's two as drafts; with `demo`, the demonstrations too, active at once."""
    rows = []
    for file in shipped(include_demo=demo):
        row = load_programme(session, file, actor=actor)
        if file.is_demo and row.state == "draft":
            for version in lock_versions(session, row.code):  # a home from before this version: it takes over
                if version.state in RUNS:
                    set_programme_state(session, version.id, "close", actor=actor)
            activate(session, row.id, {}, actor=actor, at_ms=now_ms())
        rows.append(row)
    return rows


def get_programme(session: Session, programme_id: str, *, lock: bool = False, running: bool = False) -> Programme:
    """By id, or by code: its newest version, or first the one that is active (`running`), so that a draft of the next
    one stands in nobody's way. `NotFound` PROGRAMME_NOT_FOUND."""
    query = select(Programme).where((col(Programme.id) == programme_id) | (col(Programme.code) == programme_id))
    first = [col(Programme.state) != "active"] if running else []
    query = query.order_by(*first, col(Programme.version).desc()).limit(1)
    row = session.exec(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(
            "PROGRAMME_NOT_FOUND",
            zh=f"没有券项目“{programme_id[:60]}”",
            en=f"there is no programme {programme_id[:60]!r}",
            remedy_zh="请查看券项目列表",
            remedy_en="see the list of programmes",
            field="programme",
        )
    return row


def rules_of(row: Programme) -> ProgrammeFile:
    """The rules of a programme as they stand in its row."""
    return read_programme(row.document)


def activate(session: Session, programme_id: str, values: Mapping[str, Any], *, actor: str, at_ms: int) -> Programme:
    """Name the open values and put the programme in force: P1 for each tranche.

    `BadInput` PROGRAMME_INVALID, or PROGRAMME_FIXED for a value that the file already states; `Conflict`
    PROGRAMME_UNSET names what is still open; `versions.take_over` refuses what other versions stand against.
    """
    row = get_programme(session, programme_id)
    others = [version for version in lock_versions(session, row.code) if version.id != row.id]
    state = decide_programme_state(row.state, "activate")
    rules = rules_of(row)
    for name in values:
        if name not in unset(rules):
            known = name in OPEN_FIELDS
            raise BadInput(
                "PROGRAMME_FIXED" if known else "PROGRAMME_INVALID",
                zh=f"“{name[:60]}”{'已由项目文件确定' if known else '不是待定事项'}",
                en=f"{name[:60]} is {'fixed by the programme file' if known else 'not a value that is left open'}",
                remedy_zh="如需更改, 请提交新版本的项目文件",
                remedy_en="to change it, load a new version of the file",
                field=name[:60],
            )
    rules = read_programme({**row.document, **values})
    if unset(rules):
        raise unset_refusal(rules)
    row.document, row.state, row.activated_by = rules.model_dump(mode="json"), state, actor
    session.add(row)
    session.flush()
    take_over(session, row, rules, others, at_ms)
    audit.record(session, actor=actor, action="programme.activate", subject=row.id, code=row.code, values=dict(values))
    return row


def set_programme_state(
    session: Session, programme_id: str, decision: str, *, actor: str, at_ms: int | None = None
) -> Programme:
    """Freeze, unfreeze, close or audit. A frozen or closed programme issues nothing; what it issued stays usable until
    its use-by day, so that a new version takes nothing from anybody. An audited one is over: `Conflict`
    PROGRAMME_NOT_SETTLED while anything of it may still be used, claimed or owed.
    """
    row = get_programme(session, programme_id, lock=True)
    state = decide_programme_state(row.state, decision)
    if decision == "audit":
        decide_settled(row.code, open_matters(session, row, now_ms() if at_ms is None else at_ms))
    row.state = state
    session.add(row)
    audit.record(session, actor=actor, action=f"programme.{decision}", subject=row.id, code=row.code)
    return row


def list_programmes(session: Session, limit: int = 100, offset: int = 0) -> tuple[list[Programme], int]:
    """Real ones first, then demonstrations."""
    ordered = select(Programme).order_by(col(Programme.is_demo), col(Programme.code), col(Programme.version).desc())
    total = session.exec(select(func.count()).select_from(Programme)).one()
    return list(session.exec(ordered.limit(limit).offset(offset))), total
