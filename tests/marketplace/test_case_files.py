"""The case file of an application over the JSON API: evidence as files, supplements, checks, overrides, objections."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from sqlmodel import select

import serving.leases
from marketplace.access import SESSION_COOKIE
from marketplace.catalogue.publication import reconcile
from marketplace.catalogue.tables import Filing
from marketplace.claims import batches
from marketplace.clock import now_ms, policy_date
from marketplace.db import reading, transaction
from marketplace.evidence import files, intake
from marketplace.evidence.tables import EvidenceFile
from marketplace.organisations.members import open_session
from marketplace.organisations.registration import add_member
from marketplace.organisations.tables import AuditEvent, Notice, Organisation
from marketplace.vouchers import applications, objections, overrides
from marketplace.vouchers.tables import Application, Objection
from model_store.errors import Conflict, Forbidden
from tests.marketplace.town import CHEN, DAY, LIN, Town

PDF = b"%PDF-1.7\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 20 + b"\0\0\0\0IEND\xaeB`\x82"
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 32 + b"\xff\xd9"
SCHEMA = [
    {"code": "contract", "title_zh": "合同", "title_en": "Contract", "kind": "file", "types": ["pdf", "ofd"]},
    {"code": "photo", "title_zh": "照片", "title_en": "Photo", "kind": "file", "required": False},
    {"code": "plan", "title_zh": "计划", "title_en": "Plan", "required": False},
]


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


XLSX = zipped("[Content_Types].xml", "xl/workbook.xml")


@pytest.fixture
def town(market, tmp_path) -> Town:
    return Town(market.engine, tmp_path / "journal", now=now_ms())


class People:
    """Who asks the API: members of the town's organisations by session, and a stranger."""

    def __init__(self, town: Town, client: TestClient) -> None:
        self._client, self._sessions = client, {"": ""}
        with transaction(town.engine) as session:
            for who, organisation in (("wang", "factory"), ("rival", "other"), ("chen", "city"), ("lin", "city")):
                row = session.get_one(Organisation, f"org_{organisation}")
                member = add_member(session, row, email=f"{who}@x.example", name=who, role="owner")
                member.status = "active"
                self._sessions[who] = open_session(session, member, now_ms())

    def ask(self, who: str, method: str, path: str, status: int | None = None, **sent: Any) -> Any:
        self._client.cookies.clear()
        if who:
            self._client.cookies.set(SESSION_COOKIE, self._sessions[who])
        answer: Response = self._client.request(method, f"/api/v1{path}", **sent)
        if status is None:
            assert answer.status_code < 300, answer.text
        else:
            assert answer.status_code == status, answer.text
        return answer

    def attach(self, application: str, content: bytes, code: str = "contract", name: str = "a.pdf",
               status: int = 201, who: str = "wang") -> Any:  # fmt: skip
        sent = {"files": {"file": (name, content)}, "data": {"code": code}}
        return self.ask(who, "POST", f"/applications/{application}/evidence", status, **sent).json()


@pytest.fixture
def people(town: Town, client: TestClient) -> People:
    return People(town, client)


def apply(town: Town, people: People, **changes: Any) -> str:
    town.programme(**({"evidence_schema": SCHEMA} | changes))
    body = {"programme": "town", "requested_fen": 1_000}
    return str(people.ask("wang", "POST", "/applications", json=body).json()["id"])


def step(people: People, application: str, *decisions: str, who: str = "chen", **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for decision in decisions:
        by = "wang" if decision == "submit" else who
        found = people.ask(by, "POST", f"/applications/{application}/{decision}", json=body or None).json()
    return found


# --- evidence ---------------------------------------------------------------------------------------------------------


def test_a_file_is_kept_under_its_hash_and_read_by_its_owner_and_operators_only(town, people, market):
    application = apply(town, people)
    made = people.attach(application, PDF, name="../../合同 扫描.pdf")
    assert made["sha256"] == hashlib.sha256(PDF).hexdigest()
    assert (made["kind"], made["size_bytes"], made["name"], made["state"]) == ("pdf", len(PDF), "合同 扫描.pdf", "kept")
    assert made["keep_until"][:4] == str(policy_date(now_ms()).year + 10)
    for who in ("wang", "chen"):
        answer = people.ask(who, "GET", f"/evidence/{made['id']}/content")
        assert answer.content == PDF
        assert answer.headers["content-type"] == "application/pdf"
        assert answer.headers["content-disposition"].startswith(f'attachment; filename="contract-{made["id"]}.pdf"')
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
    people.ask("rival", "GET", f"/evidence/{made['id']}/content", 404)
    people.ask("", "GET", f"/evidence/{made['id']}/content", 401)
    people.attach(application, PDF, who="rival", status=404)
    assert people.ask("wang", "GET", f"/applications/{application}").json()["files"][0]["sha256"] == made["sha256"]
    reconcile(market)
    assert market.blobs.has(made["sha256"])


@pytest.mark.parametrize(
    ("content", "kind"), [(PDF, "pdf"), (PNG, "png"), (JPEG, "jpeg"), (XLSX, "xlsx"), (zipped("OFD.xml"), "ofd")]
)
def test_the_content_decides_what_a_file_is_and_not_its_name(town, people, content, kind):
    application = apply(town, people)
    assert people.attach(application, content, "photo", "x.exe")["kind"] == kind


@pytest.mark.parametrize(
    "content",
    [b"<html><script>alert(1)</script>", b"MZ" + b"\0" * 64, b"%PDF-1.7 torn", zipped("a.txt"), b"PK\x03\x04torn",
     zipped("[Content_Types].xml", "xl/workbook.xml", "xl/vbaProject.bin")],
)  # fmt: skip
def test_what_is_none_of_the_kinds_is_refused_whatever_it_is_called(town, people, content):
    application = apply(town, people)
    assert people.attach(application, content, "photo", "a.pdf", 422)["error"]["code"] == "EVIDENCE_TYPE"


def test_each_bound_of_evidence_has_its_refusal(town, people, market):
    application = apply(town, people)

    def refused(content: bytes, status: int, code: str = "contract") -> str:
        return str(people.attach(application, content, code, status=status)["error"]["code"])

    assert refused(PNG, 422) == "EVIDENCE_TYPE"  # a kind the market takes, and this schema does not
    assert refused(PDF, 400, "plan") == "EVIDENCE_INVALID"  # a text
    assert refused(PDF, 400, "nothing") == "EVIDENCE_INVALID"
    market.settings.evidence_file_bytes = 1_000
    assert refused(PDF + b" " * 1_000, 413) == "EVIDENCE_TOO_LARGE"
    assert refused(PDF + b" " * (3 << 20), 413) == "EVIDENCE_TOO_LARGE"  # before it is taken apart
    people.attach(application, PDF)
    assert refused(PDF, 409) == "EVIDENCE_TWICE"
    market.settings.evidence_quota_bytes = 2 * len(PDF)
    assert refused(PDF + b"\n", 413) == "EVIDENCE_QUOTA"
    empty = people.ask("wang", "POST", f"/applications/{application}/evidence", 400, data={"code": "contract"})
    assert empty.json()["error"]["code"] == "REQUEST_INVALID"
    step(people, application, "submit")
    assert refused(PDF + b"\n\n", 409) == "APPLICATION_STATE"


def test_a_file_that_is_withdrawn_counts_no_longer_and_is_kept(town, people, market):
    application = apply(town, people)
    made = people.attach(application, PDF)
    people.ask("wang", "POST", f"/evidence/{made['id']}/withdraw")
    step(people, application, "submit")
    checks = {c["code"]: c["reason"] for c in step(people, application, "check")["checks"]}
    assert checks["evidence"] == "EVIDENCE_MISSING"
    assert market.blobs.has(made["sha256"])
    assert people.ask("chen", "GET", f"/evidence/{made['id']}/content").content == PDF


def test_a_file_is_deleted_by_operators_only_and_only_after_its_years(town, people, market):
    application = apply(town, people, retention_years=1)
    made = people.attach(application, PDF)
    people.ask("wang", "DELETE", f"/evidence/{made['id']}", 403)
    early = people.ask("chen", "DELETE", f"/evidence/{made['id']}", 409).json()["error"]
    assert (early["code"], early["details"]["keep_until"]) == ("EVIDENCE_RETAINED", made["keep_until"])
    with transaction(town.engine) as session:
        session.get_one(EvidenceFile, made["id"]).keep_until = "2020-01-01"
    people.ask("chen", "DELETE", f"/evidence/{made['id']}")
    assert not market.blobs.has(made["sha256"])
    people.ask("wang", "GET", f"/evidence/{made['id']}/content", 404)
    told = people.ask("wang", "GET", f"/applications/{application}").json()["files"][0]
    assert (told["state"], told["sha256"]) == ("deleted", made["sha256"])


def test_content_that_another_row_still_names_outlives_the_deletion_of_one(town, people, market):
    first, second = apply(town, people), apply(town, people)
    made = [people.attach(each, PDF) for each in (first, second)]
    with transaction(town.engine) as session:
        session.get_one(EvidenceFile, made[0]["id"]).keep_until = "2020-01-01"
    people.ask("chen", "DELETE", f"/evidence/{made[0]['id']}")
    assert people.ask("wang", "GET", f"/evidence/{made[1]['id']}/content").content == PDF


def test_content_that_is_deleted_elsewhere_while_it_is_handed_in_again_is_there_afterwards(town, market):
    """The content is kept before a row names it: whoever deletes the last other row meanwhile takes it away."""
    sha256 = hashlib.sha256(PDF).hexdigest()
    looks = []

    def judge(session: Any) -> tuple[files.Subject, tuple[str, ...]]:
        looks.append(market.blobs.has(sha256) and len(looks) == 1 and market.blobs.delete(sha256))
        return files.Subject("application", "app_1", "org_factory", "contract", 1), ()

    upload = intake.Upload("contract", "a.pdf", io.BytesIO(PDF))
    intake.take(market, upload, judge, actor="f", at_ms=town.now)
    assert looks == [False, True]
    assert market.blobs.has(sha256)


def test_the_dossier_and_the_frozen_claim_carry_the_hashes(town, people, market, monkeypatch):
    monkeypatch.setattr(serving.leases, "now_ms", lambda: town.now)
    application = apply(town, people, notice_days=0)
    sha256 = people.attach(application, PDF)["sha256"]
    step(people, application, "submit", "check", "approve", "publish", "confirm")
    voucher = people.ask("chen", "POST", "/vouchers", json={"application_id": application}).json()["id"]
    people.ask("lin", "POST", f"/vouchers/{voucher}/approve")
    town.subscribe()
    node = town.node()
    node.call(count=100)
    node.stop()
    today = policy_date(town.now).isoformat()
    with transaction(town.engine) as session:
        batch = batches.create(session, "town", today, today, member=CHEN)
        document = batches.freeze(session, batch, market.blobs, member=CHEN, at_ms=town.now).sha256
    line = json.loads(market.blobs.path(document).read_bytes())["lines"][0]
    assert [(each["code"], each["sha256"]) for each in line["evidence"]] == [("contract", sha256)]
    with reading(town.engine) as session:
        steps = [e.details for e in session.exec(select(AuditEvent)) if e.action == "application.evidence"]
    assert [(each["code"], each["sha256"]) for each in steps] == [("contract", sha256)]


# --- supplements and checks -------------------------------------------------------------------------------------------


def test_what_a_supplement_asks_for_has_to_come_before_it_is_handed_in_again(town, people):
    application = apply(town, people)
    people.attach(application, PDF)
    step(people, application, "submit", "check")
    unsaid = people.ask("chen", "POST", f"/applications/{application}/supplement", 400).json()["error"]
    assert unsaid["code"] == "REASON_REQUIRED"
    found = step(people, application, "supplement", asked=["contract", "plan"])
    assert (found["state"], found["asked"]) == ("supplement", ["contract", "plan"])
    missing = people.ask("wang", "POST", f"/applications/{application}/submit", 409).json()["error"]
    assert (missing["code"], missing["details"]["missing"]) == ("SUPPLEMENT_MISSING", ["contract", "plan"])
    people.attach(application, PDF + b"\n")
    change = {"evidence": [{"code": "plan", "value": "二期"}]}
    people.ask("wang", "PATCH", f"/applications/{application}", json=change)
    found = step(people, application, "submit")
    assert (found["state"], found["asked"]) == ("submitted", [])
    assert step(people, application, "check", "approve")["state"] == "approved"


def in_state(town: Town, *steps: str, **changes: Any) -> str:
    """An application without evidence, walked through these steps."""
    programme = town.programme(**changes)
    with transaction(town.engine) as session:
        owner = session.get_one(Organisation, "org_factory")
        row = applications.create_application(session, owner, programme, requested_fen=1_000, actor="f")
        applications.submit(session, row, actor="f")
        walk(town, session, row, *steps)
        return row.id


def walk(town: Town, session: Any, row: Application, *steps: str) -> None:
    for each in steps:
        if each in ("check", "publish", "confirm"):
            getattr(applications, each)(session, row, actor=CHEN, at_ms=town.now)
        else:
            applications.decide(session, row, each, actor=CHEN, at_ms=town.now)


CHECKS = [{"code": "standing", "valid_days": 30}, {"code": "pool", "valid_days": 2}]


def refusal_of(town: Town, application: str, *steps: str) -> str:
    try:
        with transaction(town.engine) as session:
            walk(town, session, applications.get_application(session, application, None), *steps)
    except Conflict as refused:
        return refused.code
    return ""


def midnight_after(town: Town, days: int) -> int:
    """The first instant of the day in Shanghai so many days after today's."""
    return town.now - (town.now + 8 * 3_600_000) % DAY + days * DAY


def test_a_check_holds_to_the_last_midnight_of_its_days_and_is_made_again_before_the_approval(town):
    application = in_state(town, "check", checks=CHECKS)
    start = town.now
    town.now = midnight_after(town, 3)
    assert refusal_of(town, application, "approve") == "CHECKS_STALE"
    town.now -= 1
    assert refusal_of(town, application, "approve") == ""
    assert town.now > start + 2 * DAY


def test_a_check_that_lapsed_during_the_notice_is_made_again_before_the_confirmation(town):
    application = in_state(town, "check", "approve", "publish", checks=CHECKS, notice_days=5)
    town.now = midnight_after(town, 5)
    assert refusal_of(town, application, "confirm") == "CHECKS_STALE"
    assert refusal_of(town, application, "check", "confirm") == ""
    assert town.get(Application, application).state == "confirmed"


def test_what_fails_when_it_is_checked_again_is_not_confirmed(town):
    application = in_state(town, "check", "approve", "publish", checks=CHECKS, notice_days=0)
    with transaction(town.engine) as session:
        session.get_one(Organisation, "org_factory").status = "suspended"
    assert refusal_of(town, application, "check") == ""
    assert refusal_of(town, application, "confirm") == "ORGANISATION_NOT_APPROVED"


def test_two_persons_let_a_failed_check_pass_with_a_reason_and_never_one_of_money(town):
    checks = [{"code": "pool"}, {"code": "filing"}]
    with transaction(town.engine) as session:
        session.get_one(Filing, "flg_1").valid_until = "2026-01-02"
    application = in_state(town, "check", checks=checks)
    assert refusal_of(town, application, "approve") == "NO_FILED_MODEL"
    with transaction(town.engine) as session:
        row = applications.get_application(session, application, None)
        with pytest.raises(Conflict, match="OVERRIDE_REFUSED"):
            overrides.propose_override(session, row, "pool", "because", member=CHEN)
        made = overrides.propose_override(session, row, "filing", "备案续期办理中", member=CHEN)
        with pytest.raises(Forbidden, match="TWO_PERSONS"):
            overrides.decide_override(session, made, "approve", member=CHEN)
    assert refusal_of(town, application, "approve") == "NO_FILED_MODEL"
    with transaction(town.engine) as session:
        overrides.decide_override(session, overrides.get_override(session, made.id), "approve", member=LIN)
    assert refusal_of(town, application, "approve") == ""
    with reading(town.engine) as session:
        told = {e.action: (e.actor, e.details) for e in session.exec(select(AuditEvent)) if "override" in e.action}
    assert told["application.override-propose"][0] == CHEN
    assert told["application.override-approve"][0] == LIN
    assert "备案续期办理中" in told["application.override-approve"][1]["note"]


# --- public notice and objections -------------------------------------------------------------------------------------

OBJECTION = {"name": "李先生", "contact": "139 0000 0000", "reason": "该单位已停产"}


@pytest.fixture(autouse=True)
def _nobody_has_objected(monkeypatch):
    monkeypatch.setattr(objections, "THROTTLE", objections.AddressThrottle())


def test_anybody_reads_the_notice_and_objects_and_nobody_but_operators_learns_who(town, people):
    application = in_state(town, "check", "approve", "publish", notice_days=5)
    notice = people.ask("", "GET", "/public-notices").json()["items"][0]
    assert (notice["id"], notice["requested_fen"], notice["notice_days"], notice["open"]) == (
        application,
        1_000,
        5,
        True,
    )
    people.ask("", "POST", f"/public-notices/{application}/objections", 201, json=OBJECTION)
    assert town.get(Application, application).state == "objection"
    everything = [
        people.ask("", "GET", "/public-notices").text,
        people.ask("", "GET", f"/public-notices/{application}").text,
        people.ask("wang", "GET", f"/applications/{application}").text,
        people.ask("wang", "GET", "/notices").text,
    ]
    assert not any(word in text for text in everything for word in OBJECTION.values())
    people.ask("wang", "GET", f"/applications/{application}/objections", 403)
    told = people.ask("chen", "GET", f"/applications/{application}/objections").json()["items"][0]
    assert {name: told[name] for name in OBJECTION} == OBJECTION
    assert "APPLICATION_OBJECTION" in people.ask("wang", "GET", "/notices").text


@pytest.mark.parametrize(("effect", "days"), [("continue", 5), ("extend", 8), ("restart", 9)])
def test_a_dismissed_objection_does_to_the_notice_what_the_programme_says(town, effect, days):
    began = town.now
    application = in_state(town, "check", "approve", "publish", notice_days=5, notice_on_objection=effect)
    town.now = began + DAY
    objection = objected(town, application)
    town.now = began + 4 * DAY
    decided(town, objection, "dismiss")
    row = town.get(Application, application)
    assert row.state == "public_notice"
    town.now = midnight_after_of(began, days) - 1
    assert refusal_of(town, application, "confirm") == "NOTICE_RUNNING"
    town.now += 1
    assert refusal_of(town, application, "confirm") == ""


def midnight_after_of(at_ms: int, days: int) -> int:
    return at_ms - (at_ms + 8 * 3_600_000) % DAY + days * DAY


def objected(town: Town, application: str) -> str:
    with transaction(town.engine) as session:
        return objections.object_to(session, application, **OBJECTION, at_ms=town.now).id


def decided(town: Town, objection: str, decision: str, member: str = CHEN) -> Objection:
    with transaction(town.engine) as session:
        row = objections.get_objection(session, objection)
        return objections.decide_objection(session, row, decision, member=member, reason="经核实", at_ms=town.now)


def test_every_objection_is_decided_before_the_notice_goes_on_and_one_upheld_rejects(town):
    application = in_state(town, "check", "approve", "publish", notice_days=5)
    first, second, third = (objected(town, application) for _ in range(3))
    decided(town, first, "dismiss")
    assert town.get(Application, application).state == "objection"
    assert refusal_of(town, application, "publish") == "OBJECTION_OPEN"
    assert refusal_of(town, application, "reject") == "OBJECTION_OPEN"
    with pytest.raises(Forbidden, match="PERSON_REQUIRED"):
        decided(town, second, "uphold", member="")
    decided(town, second, "uphold")
    assert (town.get(Application, application).state, town.get(Objection, third).state) == ("rejected", "closed")
    with pytest.raises(Conflict, match="APPLICATION_STATE"):
        decided(town, first, "uphold")
    told = {notice.code: notice.text_zh for notice in town.rows(Notice)}
    assert "经核实" in told["APPLICATION_REJECTED"]
    with pytest.raises(Conflict, match="NOTICE_OVER"):
        objected(town, application)


def test_no_objection_is_taken_before_the_notice_or_after_its_last_day(town):
    application = in_state(town, "check", "approve", notice_days=1)
    with pytest.raises(Conflict, match="NOTICE_OVER"):
        objected(town, application)
    with transaction(town.engine) as session:
        walk(town, session, applications.get_application(session, application, None), "publish")
    town.now = midnight_after(town, 1)
    with pytest.raises(Conflict, match="NOTICE_OVER"):
        objected(town, application)
    town.now -= 1
    objected(town, application)


def test_objections_are_bounded_by_address_by_application_and_by_length(town, people, monkeypatch):
    application = in_state(town, "check", "approve", "publish", notice_days=5)
    path = f"/public-notices/{application}/objections"
    for field, length in (("name", 101), ("contact", 201), ("reason", 2_001)):
        people.ask("", "POST", path, 400, json=OBJECTION | {field: "x" * length})
    assert people.ask("", "POST", path, 400, json=OBJECTION | {"name": "  "}).json()["error"]["field"] == "name"
    monkeypatch.setattr(objections, "MOST_OPEN", 2)
    for status in (201, 201, 409):
        answer = people.ask("", "POST", path, status, json=OBJECTION)
    assert answer.json()["error"]["code"] == "OBJECTIONS_FULL"
    for _ in range(6):
        people.ask("", "POST", path, 409, json=OBJECTION)
    late = people.ask("", "POST", path, 429, json=OBJECTION)
    assert late.json()["error"]["code"] == "OBJECTIONS_THROTTLED"
    assert int(late.headers["retry-after"]) > 0


def test_a_name_is_cut_to_what_can_be_shown():
    assert files.shown_name("C:\\x\\..\\报告\u202e.pdf\x00") == "报告.pdf"
    assert files.shown_name("/") == "file"
    assert len(files.shown_name("长" * 500 + ".pdf")) == files.MAX_NAME
