"""`algomart verify pack.zip`: judges a claim batch's pack by itself. Needs the pack, Python, and nothing else of ours.

Each check says what it holds of; the first thing that does not hold is named with the file and the row. What it cannot
know is which chain of days was kept outside: compare the last one shown with that.

Nothing is read whole: files are streams, usage and transfers lie in tables on disk. Memory grows with the days, the
lines' names and the transfers of one line.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marketplace.integrity.chain import GENESIS, SEGMENT, SEGMENT_FIELDS, chain_of, leaf_count
from marketplace.integrity.merkle import leaf_hash, root_by
from marketplace.integrity.opened import UNREADABLE, Pack, open_pack
from marketplace.integrity.verify_amounts import usage_of, verify_amounts
from marketplace.integrity.verify_filings import verify_filings

FORMAT = "algomart-pack/3"
FORMATS = ("algomart-pack/1", "algomart-pack/2", FORMAT)  # 1: no segments of journals; 2: usage without corrections
Spans = dict[tuple[str, int], list[tuple[int, int]]]  # (node, epoch) → first and last record of what is proved


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
        with open_pack(path) as pack:
            _verify(pack, report)
    except UNREADABLE as error:
        report.wrong.append(f"the pack cannot be read: {type(error).__name__}: {error}")
    return report


def _verify(pack: Pack, report: Report) -> None:
    manifest = pack.document("manifest.json")
    report.check(manifest["format"] in FORMATS, f"manifest.json: format {manifest['format']!r}, expected {FORMAT!r}")
    claim_sha256 = _verify_files(pack, manifest, report)
    roots, last = _verify_days(pack.items("days.json"), report)
    segments = pack.items("segments.json") if manifest["format"] != FORMATS[0] else iter(())
    recorded, proved, spans = _verify_segments(segments, roots, report)
    records, covered = _verify_usage(pack, spans, report)
    transfers = _take_leaves(pack, report)
    total, lines, unfiled = _verify_claim(pack, manifest, report)
    anchored = _verify_proofs(pack, roots, report)
    report.facts = {
        "batch": manifest["batch"],
        "claim_sha256": claim_sha256,
        "total_fen": total,
        "lines": lines,
        "transfers": transfers,
        "usage_records": records,
        "transfers_in_closed_days": anchored,
        "journal_segments": recorded,
        "journal_segments_in_closed_days": proved,
        "usage_in_proved_journals": covered,
        "usage_without_a_recorded_filing": unfiled,
        "last_day": last["day"] if last else "",
        "last_chain": last["chain"] if last else "",
    }


def _verify_files(pack: Pack, manifest: dict[str, Any], report: Report) -> str:
    """Every file is there once and is what the manifest names; answers the SHA-256 of the frozen document."""
    named, names = manifest["files"], set(pack.names)
    report.check(len(names) == len(pack.names), "the archive has two files of one name")
    report.check(set(named) == names - {"manifest.json"}, "manifest.json: names other files than the pack has")
    for name, sha256 in named.items():
        report.check(pack.sha256(name) == sha256, f"{name}: its SHA-256 is another")
    claim_sha256 = pack.sha256("claim.json")
    report.check(claim_sha256 == manifest["claim_sha256"], "claim.json: not the document that was frozen")
    return claim_sha256


def _take_leaves(pack: Pack, report: Report) -> int:
    """Read the transfers into their table; answers how many there are."""
    count = 0
    for line in pack.lines("transfers.jsonl"):
        count += 1
        leaf = line.removesuffix(b"\n")
        transfer = _key_of(json.loads(leaf)["id"])
        insert = "INSERT OR IGNORE INTO leaf (transfer, leaf) VALUES (?, ?)"
        kept = pack.tables.execute(insert, (transfer, leaf)).rowcount
        report.check(kept == 1, f"transfers.jsonl: transfer {transfer} stands twice")
    return count


def _key_of(transfer: Any) -> str:
    """A transfer's id as proofs have it. `ValueError`: it is none."""
    if type(transfer) is not int:
        raise ValueError(f"{transfer!r:.80} is no transfer")
    return str(transfer)


def _verify_claim(pack: Pack, manifest: dict[str, Any], report: Report) -> tuple[int, int, int]:
    """The document against the manifest and, line by line, against postings and usage; answers how many fen are claimed
    in how many lines, and of how many subsidised records the filing was not recorded."""
    kept, head, total, count, unfiled = set(manifest["lines"]), dict[str, Any](), 0, 0, 0
    stream = pack.json("claim.json")
    for key in stream.keys():  # noqa: SIM118  (a stream, no dict)
        if key in head:
            raise ValueError(f"claim.json: {key} stands twice")
        head[key] = None if key == "lines" else stream.value()
        for line in stream.items() if key == "lines" else ():
            if line["line"] in kept:
                total, count = total + line["subsidy_fen"], count + 1
                _verify_line(pack, line, report, is_marked=manifest["format"] == FORMAT)
                unfiled += verify_filings(pack, line, report.check)
    stream.finish()
    report.check("lines" in head, "claim.json: has no lines")
    report.check(head["batch"] == manifest["batch"], "claim.json: of another batch")
    report.check(count == len(kept), "manifest.json: names lines that were not frozen")
    report.check(total == manifest["total_fen"], f"the lines are {total} fen, the batch {manifest['total_fen']}")
    (over,) = pack.tables.execute("SELECT COUNT(*) FROM leaf WHERE line IS NULL").fetchone()
    report.check(not over, f"transfers.jsonl: {over} transfers that no line claims")
    of_none = "SELECT COUNT(*) FROM usage WHERE transfer NOT IN (SELECT transfer FROM leaf WHERE line IS NOT NULL)"
    (over,) = pack.tables.execute(of_none).fetchone()
    report.check(not over, f"usage.csv: {over} records of transfers that no line claims")
    return total, count, unfiled


def _verify_line(pack: Pack, line: dict[str, Any], report: Report, *, is_marked: bool) -> None:
    """Document against postings, postings against usage."""
    name = str(line["line"])
    for part in ("gross_fen", "subsidy_fen"):
        added = sum(each[part] for each in line["transfers"])
        report.check(added == line[part], f"{name}: its transfers' {part} are {added}, the line says {line[part]}")
    report.check(line["subsidy_fen"] > 0, f"{name}: nothing is claimed")
    for each in line["transfers"]:
        transfer = _key_of(each["id"])
        found = pack.tables.execute("SELECT leaf, line FROM leaf WHERE transfer = ?", (transfer,)).fetchone()
        leaf, claimed_by = found or (None, None)
        report.check(claimed_by is None, f"{name}: a transfer is claimed twice")
        pack.tables.execute("UPDATE leaf SET line = ? WHERE transfer = ?", (name, transfer))
        _verify_transfer(name, line["reservation"], each, leaf, report)
    used = usage_of(pack, name)
    same = (used.records, used.sha256) == (line["usage_count"], line["usage_sha256"])
    report.check(same, f"{name}: its usage records are not those that were frozen")
    verify_amounts(line, used, report.check, is_marked=is_marked)


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


def _verify_usage(pack: Pack, spans: Spans, report: Report) -> tuple[int, int]:
    """Each record by itself; answers how many there are, and of how many the bytes that they were written down in are
    fixed by a proved segment."""
    covered = 0

    def judge(row: dict[str, str], is_new: bool) -> None:
        nonlocal covered
        report.check(is_new, f"usage.csv: usage id {row['usage_id']} stands twice")
        amount = int(row["units"]) * int(row["micro_per_unit"])
        report.check(amount == int(row["amount_micro"]), f"usage.csv: {row['usage_id']} is not units × price")
        seq = int(row["seq"])
        covered += any(first <= seq <= last for first, last in spans.get((row["node"], int(row["epoch"])), ()))

    return pack.take_usage(judge), covered


def _verify_days(days: Iterator[Any], report: Report) -> tuple[dict[str, tuple[str, int]], dict[str, Any] | None]:
    """The chain; answers each day's root and how many leaves it is over, and the last day."""
    chain, roots, day = GENESIS, dict[str, tuple[str, int]](), None
    for day in days:
        chain = chain_of(chain, day)
        report.check(chain == day["chain"], f"days.json: {day['day']} does not follow the day before")
        chain = day["chain"]
        roots[day["day"]] = (day["root"], leaf_count(day))
    return roots, day


def _leads_to(leaf: bytes, proof: dict[str, Any], roots: dict[str, tuple[str, int]]) -> bool:
    path = [bytes.fromhex(each) for each in proof["path"]]
    root = root_by(leaf_hash(leaf), proof["index"], proof["size"], path).hex()
    return roots.get(proof["day"]) == (root, proof["size"])


def _verify_proofs(pack: Pack, roots: dict[str, tuple[str, int]], report: Report) -> int:
    """Every transfer of a closed day leads to its root; answers how many do."""
    anchored, stream = 0, pack.json("proofs.json")
    for transfer in stream.keys():  # noqa: SIM118  (a stream, no dict)
        proof = stream.value()
        found = pack.tables.execute("SELECT leaf, proved FROM leaf WHERE transfer = ?", (transfer,)).fetchone()
        if found is None:
            continue
        leaf, proved = found
        report.check(not proved, f"proofs.json: transfer {transfer} stands twice")
        pack.tables.execute("UPDATE leaf SET proved = 1 WHERE transfer = ?", (transfer,))
        if proof is None:
            continue
        same = _leads_to(leaf, proof, roots)
        report.check(same, f"transfer {transfer} is not what {proof['day']} was closed with")
        anchored += same
    stream.finish()
    (without,) = pack.tables.execute("SELECT COUNT(*) FROM leaf WHERE NOT proved").fetchone()
    report.check(not without, f"proofs.json: lacks {without} transfers")
    return anchored


def _verify_segments(
    segments: Iterator[Any], roots: dict[str, tuple[str, int]], report: Report
) -> tuple[int, int, Spans]:
    """Every journal segment of a closed day leads to its root; answers how many there are, how many do, and what these
    span."""
    recorded = proved = 0
    spans: Spans = defaultdict(list)
    for each in segments:
        recorded += 1
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
    return recorded, proved, {journal: _joined(each) for journal, each in spans.items()}


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What they cover together: most begin where their journal does."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found
