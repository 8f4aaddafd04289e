"""The checks of an application: made, kept with how long they hold, and judged before the approval and confirmation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from sqlmodel import Session, select

from marketplace.catalogue.tables import Filing
from marketplace.clock import end_of_day_ms, policy_date
from marketplace.evidence.files import live_files
from marketplace.ledger import accounts
from marketplace.ledger.posting import balance
from marketplace.ledger.tables import CapCounter
from marketplace.organisations.tables import Organisation
from marketplace.vouchers import eligibility as rules_of_eligibility
from marketplace.vouchers.eligibility import Decision, Reason
from marketplace.vouchers.evidence_given import given_codes
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.refusals import conflict, words
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.sale import filing_fact, party_of
from marketplace.vouchers.tables import Application, CheckOverride, Programme
from marketplace.vouchers.tranches import held_back
from model_store.errors import Conflict


def good_until_ms(at_ms: int, valid_days: int) -> int:
    """The last millisecond that a check made at an instant holds: whole days in Asia/Shanghai after its own."""
    return end_of_day_ms(policy_date(at_ms) + timedelta(days=valid_days))


def run_checks(session: Session, row: Application, programme: Programme, at_ms: int) -> list[dict[str, Any]]:
    """Every check of the programme: [{code, passed, reason, zh, en, at_ms, good_until_ms}]."""
    rules, organisation = rules_of(programme), session.get_one(Organisation, row.organisation_id)
    decide = _deciders(session, row, programme, rules, organisation, at_ms)
    results = []
    for wanted in rules.checks:
        decision = decide[wanted.code]()
        zh, en = words(str(decision.reason)) if decision.reason else ("通过", "passed")
        results.append(
            {
                "code": wanted.code,
                "passed": decision.passed,
                "reason": str(decision.reason or ""),
                "zh": zh,
                "en": en,
                "at_ms": at_ms,
                "good_until_ms": good_until_ms(at_ms, wanted.valid_days),
            }
        )
    return results


def _deciders(
    session: Session,
    row: Application,
    programme: Programme,
    rules: ProgrammeFile,
    organisation: Organisation,
    at_ms: int,
) -> dict[str, Callable[[], Decision]]:
    day, party = policy_date(at_ms), party_of(organisation)
    e = rules_of_eligibility

    def filing() -> Decision:
        return e.decide_filed_model_exists(rules, map(filing_fact, session.exec(select(Filing))), day)

    def cap() -> Decision:
        return e.decide_cap(rules, row.requested_fen, cap_room(session, programme, rules, organisation.id, at_ms))

    def pool() -> Decision:
        unissued = balance(session, accounts.unissued(programme.id))
        return e.decide_pool(row.requested_fen, unissued, held_back(session, programme.code, rules))

    return {
        "standing": lambda: e.decide_standing(rules, party),
        "uscc": lambda: e.decide_uscc(party),
        "filing": filing,
        "cap": cap,
        "pool": pool,
        "evidence": lambda: e.decide_evidence(
            rules, given_codes(rules, row.evidence, [file.code for file in live_files(session, [row.id])])
        ),
    }


def decide_fresh_and_passed(checks: list[dict[str, Any]], let_pass: Mapping[str, str], at_ms: int) -> None:
    """`Conflict` with the first failure's reason, or CHECKS_STALE. `let_pass`: check → the reason two persons let pass.

    A failure that is let pass holds for that reason only: one that fails for another since is a failure again.
    """
    failed = [c for c in checks if not c["passed"] and let_pass.get(c["code"]) != c["reason"]]
    if failed:
        raise conflict(Reason(failed[0]["reason"]), failed=[c["code"] for c in failed])
    stale = [c["code"] for c in checks if c["good_until_ms"] < at_ms]
    if stale or not checks:
        raise Conflict(
            "CHECKS_STALE",
            zh="资格核查已过有效期, 须重新核查",
            en="the checks are too old and must be run again",
            remedy_zh="请重新执行核查",
            remedy_en="run the checks again",
            details={"checks": stale},
        )


def let_pass(overrides: Iterable[CheckOverride]) -> dict[str, str]:
    """Check → the reason that two persons let pass."""
    return {row.code: row.failed_reason for row in overrides if row.state == "approved"}


def cap_code(programme: Programme, rules: ProgrammeFile, organisation_id: str, at_ms: int) -> str:
    """The C.ent counter of the period that an instant falls in; one for all versions of the programme."""
    period = str(policy_date(at_ms).year) if rules.cap_period == "calendar_year" else "all"
    return accounts.cap_enterprise(programme.code, organisation_id, period)


def cap_room(session: Session, programme: Programme, rules: ProgrammeFile, organisation_id: str, at_ms: int) -> int:
    """What the cap of these rules still has room for: below zero where an earlier version allowed more."""
    counter = session.get(CapCounter, cap_code(programme, rules, organisation_id, at_ms))
    return rules.cap_fen if counter is None else rules.cap_fen - counter.used_fen - counter.held_fen
