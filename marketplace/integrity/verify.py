"""`algomart verify pack.zip`: judges a claim batch's pack by itself. Needs the pack, Python, and nothing else of ours.

Each check says what it holds of; the first thing that does not hold is named with the file and the row. What it cannot
know is which chain of days was kept outside: compare the last one shown with that.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marketplace.integrity.chain import GENESIS, SEGMENT, SEGMENT_FIELDS, chain_of, leaf_count
from marketplace.integrity.merkle import leaf_hash, root_by

FORMAT = "algomart-pack/2"
FORMATS = ("algomart-pack/1", FORMAT)  # 1: without the segments of journals
COLUMNS = (
    "usage_id", "transfer_id", "reservation_id", "occurred_at_ms", "organisation_id", "model", "price_version", "unit",
    "units", "micro_per_unit", "amount_micro", "lease_kind", "node", "epoch", "seq", "request_digest",
    "response_digest",
)  # fmt: skip
MICRO = 1_000_000
MAX_BYTES = 4 << 30


@dataclass
class Report:
    """What was found. `wrong` is empty where the pack holds; `facts` is what was checked, in numbers."""

    wrong: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return not self.wrong

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)


def verify_pack(path: Path) -> Report:
    """Never raises for what is in the pack: whatever is wrong with it stands in the report."""
    report = Report()
    try:
        _verify(read_pack(path), report)
    except (KeyError, ValueError, TypeError, IndexError, OSError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        report.wrong.append(f"the pack cannot be read: {type(error).__name__}: {error}")
    return report


def read_pack(path: Path) -> dict[str, bytes]:
    """A pack's files by name. Raises ValueError, OSError, `zipfile.BadZipFile`."""
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
            raise ValueError("larger than a pack may be")
        return {info.filename: archive.read(info) for info in archive.infolist()}


def _verify(files: dict[str, bytes], report: Report) -> None:
    manifest = json.loads(files["manifest.json"])
    report.check(manifest["format"] in FORMATS, f"manifest.json: format {manifest['format']!r}, expected {FORMAT!r}")
    named = manifest["files"]
    report.check(set(named) == set(files) - {"manifest.json"}, "manifest.json: names other files than the pack has")
    for name, sha256 in named.items():
        report.check(hashlib.sha256(files.get(name, b"")).hexdigest() == sha256, f"{name}: its SHA-256 is another")
    claim_sha256 = hashlib.sha256(files["claim.json"]).hexdigest()
    report.check(claim_sha256 == manifest["claim_sha256"], "claim.json: not the document that was frozen")
    claim = json.loads(files["claim.json"])
    report.check(claim["batch"] == manifest["batch"], "claim.json: of another batch")
    leaves = {json.loads(leaf)["id"]: leaf for leaf in files["transfers.jsonl"].splitlines()}
    rows = list(csv.DictReader(io.StringIO(files["usage.csv"].decode())))
    kept = set(manifest["lines"])
    lines = [line for line in claim["lines"] if line["line"] in kept]
    total = sum(line["subsidy_fen"] for line in lines)
    report.check(len(lines) == len(kept), "manifest.json: names lines that were not frozen")
    report.check(total == manifest["total_fen"], f"the lines are {total} fen, the batch {manifest['total_fen']}")
    _verify_lines(lines, leaves, rows, report)
    _verify_usage(rows, report)
    days = json.loads(files["days.json"])
    roots = _verify_days(days, report)
    anchored = _verify_proofs(leaves, json.loads(files["proofs.json"]), roots, report)
    segments = json.loads(files["segments.json"]) if manifest["format"] != FORMATS[0] else []
    proved, covered = _verify_segments(segments, rows, roots, report)
    report.facts = {
        "batch": manifest["batch"],
        "claim_sha256": claim_sha256,
        "total_fen": total,
        "lines": len(lines),
        "transfers": len(leaves),
        "usage_records": len(rows),
        "transfers_in_closed_days": anchored,
        "journal_segments": len(segments),
        "journal_segments_in_closed_days": proved,
        "usage_in_proved_journals": covered,
        "last_day": days[-1]["day"] if days else "",
        "last_chain": days[-1]["chain"] if days else "",
    }


def _verify_lines(
    lines: list[dict[str, Any]], leaves: dict[int, bytes], rows: list[dict[str, str]], report: Report
) -> None:
    """Document against postings, postings against usage."""
    of_transfer: dict[int, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        of_transfer[int(row["transfer_id"])].append(row)
    claimed: set[int] = set()
    for line in lines:
        name = line["line"]
        ids = [each["id"] for each in line["transfers"]]
        report.check(len(set(ids)) == len(ids) and claimed.isdisjoint(ids), f"{name}: a transfer is claimed twice")
        claimed.update(ids)
        for part in ("gross_fen", "subsidy_fen"):
            added = sum(each[part] for each in line["transfers"])
            report.check(added == line[part], f"{name}: its transfers' {part} are {added}, the line says {line[part]}")
        report.check(line["subsidy_fen"] > 0, f"{name}: nothing is claimed")
        for each in line["transfers"]:
            _verify_transfer(name, line["reservation"], each, leaves.get(each["id"]), report)
        own = sorted((row["usage_id"], row["amount_micro"]) for each in ids for row in of_transfer[each])
        digest = hashlib.sha256("".join(f"{usage}\t{micro}\n" for usage, micro in own).encode()).hexdigest()
        same = (len(own), digest) == (line["usage_count"], line["usage_sha256"])
        report.check(same, f"{name}: its usage records are not those that were frozen")
        if all(each["kind"] == "P5" for each in line["transfers"]):
            _verify_amounts(line, [row for each in ids for row in of_transfer[each]], report)
    report.check(claimed == set(leaves), "transfers.jsonl: other transfers than the lines claim")


def _verify_amounts(line: dict[str, Any], rows: list[dict[str, str]], report: Report) -> None:
    """Gross and share against the usage itself. What is less than a fen waits for the next transfer, so each of them
    may be off by one."""
    num, den = line["ratio"]
    slack = MICRO * len(line["transfers"])
    micro = sum(int(row["amount_micro"]) for row in rows)
    eligible = sum(int(row["amount_micro"]) for row in rows if row["lease_kind"] == "subsidised")
    off = abs(line["gross_fen"] * MICRO - micro)
    report.check(off < slack, f"{line['line']}: gross {line['gross_fen']} fen, its usage comes to {micro} micro-fen")
    most = eligible * num // den + slack + MICRO
    report.check(line["subsidy_fen"] * MICRO < most, f"{line['line']}: more than {num}/{den} of its usage is claimed")


def _verify_transfer(line: str, reservation: str, told: dict[str, Any], leaf: bytes | None, report: Report) -> None:
    if leaf is None:
        report.wrong.append(f"{line}: transfer {told['id']} is missing")
        return
    posting = json.loads(leaf)
    where = f"{line}, transfer {told['id']}"
    same = (posting["kind"], posting["event"], posting["occurred_at_ms"])
    report.check(same == (told["kind"], told["event"], told["occurred_at_ms"]), f"{where}: another event was posted")
    sums: dict[str, int] = defaultdict(int)
    for account, fen in posting["entries"]:
        sums[account[0]] += fen
    report.check(not any(sums.values()), f"{where}: its entries do not sum to zero")
    used = sum(fen for account, fen in posting["entries"] if account == f"Q.used[{reservation}]")
    gross = -sum(fen for account, fen in posting["entries"] if _is_gross(account))
    report.check(used == told["subsidy_fen"], f"{where}: {used} fen of entitlement, not {told['subsidy_fen']}")
    report.check(gross == told["gross_fen"], f"{where}: {gross} fen were charged, not {told['gross_fen']}")


def _is_gross(account: str) -> bool:
    """Where the gross of a charge goes: to the provider, and in it fee and VAT."""
    return account.startswith("M.pay.provider[") or account in ("M.fee", "M.vat")


def _verify_usage(rows: list[dict[str, str]], report: Report) -> None:
    ids = [row["usage_id"] for row in rows]
    report.check(len(set(ids)) == len(ids), "usage.csv: a usage id stands twice")
    for row in rows:
        amount = int(row["units"]) * int(row["micro_per_unit"])
        report.check(amount == int(row["amount_micro"]), f"usage.csv: {row['usage_id']} is not units × price")


def _verify_days(days: list[dict[str, Any]], report: Report) -> dict[str, tuple[str, int]]:
    """The chain; answers each day's root and how many leaves it is over."""
    chain = GENESIS
    for day in days:
        chain = chain_of(chain, day)
        report.check(chain == day["chain"], f"days.json: {day['day']} does not follow the day before")
        chain = day["chain"]
    return {day["day"]: (day["root"], leaf_count(day)) for day in days}


def _leads_to(leaf: bytes, proof: dict[str, Any], roots: dict[str, tuple[str, int]]) -> bool:
    path = [bytes.fromhex(each) for each in proof["path"]]
    root = root_by(leaf_hash(leaf), proof["index"], proof["size"], path).hex()
    return roots.get(proof["day"]) == (root, proof["size"])


def _verify_proofs(
    leaves: dict[int, bytes], proofs: dict[str, Any], roots: dict[str, tuple[str, int]], report: Report
) -> int:
    """Every transfer of a closed day leads to its root; answers how many do."""
    anchored = 0
    for transfer, leaf in leaves.items():
        proof = proofs[str(transfer)]
        if proof is None:
            continue
        same = _leads_to(leaf, proof, roots)
        report.check(same, f"transfer {transfer} is not what {proof['day']} was closed with")
        anchored += same
    return anchored


def _verify_segments(
    segments: list[dict[str, Any]], rows: list[dict[str, str]], roots: dict[str, tuple[str, int]], report: Report
) -> tuple[int, int]:
    """Every journal segment of a closed day leads to its root; answers how many do, and of how many usage records the
    bytes that they were written down in are thereby fixed."""
    proved = 0
    spans: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for each in segments:
        segment, proof = json.loads(each["leaf"]), each["proof"]
        name = f"segments.json: {segment['node']}-{segment['epoch']} up to {segment['last_seq']}"
        report.check(set(segment) == {"leaf", *SEGMENT_FIELDS} and segment["leaf"] == SEGMENT, f"{name}: no segment")
        counted = segment["last_seq"] - segment["first_seq"] + 1 == segment["count"]
        report.check(counted, f"{name}: {segment['count']} records is not what its numbers span")
        if proof is None:
            continue
        same = _leads_to(each["leaf"].encode(), proof, roots)
        report.check(same, f"{name} is not what {proof['day']} was closed with")
        if same:
            proved += 1
            spans[segment["node"], segment["epoch"]].append((segment["first_seq"], segment["last_seq"]))
    of_journal = [(int(row["seq"]), spans[row["node"], int(row["epoch"])]) for row in rows]
    return proved, sum(any(first <= seq <= last for first, last in known) for seq, known in of_journal)
