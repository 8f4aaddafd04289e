"""Programmes are data: what ships, what is left open, what activation takes, and how they read."""

from datetime import date
from fractions import Fraction

import pytest
from sqlmodel import select

from marketplace.db import reading, transaction
from marketplace.ledger.posting import balance
from marketplace.ledger.rebuild import rebuild
from marketplace.organisations.tables import AuditEvent
from marketplace.vouchers.programme import OPEN_FIELDS, ProgrammeFile, decide_ratio, read_programme, shipped, unset
from marketplace.vouchers.rollout import (
    activate,
    decide_programme_state,
    get_programme,
    list_programmes,
    load_programme,
    load_shipped,
    rules_of,
    set_programme_state,
)
from marketplace.vouchers.wording import describe, ratio_text, yuan
from model_store.errors import BadInput, Conflict, NotFound
from tests.marketplace.town import START, programme_file

VALUES = {
    "ratio": {"num": 3, "den": 10},
    "settlement_mode": "deduct",
    "validity": {"days": 365, "until": "2028-02-04"},
    "payee": "provider",
    "evidence_schema": [{"code": "contract", "title_zh": "合同", "title_en": "contract"}],
    "tax_basis": {"fee_bp": 300, "vat_bp": 600},
}


def by_code(code):
    return next(programme for programme in shipped() if programme.code == code)


def test_dongguan_s_two_programmes_state_what_the_policy_states():
    model, compute = by_code("dongguan-model-2025"), by_code("dongguan-compute-2025")
    assert (model.pool_fen, model.cap_fen, model.cap_period) == (1_500_000_000, 100_000_000, "programme")
    assert (compute.pool_fen, compute.cap_fen, compute.cap_period) == (5_000_000_000, 100_000_000, "calendar_year")
    assert model.filing_required
    assert compute.ratio_max.fraction == Fraction(1, 2)
    assert not model.is_demo
    assert not compute.is_demo
    assert {source.field for source in model.sources} == {"pool_fen", "cap_fen", "filing_required"}


@pytest.mark.parametrize("code", ["dongguan-model-2025", "dongguan-compute-2025"])
def test_what_the_policy_leaves_open_is_unset(code):
    assert unset(by_code(code)) == list(OPEN_FIELDS)


def test_the_demonstrations_say_so_and_cover_both_settlement_modes():
    demos = [programme for programme in shipped() if programme.is_demo]
    assert {programme.settlement_mode for programme in demos} == {"reimburse", "deduct"}
    for programme in demos:
        assert "演示" in programme.title_zh
        assert programme.ratio.fraction == Fraction(1, 3)
        assert unset(programme) == []
    assert all(not programme.is_demo for programme in shipped(include_demo=False))


def test_activation_names_what_is_still_open_one_by_one(engine):
    with transaction(engine) as session:
        row = load_programme(session, by_code("dongguan-model-2025"), actor="a")
    given = {}
    for name in OPEN_FIELDS:
        with pytest.raises(Conflict) as refused, transaction(engine) as session:
            activate(session, row.id, given, actor="a", at_ms=START)
        assert refused.value.code == "PROGRAMME_UNSET"
        left = [item["field"] for item in refused.value.details["unset"]]
        assert left == [each for each in OPEN_FIELDS if each not in given]
        assert OPEN_FIELDS[name][0] in refused.value.zh
        assert OPEN_FIELDS[name][1] in refused.value.en
        given[name] = VALUES[name]
    with transaction(engine) as session:
        activated = activate(session, "dongguan-model-2025", given, actor="a", at_ms=START)
        assert activated.state == "active"
        assert balance(session, f"Q.unissued[{row.id}]") == 1_500_000_000
        rules = rules_of(activated)
        assert rules.use_by(date(2027, 1, 15)) == date(2028, 1, 15)
        assert rules.use_by(date(2027, 3, 1)) == date(2028, 2, 4)  # never past the measures' own end
        assert rules.terms().fee_bp == 300
    with reading(engine) as session:
        assert rebuild(session).sound
        event = session.exec(select(AuditEvent).where(AuditEvent.action == "programme.activate")).one()
        assert event.details["values"] == VALUES


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"pool_fen": 1}, "PROGRAMME_INVALID"),
        ({"nonsense": 1}, "PROGRAMME_INVALID"),
        ({"ratio": {"num": 3, "den": 2}}, "PROGRAMME_INVALID"),
        ({"settlement_mode": "barter"}, "PROGRAMME_INVALID"),
        ({"ratio": {"num": 51, "den": 100}}, "PROGRAMME_INVALID"),  # above the document's bound
    ],
)
def test_activation_takes_open_values_only_and_within_bounds(engine, values, code):
    with transaction(engine) as session:
        load_programme(session, by_code("dongguan-compute-2025"), actor="a")
    with pytest.raises(BadInput) as refused, transaction(engine) as session:
        activate(session, "dongguan-compute-2025", values, actor="a", at_ms=START)
    assert refused.value.code == code


def test_a_value_that_the_file_states_is_not_changed_at_activation(engine):
    with transaction(engine) as session:
        load_programme(session, programme_file(), actor="a")
    with pytest.raises(BadInput) as refused, transaction(engine) as session:
        activate(session, "town", {"ratio": {"num": 1, "den": 2}}, actor="a", at_ms=START)
    assert refused.value.code == "PROGRAMME_FIXED"


def test_a_programme_is_activated_once(engine):
    with transaction(engine) as session:
        load_programme(session, programme_file(), actor="a")
        activate(session, "town", {}, actor="a", at_ms=START)
    with pytest.raises(Conflict) as refused, transaction(engine) as session:
        activate(session, "town", {}, actor="a", at_ms=START)
    assert refused.value.code == "PROGRAMME_STATE"


def test_starting_loads_what_ships_once_and_activates_only_demonstrations(engine):
    for _ in range(2):
        with transaction(engine) as session:
            load_shipped(session, demo=True)
    with reading(engine) as session:
        rows, total = list_programmes(session)
        assert total == 4
        assert [(row.code, row.state) for row in rows] == [
            ("dongguan-compute-2025", "draft"),
            ("dongguan-model-2025", "draft"),
            ("demo-deduct", "active"),
            ("demo-reimburse", "active"),
        ]


def test_a_market_without_demonstration_loads_dongguan_s_two_only(engine):
    with transaction(engine) as session:
        assert {row.code for row in load_shipped(session, demo=False)} == {
            "dongguan-compute-2025",
            "dongguan-model-2025",
        }


def test_a_new_version_of_a_file_is_a_programme_of_its_own(engine):
    with transaction(engine) as session:
        first = load_programme(session, programme_file(), actor="a")
        second = load_programme(session, programme_file(version=2), actor="a")
        assert load_programme(session, programme_file(), actor="a").id == first.id
        assert get_programme(session, "town").id == second.id
        assert get_programme(session, first.id).id == first.id
        with pytest.raises(NotFound):
            get_programme(session, "nothing")


def test_states_follow_their_order(engine):
    with transaction(engine) as session:
        load_programme(session, programme_file(), actor="a")
        activate(session, "town", {}, actor="a", at_ms=START)
        for decision, state in (
            ("freeze", "frozen"),
            ("unfreeze", "active"),
            ("close", "closed"),
            ("audit", "audited"),
        ):
            assert set_programme_state(session, "town", decision, actor="a").state == state
    with pytest.raises(Conflict):
        decide_programme_state("audited", "activate")


@pytest.mark.parametrize(
    "changes",
    [
        {"tranches": [{"code": "one", "fen": 1_000_001}]},
        {"tranches": [{"code": "one", "fen": 1}, {"code": "one", "fen": 2}]},
        {"tranches": []},
        {"funders": [{"name_zh": "市", "name_en": "city", "share_bp": 9_999}]},
        {"title_zh": "无标记"},
        {"is_demo": False},
        {"payee": "platform"},
        {"surprise": 1},
        {"code": "Not A Code"},
        {"cap_fen": -1},
    ],
)
def test_a_file_that_contradicts_itself_is_refused(changes):
    with pytest.raises(BadInput) as refused:
        programme_file(**changes)
    assert refused.value.code == "PROGRAMME_INVALID"
    with pytest.raises(BadInput):
        read_programme("not an object")


def test_the_first_ratio_rule_that_fits_decides():
    programme = programme_file(
        ratio_rules=[
            {"ratio": {"num": 1, "den": 2}, "firm_age_max_years": 3},
            {"ratio": {"num": 2, "den": 5}, "tiers": ["base"], "filed": True},
        ]
    )
    facts = {"tier": "small", "filed": True, "firm_age_years": None}
    assert decide_ratio(programme, **facts).den == 3
    assert decide_ratio(programme, **facts | {"firm_age_years": 3}).den == 2
    assert decide_ratio(programme, **facts | {"firm_age_years": 4}).den == 3
    assert decide_ratio(programme, **facts | {"tier": "base"}).den == 5
    assert decide_ratio(programme, **facts | {"tier": "base", "filed": False}).den == 3
    with pytest.raises(Conflict) as refused:
        decide_ratio(by_code("dongguan-model-2025"), **facts)
    assert refused.value.code == "PROGRAMME_UNSET"
    with pytest.raises(ValueError, match="no validity"):
        by_code("dongguan-model-2025").use_by(date(2027, 1, 1))


def test_a_programme_reads_as_sentences_in_both_languages():
    whole = programme_file(
        min_spend_fen=10_050,
        notice_days=5,
        evidence_schema=[{"code": "contract", "title_zh": "合同", "title_en": "contract"}],
        ratio_rules=[{"ratio": {"num": 1, "den": 2}, "tiers": ["base"]}],
        validity={"days": 30, "until": "2028-02-04"},
    )
    words = describe(whole)
    assert len(words["zh"]) == len(words["en"])
    assert "支付实际结算金额的 1/3" in words["zh"]
    assert "制造业基础大模型: 支付 50%" in words["zh"]
    assert "manufacturing base model: it pays 50%" in words["en"]
    assert "合同金额与实际结算金额均不低于 100.50 元" in words["zh"]
    assert "evidence: contract" in words["en"]
    assert any(sentence.startswith("a public notice of 5 days precedes the issue") for sentence in words["en"])
    assert words["unset"] == []
    open_one = describe(by_code("dongguan-compute-2025"))
    assert any(sentence.startswith("最高支付实际结算金额的 50%") for sentence in open_one["zh"])
    assert any("尚未确定" in sentence for sentence in open_one["zh"])
    assert "补贴比例未定" in describe(by_code("dongguan-model-2025"))["zh"]
    bare = describe(programme_file(filing_required=False, related_party_policy="allow", who=["vendor"]))
    assert not any("备案" in sentence or "关联方" in sentence for sentence in bare["zh"])


# field → a value other than its own in SAID, or several; each has to be read in both languages
CHANGED = {
    "document_zh": ["某文件"],
    "document_en": ["a document"],
    "kind": ["compute"],
    "who": [["vendor"], ["enterprise", "vendor"]],
    "pool_fen": [2_000_000],
    "tranches": [
        [{"code": "two", "fen": 1_000_000}],
        [{"code": "one", "fen": 999_999}],
        [{"code": "one", "fen": 1_000_000, "own_approval": True}],
    ],
    "funders": [[], [{"name_zh": "区", "name_en": "district", "share_bp": 10_000}]],
    "ratio": [{"num": 1, "den": 4}],
    "ratio_max": [{"num": 2, "den": 3}],
    "ratio_rules": [
        [],
        [{"ratio": {"num": 1, "den": 5}, "tiers": ["base"], "filed": True, "firm_age_max_years": 3}],
        [{"ratio": {"num": 1, "den": 2}, "tiers": ["small"], "filed": True, "firm_age_max_years": 3}],
        [{"ratio": {"num": 1, "den": 2}, "tiers": ["base"], "filed": False, "firm_age_max_years": 3}],
        [{"ratio": {"num": 1, "den": 2}, "tiers": ["base"], "filed": True, "firm_age_max_years": 4}],
    ],
    "cap_fen": [400_000],
    "cap_period": ["calendar_year"],
    "contract_once": [True],
    "min_spend_fen": [0, 200],
    "subject": ["base", "derivative"],
    "filing_required": [False],
    "related_party_policy": ["allow"],
    "stacking": ["none"],
    "stacking_max": [None, {"num": 1, "den": 5}],
    "priority": [101],
    "validity": [{"days": 31}, {"days": 30, "until": "2028-01-01"}, {"days": 30, "redeem_days": 91}],
    "late_usage_grace_days": [2],
    "checks": [[], [{"code": "uscc", "valid_days": 30}], [{"code": "uscc", "override": "never"}]],
    "evidence_schema": [[], [{"code": "a", "title_zh": "乙", "title_en": "b"}]],
    "retention_years": [11],
    "settlement_mode": ["reimburse"],
    "payee": ["provider"],
    "tax_basis": [{"fee_bp": 501, "vat_bp": 600}, {"fee_bp": 500, "vat_bp": 601}],
    "notice_days": [0, 6],
    "notice_on_objection": ["continue", "restart"],
    "clawback_policy": ["proportional"],
    "signals": [{"identical_calls": 7}],
}
UNSAID = {
    "code": "the page shows it beside the title",
    "version": "the page shows it beside the title",
    "title_zh": "the title itself",
    "title_en": "the title itself",
    "is_demo": "the title says 演示, and the page marks it",
    "sources": "each restates a value that has its sentence",
    "base": "one value only, and the share's sentence says: of what is settled",
}
SAID = {
    "document_zh": "文件", "document_en": "document", "min_spend_fen": 100, "stacking": "cap_total_ratio",
    "stacking_max": {"num": 1, "den": 2}, "ratio_max": {"num": 1, "den": 2}, "notice_days": 5,
    "funders": [{"name_zh": "市", "name_en": "city", "share_bp": 10_000}],
    "ratio_rules": [{"ratio": {"num": 1, "den": 2}, "tiers": ["base"], "filed": True, "firm_age_max_years": 3}],
    "evidence_schema": [{"code": "a", "title_zh": "甲", "title_en": "a"}], "checks": [{"code": "uscc"}],
}  # fmt: skip
# what a change of one field takes with it, or the file would contradict itself
WITH = {
    "settlement_mode": {"payee": None, "settlement_mode": "deduct"},
    "payee": {"settlement_mode": "deduct", "payee": "platform"},
    "stacking": {"stacking_max": None},
}


def test_every_field_of_a_programme_is_told_or_is_named_with_a_reason():
    assert set(CHANGED) | set(UNSAID) == set(ProgrammeFile.model_fields)
    assert not set(CHANGED) & set(UNSAID)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in CHANGED.items() for value in values])
def test_a_field_that_is_otherwise_reads_otherwise(field, value):
    one = describe(programme_file(**SAID | WITH.get(field, {})))
    other = describe(programme_file(**SAID | WITH.get(field, {}) | {field: value}))
    languages = {"document_zh": ["zh"], "document_en": ["en"]}.get(field, ["zh", "en"])
    for language in languages:
        assert one[language] != other[language]
    assert len(other["zh"]) == len(other["en"])
    assert all(sentence and "None" not in sentence for words in (other["zh"], other["en"]) for sentence in words)


def test_money_and_shares_are_written_as_people_write_them():
    assert (yuan(1_500_000_000), yuan(1_234_505), yuan(7)) == ("15,000,000", "12,345.05", "0.07")
    assert (ratio_text(by_code("demo-deduct").ratio), ratio_text(by_code("dongguan-compute-2025").ratio_max)) == (
        "1/3",
        "50%",
    )
