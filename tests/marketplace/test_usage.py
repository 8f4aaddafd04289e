"""Usage, traces, statements and the money routes over HTTP, as their users see them."""

import csv
import io
from typing import Any

import openpyxl
import pytest
from sqlmodel import select

import serving.leases
from marketplace.catalogue.tables import Listing
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.keys.authentication import scopes_of_kind
from marketplace.keys.service import create_key
from marketplace.organisations.registration import add_member
from marketplace.organisations.tables import Organisation
from marketplace.usage.statements import read_month
from marketplace.usage.tables import Usage
from marketplace.vouchers.lease_rows import month_of
from marketplace.vouchers.rollout import load_shipped
from marketplace.vouchers.tables import Application, Voucher
from model_store.errors import BadInput
from tests.marketplace.shelf import add_organisation
from tests.marketplace.town import Town, programme_file

API = "/api/v1"
PEOPLE = {"chen": "org_city", "lin": "org_city", "wang": "org_factory", "zhou": "org_vendor", "other": "org_other"}


class Recorder:
    """Stands where the data plane stands: notes for whom leases are to be asked for again."""

    def __init__(self):
        self.expired = []

    def expire_leases(self, organisation=None, listing_id=None):
        self.expired.append(organisation if listing_id is None else listing_id)


@pytest.fixture
def town(market, tmp_path, monkeypatch):
    town = Town(market.engine, tmp_path / "journal", now=now_ms())
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    market.dataplane = Recorder()
    market.catalogue_changed()
    return town


@pytest.fixture
def people(town, client):
    """`people("chen").get(path)`: requests with that person's own key."""
    keys = {}
    with transaction(town.engine) as session:
        for name, organisation_id in PEOPLE.items():
            organisation = session.get_one(Organisation, organisation_id)
            member = add_member(session, organisation, email=f"{name}@x.example", name=name, role="owner")
            scopes = scopes_of_kind(organisation.kind)
            _, keys[name] = create_key(
                session, organisation, name="k", scopes=scopes, actor="t", member_id=member.id, at_ms=town.now
            )
        operator = session.get_one(Organisation, "org_city")
        _, keys["robot"] = create_key(
            session, operator, name="r", scopes=scopes_of_kind("operator"), actor="t", at_ms=town.now
        )

    def call(name, method, path, status=200, **options):
        headers = {"Authorization": f"Bearer {keys[name]}"} if name else {}
        response = client.request(method, f"{API}{path}", headers=headers, **options)
        assert response.status_code == status, response.text
        return response.json() if "json" in response.headers.get("content-type", "") else response

    return call


def test_a_price_or_a_filing_that_changes_holds_from_the_next_call_on(town, market, people):
    """A lease carries its price for ten minutes: without a word to the nodes a cheaper price came ten minutes late."""
    with reading(market.engine) as session:
        listing = session.exec(select(Listing).where(Listing.name == "vendor/steel")).one().id
    people("zhou", "POST", "/models/vendor/steel/prices", 201, json={"fen_per_unit": "0.01"})
    assert market.dataplane.expired == [listing]
    people("zhou", "POST", "/models/vendor/steel/prices", 201, json={"fen_per_unit": "0.01", "kind": "derivative"})
    assert market.dataplane.expired == [listing, None]  # derivatives are listings of their own
    people("chen", "PUT", "/models/vendor/steel/filing", json={"filing": None})
    assert market.dataplane.expired == [listing, None, None]  # and a filing is inherited


def load(people, **changes):
    document = programme_file(**changes).model_dump(mode="json")
    programme = people("chen", "POST", "/programmes", 201, json={"document": document})
    return people("chen", "POST", f"/programmes/{programme['id']}/activate")


def issue(people, programme, fen=1_000):
    body = {"programme": programme["code"], "requested_fen": fen, "purpose": "质检", "evidence": [{"code": "a"}]}
    application = people("wang", "POST", "/applications", 201, json=body)["id"]
    people("wang", "PATCH", f"/applications/{application}", json={"purpose": "质检二期", "evidence": []})
    people("wang", "POST", f"/applications/{application}/submit")
    for step in ("check", "approve", "publish", "confirm"):
        people("chen", "POST", f"/applications/{application}/{step}")
    voucher = people("chen", "POST", "/vouchers", 201, json={"application_id": application})
    return people("lin", "POST", f"/vouchers/{voucher['id']}/approve")


def test_the_whole_way_over_http(town, people, market):
    voucher = issue(people, load(people))
    assert (voucher["state"], voucher["face_fen"], voucher["remaining_fen"]) == ("active", 1_000, 1_000)
    body = {"listing": "vendor/steel", "contract_fen": 3_000, "on_voucher_end": "self_pay", "monthly_cap_fen": 500}
    contract = people("wang", "POST", "/subscriptions", 201, json=body)
    assert contract["reservations"][0]["amount_fen"] == 1_000
    node = town.node()
    records = node.call(count=100)
    node.flush()
    listed = people("wang", "GET", "/usage?page_size=30&page=4")
    assert (listed["total"], len(listed["items"])) == (100, 10)
    trace = people("wang", "GET", f"/usage/{records[0].usage_id}")
    assert trace["price"]["micro_per_unit"] == 370_000
    assert trace["voucher_line"]["voucher_id"] == voucher["id"]
    assert trace["voucher_line"]["posted_subsidy_fen"] == 12
    assert trace["filing"]["number"] == "演示-不是备案号-1"
    assert trace["transfer"]["kind"] == "P5"
    assert trace["transfer"]["usage_records"] == 100
    assert sum(each["amount_fen"] for each in trace["transfer"]["entries"]) == 0
    seen = people("wang", "GET", f"/vouchers/{voucher['id']}")
    assert (seen["used_fen"], seen["remaining_fen"]) == (12, 988)
    pool = people("chen", "GET", "/pool")["items"][0]
    assert pool["conserved"]
    assert pool["used_fen"] == 12
    trial = people("chen", "GET", "/ledger/trial-balance")
    assert trial["balanced"]
    assert people("chen", "GET", "/ledger/rebuild")["sound"]
    accounts = people("chen", "GET", "/ledger/accounts?prefix=Q.used")
    assert accounts["items"][0]["balance_fen"] == 12
    transfer = people("chen", "GET", f"/ledger/transfers/{trace['transfer']['id']}")
    assert transfer["entries"] == trace["transfer"]["entries"]
    assert people("chen", "GET", "/ledger/transfers/999999", 404)["error"]["code"] == "TRANSFER_NOT_FOUND"
    changed = people("wang", "PATCH", f"/subscriptions/{contract['id']}", json={"monthly_cap_fen": None})
    assert changed["monthly_cap_fen"] is None
    assert changed["on_voucher_end"] == "self_pay"
    ended = people("wang", "POST", f"/subscriptions/{contract['id']}/end")
    assert ended["state"] == "ended"
    assert market.dataplane.expired[-1] == "org_factory"
    assert people("wang", "GET", "/subscriptions")["total"] == 1
    assert people("zhou", "GET", "/subscriptions?provided=true")["total"] == 1
    assert people("zhou", "GET", "/subscriptions")["total"] == 0
    node.stop()
    town.check()


def test_two_persons_over_http(people):
    programme = load(people)
    body = {"programme": programme["code"], "requested_fen": 100}
    application = people("wang", "POST", "/applications", 201, json=body)["id"]
    people("wang", "POST", f"/applications/{application}/submit")
    for step in ("check", "approve", "publish", "confirm"):
        people("chen", "POST", f"/applications/{application}/{step}")
    proposal = {"application_id": application, "face_fen": 60}
    assert people("robot", "POST", "/vouchers", 403, json=proposal)["error"]["code"] == "PERSON_REQUIRED"
    voucher = people("chen", "POST", "/vouchers", 201, json=proposal)["id"]
    assert people("chen", "POST", f"/vouchers/{voucher}/approve", 403)["error"]["code"] == "TWO_PERSONS"
    assert people("robot", "POST", f"/vouchers/{voucher}/approve", 403)["error"]["code"] == "PERSON_REQUIRED"
    assert people("chen", "POST", f"/vouchers/{voucher}/decline", 403)["error"]["code"] == "TWO_PERSONS"
    assert people("lin", "POST", f"/vouchers/{voucher}/withdraw", 403)["error"]["code"] == "PROPOSER_ONLY"
    assert people("lin", "POST", f"/vouchers/{voucher}/decline", 400)["error"]["code"] == "REASON_REQUIRED"
    declined = people("lin", "POST", f"/vouchers/{voucher}/decline", json={"note": "超出需要"})
    assert (declined["state"], declined["reason"]) == ("declined", "超出需要")
    assert declined["dropped_by"] not in ("", declined["proposed_by"])
    assert people("wang", "GET", f"/vouchers/{voucher}")["reason"] == "超出需要"
    assert people("chen", "POST", f"/vouchers/{voucher}/withdraw", 409)["error"]["code"] == "VOUCHER_STATE"
    withdrawn = people("chen", "POST", "/vouchers", 201, json={"application_id": application})
    assert withdrawn["face_fen"] == 100  # all that is left of it
    assert people("chen", "POST", f"/vouchers/{withdrawn['id']}/withdraw")["state"] == "withdrawn"
    voucher = people("chen", "POST", "/vouchers", 201, json=proposal)["id"]
    people("lin", "POST", f"/vouchers/{voucher}/approve")
    assert people("chen", "POST", f"/vouchers/{voucher}/suspend", json={"note": "核查"})["state"] == "suspended"
    assert people("chen", "POST", f"/vouchers/{voucher}/resume")["state"] == "active"
    assert people("wang", "POST", f"/vouchers/{voucher}/suspend", 403)["error"]["code"] == "ROLE_NOT_ALLOWED"


def knows_of_revocation(people, voucher: str) -> list[Any]:
    """What the voucher's enterprise is shown of its being taken away."""
    (listed,) = people("wang", "GET", "/vouchers")["items"]
    views = [listed["revocation"], people("wang", "GET", f"/vouchers/{voucher}")["revocation"]]
    steps = people("wang", "GET", f"/audit?subject={voucher}")["items"]
    return [each for each in views if each] + [each for each in steps if "revo" in each["action"]]


def test_a_voucher_is_revoked_over_http(people, market):
    voucher = issue(people, load(people))["id"]
    assert people("wang", "POST", f"/vouchers/{voucher}/revoke", 403)["error"]["code"] == "ROLE_NOT_ALLOWED"
    assert people("chen", "POST", f"/vouchers/{voucher}/revoke", 400)["error"]["field"] == "note"
    assert people("lin", "POST", f"/vouchers/{voucher}/confirm-revocation", 409)["error"]["code"] == "REVOCATION_STATE"
    assert people("wang", "GET", f"/vouchers/{voucher}")["revocation"] is None
    for decision, who, refused in (("decline", "lin", "TWO_PERSONS"), ("withdraw", "chen", "PROPOSER_ONLY")):
        proposed = people("chen", "POST", f"/vouchers/{voucher}/revoke", json={"note": "合同不实"})
        assert (proposed["state"], proposed["revocation"]["state"]) == ("active", "proposed")
        assert knows_of_revocation(people, voucher) == []  # it could use the voucher up meanwhile
        other = "chen" if who == "lin" else "lin"
        path = f"/vouchers/{voucher}/{decision}-revocation"
        assert people(other, "POST", path, 403, json={"note": "查无此事"})["error"]["code"] == refused
        dropped = people(who, "POST", path, json={"note": "查无此事"})
        assert (dropped["state"], dropped["revocation"]["note"]) == ("active", "查无此事")
        assert knows_of_revocation(people, voucher) == []
    people("chen", "POST", f"/vouchers/{voucher}/revoke", json={"note": "合同不实"})
    path = f"/vouchers/{voucher}/confirm-revocation"
    assert people("chen", "POST", path, 403)["error"]["code"] == "TWO_PERSONS"
    revoked = people("lin", "POST", path)
    assert (revoked["state"], revoked["returned_fen"], revoked["remaining_fen"]) == ("revoked", 1_000, 0)
    assert market.dataplane.expired[-1] == "org_factory"  # nodes ask again from the next call on
    seen = people("wang", "GET", f"/vouchers/{voucher}")["revocation"]
    assert (seen["state"], seen["reason"]) == ("confirmed", "合同不实")
    assert seen["decided_by"] not in ("", seen["proposed_by"])
    assert people("wang", "GET", "/vouchers?state=revoked")["total"] == 1


def test_programmes_are_read_by_anybody_and_activation_lists_what_is_open(town, people):
    with transaction(town.engine) as session:
        load_shipped(session, demo=False)
    listed = people("", "GET", "/programmes")
    assert {row["code"] for row in listed["items"]} == {"dongguan-model-2025", "dongguan-compute-2025"}
    whole = people("", "GET", "/programmes/dongguan-model-2025")
    assert whole["document"]["pool_fen"] == 1_500_000_000
    refusal = people("chen", "POST", "/programmes/dongguan-model-2025/activate", 409)["error"]
    assert refusal["code"] == "PROGRAMME_UNSET"
    assert [item["field"] for item in refusal["details"]["unset"]][:2] == ["ratio", "settlement_mode"]
    body = {"values": {"ratio": {"num": 1, "den": 2}}}
    people("chen", "POST", "/programmes/dongguan-model-2025/activate", 409, json=body)
    assert people("wang", "POST", "/programmes/dongguan-model-2025/activate", 403)["error"]["code"]
    assert people("chen", "GET", "/pool")["items"] == []


def test_a_programme_is_frozen_and_closed(people, market):
    programme = load(people)
    assert people("chen", "POST", f"/programmes/{programme['id']}/freeze")["state"] == "frozen"
    assert people("chen", "POST", f"/programmes/{programme['id']}/close")["state"] == "closed"
    assert market.dataplane.expired == [None, None]
    market.dataplane = None
    assert people("chen", "POST", f"/programmes/{programme['id']}/audit")["state"] == "audited"


def test_applications_are_seen_by_their_own_and_by_operators(people):
    programme = load(people, notice_days=3)
    body = {"programme": programme["code"], "requested_fen": 100}
    application = people("wang", "POST", "/applications", 201, json=body)["id"]
    people("wang", "POST", f"/applications/{application}/submit")
    assert people("other", "GET", "/applications")["total"] == 0
    assert people("chen", "GET", "/applications?state=submitted")["total"] == 1
    assert people("wang", "GET", f"/applications/{application}")["state"] == "submitted"
    assert people("other", "GET", f"/applications/{application}", 404)["error"]["code"] == "APPLICATION_NOT_FOUND"
    people("chen", "POST", f"/applications/{application}/check")
    people("chen", "POST", f"/applications/{application}/supplement", json={"note": "请补充"})
    people("wang", "PATCH", f"/applications/{application}", json={"requested_fen": 90})
    people("wang", "POST", f"/applications/{application}/submit")
    for step in ("check", "approve", "publish"):
        people("chen", "POST", f"/applications/{application}/{step}")
    (notice,) = people("", "GET", "/public-notices")["items"]
    assert (notice["requested_fen"], notice["organisation_zh"]) == (90, "factory")
    assert people("chen", "POST", f"/applications/{application}/confirm", 409)["error"]["code"] == "NOTICE_RUNNING"
    assert people("wang", "POST", f"/applications/{application}/approve", 403)


def test_usage_is_filtered_and_paged(town, people):
    subscription = town.subscribe(0, on_voucher_end="self_pay")
    with transaction(town.engine) as session:
        town.list_model(session, "vendor/gift", None)
    node = town.node()
    first = town.now
    node.call(count=3)
    town.now += 1_000
    node.call("vendor/gift", count=2)
    node.flush()

    def total(query):
        return people("wang", "GET", f"/usage?{query}")["total"]

    assert total("") == 5
    assert total("model=vendor/steel") == 3
    assert total("model=vendor/steel@1") == 3
    assert total("model=vendor/ste") == 0
    assert total(f"from_ms={first + 1}") == 2
    assert total(f"until_ms={first + 1}") == 3
    assert total(f"subscription_id={subscription}") == 3
    assert total("lease_kind=free&status=ok&key_id=key_1") == 2
    assert total("organisation_id=org_other") == 0
    assert people("other", "GET", "/usage")["total"] == 0
    assert people("chen", "GET", "/usage")["total"] == 5
    assert people("wang", "GET", "/usage?page_size=0", 400)["error"]["code"] == "REQUEST_INVALID"


def test_a_provider_sees_its_earnings_but_not_the_buyer_s_keys_and_digests(town, people):
    town.subscribe(0, on_voucher_end="self_pay")
    node = town.node()
    (record,) = node.call()
    node.flush()
    (row,) = people("zhou", "GET", "/usage")["items"]
    assert (row["amount_micro"], row["key_id"], row["request_digest"]) == (370_000, "", "")
    assert people("zhou", "GET", f"/usage/{record.usage_id}")["contract"]["on_voucher_end"] == "self_pay"
    assert people("other", "GET", f"/usage/{record.usage_id}", 404)["error"]["code"] == "USAGE_NOT_FOUND"


def test_a_trace_of_free_or_quarantined_usage_says_what_there_is(town, people):
    with transaction(town.engine) as session:
        facts = {"key_id": "k", "organisation_id": "org_factory", "model": "a/b@1"}
        session.add(Usage(usage_id="u", amount_micro=1, occurred_at_ms=1, **facts))
    trace = people("wang", "GET", "/usage/u")
    assert trace["usage"]["usage_id"] == "u"
    assert trace["filing"]["recorded"] is False  # no lease says which
    for name in ("price", "lease", "contract", "voucher_line", "provider", "transfer"):
        assert trace[name] is None


def test_usage_and_published_prices_recompute_the_charges_without_the_ledger(town, people):
    issue(people, load(people, settlement_mode="deduct", payee="provider"))
    town.subscribe(300, on_voucher_end="self_pay")  # 100 fen of voucher, then at own cost
    node = town.node()
    node.call(count=1_000)
    node.flush()
    lines = csv.DictReader(io.StringIO(people("wang", "GET", "/usage?format=csv").text.lstrip("\ufeff")))
    rows = list(lines)
    assert len(rows) == 1_000
    gross: dict[tuple[str, str], int] = {}
    for row in rows:
        units = dict(pair.split("=") for pair in row["units"].split())
        assert int(units["calls"]) * 370_000 == int(row["amount_micro"])
        key = (row["reservation_id"], row["lease_kind"])
        gross[key] = gross.get(key, 0) + int(row["amount_micro"])
    subsidised = sum(micro for (_, kind), micro in gross.items() if kind == "subsidised")
    own = sum(micro for (_, kind), micro in gross.items() if kind == "self_pay")
    statement = people("wang", "GET", f"/statements?month={month_of(town.now)}")
    assert statement["totals"]["gross_fen"] == subsidised // 1_000_000 + own // 1_000_000
    assert statement["totals"]["voucher_fen"] == subsidised // 3_000_000
    assert statement["totals"]["gross_fen"] == statement["totals"]["voucher_fen"] + statement["totals"]["self_paid_fen"]
    assert statement["totals"]["amount_micro"] == 370_000_000
    assert statement["totals"]["calls"] == 1_000


def test_an_organisations_name_is_no_formula_in_a_statement(town, people):
    with transaction(town.engine) as session:
        session.get_one(Organisation, "org_factory").name_zh = '=HYPERLINK("http://evil.example","x")'
    path = f"/statements?month={month_of(town.now)}&organisation_id=org_factory&format="
    lines = list(csv.reader(io.StringIO(people("chen", "GET", f"{path}csv").content.decode("utf-8-sig"))))
    assert lines[1] == ["organisation_zh", '\'=HYPERLINK("http://evil.example","x")']
    sheet = openpyxl.load_workbook(io.BytesIO(people("chen", "GET", f"{path}xlsx").content)).worksheets[0]
    assert (sheet["A2"].value, sheet["B2"].data_type) == ("organisation_zh", "s")


def test_statements_come_as_json_csv_and_xlsx_with_the_same_totals(town, people):
    issue(people, load(people))
    town.subscribe(3_000)
    node = town.node()
    node.call(count=1_000)
    node.flush()
    found = people("wang", "GET", f"/statements?month={month_of(town.now)}")
    assert found["totals"] == {
        "calls": 1_000, "amount_micro": 370_000_000, "gross_fen": 370, "voucher_fen": 123, "self_paid_fen": 247,
        "fee_fen": 18, "vat_fen": 22, "provider_fen": 330,
    }  # fmt: skip
    assert found["usage"][0]["rows"] == 1_000
    assert found["posted"][0]["settlement_mode"] == "reimburse"
    text = people("wang", "GET", f"/statements?month={month_of(town.now)}&format=csv").text
    assert "gross_fen,370" in text
    book = people("wang", "GET", f"/statements?month={month_of(town.now)}&format=xlsx")
    sheets = openpyxl.load_workbook(io.BytesIO(book.content))
    assert len(sheets.sheetnames) == 3
    assert ("voucher_fen", 123) in [tuple(cell.value for cell in row)[:2] for row in sheets.worksheets[0].iter_rows()]
    provider = people("zhou", "GET", f"/statements?month={month_of(town.now)}")
    assert (provider["role"], provider["totals"]["provider_fen"]) == ("provider", 330)
    operator = people("chen", "GET", f"/statements?month={month_of(town.now)}&organisation_id=org_factory")
    assert operator["totals"] == found["totals"]
    empty = people("wang", "GET", "/statements?month=2020-12")
    assert empty["totals"]["gross_fen"] == 0
    assert empty["posted"] == []


def test_a_statement_is_one_s_own_and_of_a_real_month(people):
    refusal = people("wang", "GET", "/statements?month=2027-01&organisation_id=org_other", 403)
    assert refusal["error"]["code"] == "NOT_YOUR_STATEMENT"
    for month in ("2027-13", "2027", "janvier"):
        assert people("wang", "GET", f"/statements?month={month}", 400)["error"]["code"] == "MONTH_INVALID"
    with pytest.raises(BadInput):
        read_month("2027-1")
    assert read_month("2027-12").until_ms - read_month("2027-12").from_ms == 31 * 86_400_000


def test_the_ledger_is_for_operators(people):
    for path in ("/ledger/trial-balance", "/ledger/accounts", "/ledger/rebuild"):
        assert people("wang", "GET", path, 403)["error"]["code"] == "ROLE_NOT_ALLOWED"
        assert people("", "GET", path, 401)["error"]["code"] == "KEY_MISSING"


def test_vouchers_are_listed_to_their_owner_and_to_operators(town, people):
    voucher = issue(people, load(people))
    assert [row["id"] for row in people("wang", "GET", "/vouchers?state=active")["items"]] == [voucher["id"]]
    assert people("other", "GET", "/vouchers")["total"] == 0
    assert people("chen", "GET", "/vouchers")["total"] == 1
    assert town.get(Application, voucher["application_id"]).state == "confirmed"
    assert town.get(Voucher, voucher["id"]).proposed_by != town.get(Voucher, voucher["id"]).approved_by


def test_an_organisation_that_is_not_approved_sees_nothing(town, people):
    with transaction(town.engine) as session:
        add_organisation(session, "late", "enterprise", status="pending")
        session.get_one(Organisation, "org_other").status = "pending"
    assert people("other", "GET", "/vouchers", 403)["error"]["code"] == "ORGANISATION_NOT_APPROVED"
