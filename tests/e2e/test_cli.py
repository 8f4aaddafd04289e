"""The command line against a live market, as a script uses it: JSON out, exit status, refusals as JSON too."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live import LiveMarket
from tests.neighbours import ask

ROW = '{"AT": 14.96, "V": 41.76, "AP": 1024.07, "RH": 73.17}'


def algomart(market: LiveMarket, *words: str, who: str = "factory") -> tuple[int, Any]:
    """The exit status and what was printed, read as JSON."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALGOMART_")}
    environment = kept | {"ALGOMART_URL": market.url, "ALGOMART_KEY": market.keys[who]}
    command = [sys.executable, "-m", "marketplace.cli", *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


@pytest.mark.parametrize(
    ("who", "words", "holds"),
    [
        ("factory", ("search", "缺陷"), "items"),
        ("operator", ("review",), "items"),
        ("factory", ("usage",), "items"),
        ("factory", ("use", "dongzhi/plant-load-boosting", ROW), "result"),
    ],
)
def test_a_command_prints_json_for_scripts(
    live_market: LiveMarket, who: str, words: tuple[str, ...], holds: str
) -> None:
    status, said = algomart(live_market, *words, who=who)
    assert status == 0
    assert said[holds] is not None


def test_a_lost_node_is_written_off_from_the_command_line_too(live_market: LiveMarket) -> None:
    status, said = algomart(live_market, "node", "write-offs", who="operator")
    assert (status, said["items"]) == (0, [])
    lost = ("node", "write-off", "no-such-node", "3", "--reason", "it burnt down")
    status, said = algomart(live_market, *lost, who="operator")
    assert (status, said["error"]["code"]) == (1, "WRITE_OFF_NOT_FOUND")
    assert algomart(live_market, "node", "write-offs", "--approve", "wof_1", who="operator")[0] == 1
    assert algomart(live_market, *lost)[1]["error"]["code"] == "ROLE_NOT_ALLOWED"


@pytest.mark.parametrize("words", [("voucher",), ("keys",)])
def test_a_list_is_printed_as_one(live_market: LiveMarket, words: tuple[str, ...]) -> None:
    status, said = algomart(live_market, *words)
    assert status == 0
    assert isinstance(said, list)
    assert said


PROGRAMME: dict[str, Any] = {
    "code": "cli-case", "title_zh": "演示命令行券", "title_en": "Demonstration for the command line", "is_demo": True,
    "pool_fen": 1_000_000, "tranches": [{"code": "one", "fen": 1_000_000}], "ratio": {"num": 1, "den": 3},
    "cap_fen": 100_000, "cap_period": "programme", "validity": {"days": 30},
    "evidence_schema": [{"code": "contract", "title_zh": "合同", "title_en": "Contract", "kind": "file"}],
    "settlement_mode": "deduct", "payee": "platform", "tax_basis": {"fee_bp": 0, "vat_bp": 600},
}  # fmt: skip


def test_evidence_is_attached_fetched_and_handed_in_from_the_command_line(
    live_market: LiveMarket, tmp_path: Path
) -> None:
    operator, factory = live_market.client("operator"), live_market.client("factory")
    made = ask(operator.post("/api/v1/programmes", json={"document": PROGRAMME}))["id"]
    ask(operator.post(f"/api/v1/programmes/{made}/activate"))
    body = {"programme": "cli-case", "requested_fen": 1_000}
    application = ask(factory.post("/api/v1/applications", json=body))["id"]
    contract = tmp_path / "contract.pdf"
    contract.write_bytes(b"%PDF-1.7\n%%EOF\n")
    status, file = algomart(live_market, "application", "attach", application, "contract", str(contract))
    assert (status, file["kind"], file["sha256"]) == (0, "pdf", hashlib.sha256(contract.read_bytes()).hexdigest())
    fetched = tmp_path / "again.pdf"
    assert algomart(live_market, "application", "download", file["id"], str(fetched))[0] == 0
    assert fetched.read_bytes() == contract.read_bytes()
    assert algomart(live_market, "application", "submit", application)[1]["state"] == "submitted"
    shown = algomart(live_market, "application", "show", application)[1]
    assert [each["id"] for each in shown["files"]] == [file["id"]]
    assert application in {row["id"] for row in algomart(live_market, "application", "list")[1]["items"]}
    status, refused = algomart(live_market, "application", "attach", application, "contract", str(contract))
    assert (status, refused["error"]["code"]) == (1, "APPLICATION_STATE")
    ask(operator.post(f"/api/v1/programmes/{made}/close"))  # others apply to those they know


def test_a_key_gets_its_limits_by_the_command_line_and_they_hold(live_market: LiveMarket) -> None:
    limits = ("--rate", "1", "--burst", "2", "--concurrency", "7")
    status, made = algomart(live_market, "keys", "--create", "line 3", *limits)
    assert status == 0, made
    assert [made[name] for name in ("rate_per_s", "burst", "concurrency")] == [1, 2, 7]
    headers = {"Authorization": f"Bearer {made['key']}"}
    with httpx.Client(base_url=live_market.url, headers=headers, trust_env=False, timeout=60) as client:
        calls = [client.post("/v1/use/dongzhi/plant-load-boosting", content=f'{{"inputs": {ROW}}}') for _ in range(12)]
        assert {call.status_code for call in calls} == {200, 429}
        refused = next(call for call in calls if call.status_code == 429)
        assert refused.json()["error"]["code"] == "RATE_LIMITED"
        assert refused.headers["ratelimit-limit"] == "2"
    status, _ = algomart(live_market, "keys", "--limit", made["id"], "--rate", "40")
    assert status == 0
    listed = next(row for row in algomart(live_market, "keys")[1] if row["id"] == made["id"])
    assert [listed[name] for name in ("rate_per_s", "burst", "concurrency")] == [40, 0, 0]
    status, said = algomart(live_market, "keys", "--limit", made["id"], "--rate", "-1")
    assert (status, said["error"]["code"]) == (1, "LIMIT_INVALID")


def test_a_refusal_is_json_with_its_code_and_remedy_and_status_one(live_market: LiveMarket) -> None:
    status, said = algomart(live_market, "use", "dongzhi/no-such-model", ROW)
    assert status == 1
    assert said["error"]["code"] == "MODEL_NOT_FOUND"
    assert said["error"]["remedy_zh"]


def test_the_machine_s_own_commands_print_json_too(live_market: LiveMarket, tmp_path: Path) -> None:
    archive, home = str(tmp_path / "b.tar"), str(live_market.home)
    assert algomart(live_market, "backup", archive, "--home", home)[1]["files"] > 30
    assert algomart(live_market, "restore", archive, str(tmp_path / "restored"))[0] == 0
    status, said = algomart(live_market, "doctor", "--home", str(tmp_path / "restored"))
    assert (status, said["sound"]) == (0, True)
