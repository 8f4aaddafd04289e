"""The reconciliation report: each figure from two sources, and what it says when one of them is changed."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import pytest
from typer.testing import CliRunner

from marketplace.cli import app as command_line
from marketplace.clock import now_ms, policy_date
from marketplace.db import transaction
from marketplace.integrity.books import check_books
from marketplace.reports.pack import differences_in
from marketplace.vouchers import closing
from marketplace.vouchers.tables import Reservation, Subscription, Voucher
from tests.marketplace import test_claims as claims
from tests.marketplace.stores import on_both_stores, unguarded
from tests.marketplace.test_claims import pay, reject, trade
from tests.marketplace.test_reports import as_the_counters_have_it, instant, pack, report
from tests.marketplace.test_revoking import revoke
from tests.marketplace.town import DAY, LIN, Town


def pytest_generate_tests(metafunc):
    on_both_stores(metafunc, only_sqlite=("test_the_command_line_ends_with_1_where_something_does_not_agree",))


@pytest.fixture
def began() -> int:
    """Today: audit events and postings are stamped by the machine's own clock."""
    return now_ms()


def reconcile(town: Town, blobs: Any, as_of: int | None = None, **facts: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in report(town, blobs, "reconcile", as_of, **facts):
        found.setdefault(row["what"], []).append(row)
    return found


def wrong(town: Town, blobs: Any) -> set[str]:
    return {what for what, rows in reconcile(town, blobs).items() if not all(row["ok"] for row in rows)}


def live_through(town: Town, blobs: Any, **changes: Any) -> str:
    """Use, corrections, one batch paid and clawed back in part, another one with its line rejected, a lapse."""
    trade(town, clawback_policy="proportional", **changes)
    batch = claims.approved(town, blobs)
    pay(town, batch)
    claims.claw(town, claims.lines(town, batch)[0].id, 5, ("confirm", LIN))
    more = town.node("n2")
    more.call(count=60)
    more.stop()
    claims.correct(town, more.acknowledged[0].usage_id)
    second = claims.new_batch(town)
    claims.freeze(town, blobs, second)
    claims.advance(town, second, "submit")
    reject(town, second)
    with transaction(town.engine) as session:
        closing.expire_vouchers(session, town.now + 60 * DAY)
    check_books(town.engine)
    return batch


@pytest.mark.parametrize("terms", [{}, {"settlement_mode": "deduct", "payee": "provider"},
                                   {"settlement_mode": "deduct", "payee": "platform"}])  # fmt: skip
def test_the_ledger_agrees_with_each_of_its_sources_at_every_instant(town, blobs, terms):
    trade(town, clawback_policy="proportional", **terms)
    instants = [instant()]
    batch = claims.approved(town, blobs)
    instants.append(instant())
    pay(town, batch)
    instants.append(instant())
    claims.claw(town, claims.lines(town, batch)[0].id, 5, ("confirm", LIN))
    instants.append(instant())
    for at in instants:
        rows = reconcile(town, blobs, at)
        assert all(row["ok"] for found in rows.values() for row in found)
    (paid,), (clawed,), (settled,) = (rows[what] for what in ("paid", "clawed-back", "government-settled"))
    assert (paid["a_fen"], paid["b_fen"], clawed["a_fen"]) == (7, 7, 5)
    assert settled["b_fen"] == (12 if terms else 0)
    assert {row["what"] for row in report(town, blobs, "reconcile", instants[0])} == {
        "usage-gross", "usage-subsidy", "voucher-face", "pool", "paid", "clawed-back", "government-settled",
        "government-owes", "Σ",
    }  # fmt: skip


def test_each_row_has_both_sources_after_use_claims_correction_rejection_and_lapse(town, blobs):
    batch = live_through(town, blobs)
    rows = reconcile(town, blobs)
    assert not [row for found in rows.values() for row in found if not row["ok"]]
    (gross,), (subsidy,), (face,) = (rows[what] for what in ("usage-gross", "usage-subsidy", "voucher-face"))
    assert (gross["a_fen"], gross["b_fen"]) == (58, 58)  # 159 calls at 0.37 fen are 58.83
    assert (subsidy["a_fen"], subsidy["may_wait_fen"]) == (19, 2)
    assert (gross["of"], face["of"]) == (town.rows(Reservation)[0].id, town.rows(Voucher)[0].id)
    assert (face["a_fen"], face["b_fen"]) == (1_000, 1_000)
    (paid,) = rows["claim-payment"]
    assert (paid["of"], paid["a_fen"], paid["b_fen"]) == (batch, 12, 12)
    assert paid["period"] == f"{claims.first_day(town)}/{claims.today(town)}"
    (total,) = rows["Σ"]
    assert (total["compared"], total["differing"]) == (sum(map(len, rows.values())) - 1, 0)
    (check,) = rows["nightly-check"]
    assert check["compared"] > 0


def test_a_revoked_voucher_s_face_and_caps_are_told_as_the_ledger_and_the_counters_have_them(town, blobs):
    trade(town)
    revoke(town, town.rows(Voucher)[0].id)
    rows = reconcile(town, blobs)
    assert all(row["ok"] for found in rows.values() for row in found)
    (face,) = rows["voucher-face"]
    assert (face["a_fen"], face["b_fen"]) == (1_000, 1_000)
    as_the_counters_have_it(town, blobs)


def test_a_period_reconciles_what_was_used_and_posted_in_it(town, blobs):
    trade(town)
    today = policy_date(now_ms()).isoformat()
    rows = reconcile(town, blobs, from_day=today)
    (gross,) = rows["usage-gross"]
    assert (gross["a_fen"], gross["b_fen"], gross["period"]) == (37, 37, f"{today}/{today}")
    assert all(row["ok"] for row in rows["usage-subsidy"])


def test_self_paid_usage_is_reconciled_by_its_contract(town, blobs):
    town.subscribe(on_voucher_end="self_pay")
    node = town.node()
    node.call(count=10)
    node.stop()
    (row,) = reconcile(town, blobs)["usage-gross"]
    assert (row["of"], row["a_fen"], row["b_fen"], row["ok"]) == (town.rows(Subscription)[0].id, 3, 3, True)


@pytest.mark.parametrize(
    ("forgery", "named"),
    [
        ("DELETE FROM usage WHERE seq IN (1, 2, 3)", {"usage-gross", "usage-subsidy"}),
        ("UPDATE voucher SET face_fen = face_fen + 1", {"voucher-face", "pool"}),
        ("UPDATE ledger_entry SET amount_fen = amount_fen + 1 WHERE account LIKE 'M.pay.provider%'", {"usage-gross"}),
        ("UPDATE ledger_entry SET amount_fen = amount_fen + 1 WHERE account LIKE 'Q.batch%'"
         " AND transfer_id = (SELECT MIN(id) FROM ledger_transfer WHERE kind = 'P9')",
         {"claim-transfers", "claim-document", "claim-standing", "government-owes"}),
        ("UPDATE ledger_entry SET amount_fen = amount_fen + 1 WHERE account LIKE 'Q.paid%'", {"paid"}),
        ("UPDATE ledger_entry SET amount_fen = amount_fen - 1 WHERE account LIKE 'M.recv.gov%'"
         " AND transfer_id = (SELECT MIN(id) FROM ledger_transfer WHERE kind = 'P10')",
         {"government-settled", "government-owes"}),
    ],
)  # fmt: skip
def test_a_source_that_says_otherwise_is_shown_with_its_difference(town, blobs, forgery, named):
    trade(town, settlement_mode="deduct", payee="provider")
    pay(town, claims.approved(town, blobs))
    unguarded(town.engine, forgery)
    assert wrong(town, blobs) == named | {"Σ"}
    (total,) = reconcile(town, blobs)["Σ"]
    assert total["differing"] == len(named)
    first = next(row for row in reconcile(town, blobs)[min(named)] if not row["ok"])
    assert first["difference_fen"] == first["a_fen"] - first["b_fen"] != 0


def test_a_cap_counter_that_holds_another_figure_is_told_as_the_nightly_check_found_it(town, blobs):
    trade(town)
    unguarded(town.engine, "UPDATE cap_counter SET held_fen = held_fen - 1 WHERE code LIKE 'C.pool%'")
    before = instant()
    check_books(town.engine)
    assert "nightly-cap" not in reconcile(town, blobs, before)
    rows = reconcile(town, blobs)
    (cap,) = rows["nightly-cap"]
    assert (cap["of"][:7], cap["a_fen"], cap["b_fen"], cap["ok"]) == ("C.pool[", 1_000, 999, False)
    assert (rows["nightly-check"][0]["differing"], rows["nightly-check"][0]["ok"]) == (1, False)


def test_the_same_instant_reconciles_to_the_same_bytes_whatever_happened_since(town, blobs, tmp_path):
    trade(town)
    as_of = instant()
    first = report(town, blobs, "reconcile", as_of)
    node = town.node("n2")
    node.call(count=50)
    node.stop()
    claims.correct(town, node.acknowledged[0].usage_id)
    pay(town, claims.approved(town, blobs))
    check_books(town.engine)
    assert report(town, blobs, "reconcile", as_of) == first


def test_the_pack_s_manifest_names_how_many_rows_do_not_agree(town, blobs, tmp_path):
    trade(town)
    sound = tmp_path / "sound.zip"
    sound.write_bytes(pack(town, blobs, instant(), tmp_path / "a"))
    assert differences_in(sound) == {}
    unguarded(town.engine, "UPDATE voucher SET face_fen = face_fen + 1")
    unsound = tmp_path / "unsound.zip"
    unsound.write_bytes(pack(town, blobs, instant(), tmp_path / "b", "csv"))
    assert differences_in(unsound) == {"reconcile.csv": 3}  # the face, the pool, the sum
    manifest = json.loads(zipfile.ZipFile(unsound).read("manifest.json"))
    judged = {each["file"]: each["differences"] for each in manifest["files"] if "differences" in each}
    assert judged == {"reconcile.csv": 3, "trial-balance.csv": 0}


def test_the_command_line_ends_with_1_where_something_does_not_agree(town, blobs, tmp_path, monkeypatch):
    from marketplace import clock

    trade(town)
    unguarded(town.engine, "UPDATE voucher SET face_fen = face_fen + 1")
    monkeypatch.setattr(clock, "now_ms", lambda: now_ms() + 20_000)
    target = tmp_path / "out.zip"
    done = CliRunner().invoke(command_line, ["reports", "pack", str(target), "--home", str(tmp_path), "--json"])
    assert done.exit_code == 1, done.output
    assert target.exists()
    assert '"reconcile.csv": 3' in done.output
