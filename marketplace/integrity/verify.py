"""`algomart verify pack.zip`: judges a claim batch's pack by itself. Needs the pack, Python, and nothing else of ours.

Each check says what it holds of; the first thing that does not hold is named with the file and the row. What it cannot
know is which chain of days was kept outside: compare the last one shown with that.

Nothing is read whole: files are streams, usage and transfers lie in tables on disk. Memory grows with the days, the
lines' names and the transfers of one line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marketplace.integrity.judgements import Judgement, told
from marketplace.integrity.opened import UNREADABLE, Pack, key_of, open_pack
from marketplace.integrity.verify_claim import verify_claim
from marketplace.integrity.verify_payment import verify_payment
from marketplace.integrity.verify_proofs import Spans, verify_days, verify_proofs, verify_segments

FORMAT = "algomart-pack/4"
# 1: no segments of journals; 2: usage without corrections; 3: no payment
FORMATS = ("algomart-pack/1", "algomart-pack/2", "algomart-pack/3", FORMAT)
NEEDS = {  # the first that has it
    Judgement.SEGMENTS: "algomart-pack/2",
    Judgement.CORRECTIONS: "algomart-pack/3",
    Judgement.PAYMENT: "algomart-pack/4",
}
MEMBERS = frozenset({"claim.json", "transfers.jsonl", "usage.csv", "proofs.json", "days.json"})  # of every format
MORE = {Judgement.SEGMENTS: "segments.json", Judgement.PAYMENT: "payment.json"}


@dataclass
class Report:
    """What was found. `wrong` is empty where the pack holds; `facts` is what was checked, in numbers; `judgements` is
    which questions were put to the pack, and which could not be (`judgements.told`), empty where it cannot be read."""

    wrong: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    judgements: list[dict[str, Any]] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.wrong

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    def made(self, judgement: Judgement) -> None:
        """It was made after all."""
        for each in self.judgements:
            if each["what"] == judgement:
                each["made"] = True
                del each["why_zh"], each["why_en"]


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
    format_, check = manifest["format"], report.check
    check(format_ in FORMATS, f"manifest.json: format {format_!r}, expected {FORMAT!r}")
    missing = {each for each, first in NEEDS.items() if format_ in FORMATS[: FORMATS.index(first)]}
    _verify_members(pack, missing, report)
    claim_sha256 = _verify_files(pack, manifest, report)
    roots, last = verify_days(pack.items("days.json"), check)
    segments = iter(()) if Judgement.SEGMENTS in missing else pack.items("segments.json")
    recorded, proved, spans = verify_segments(segments, roots, check)
    records, covered = _verify_usage(pack, spans, report)
    transfers = _take_leaves(pack, report)
    claimed = verify_claim(pack, manifest, check, is_marked=Judgement.CORRECTIONS not in missing)
    anchored = verify_proofs(pack, roots, check)
    payment = {} if Judgement.PAYMENT in missing else verify_payment(pack, manifest, claimed, roots, check)
    report.facts = {
        "batch": manifest["batch"],
        "state": manifest["state"],
        "claim_sha256": claim_sha256,
        "total_fen": claimed.fen,
        "lines": claimed.lines,
        "invoices": claimed.invoices,
        "transfers": transfers,
        "usage_records": records,
        "usage_before_the_period": claimed.earlier,
        "usage_after_the_period": claimed.later,
        "transfers_in_closed_days": anchored,
        "journal_segments": recorded,
        "journal_segments_in_closed_days": proved,
        "usage_in_proved_journals": covered,
        "usage_without_a_recorded_filing": claimed.unfiled,
        **payment,
        "last_day": last["day"] if last else "",
        "last_chain": last["chain"] if last else "",
    }
    report.judgements = told({Judgement.JOURNALS} | missing | claimed.unsaid)


def _verify_members(pack: Pack, missing: set[Judgement], report: Report) -> None:
    """What a format does not have is judged by nothing, so it must not be there."""
    expected = MEMBERS | {name for judgement, name in MORE.items() if judgement not in missing}
    odd = sorted((set(pack.names) - {"manifest.json"}) ^ expected)
    report.check(not odd, f"manifest.json: of this format, the pack has too much or lacks: {', '.join(odd)[:200]}")


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
        transfer = key_of(json.loads(leaf)["id"])
        insert = "INSERT OR IGNORE INTO leaf (transfer, leaf) VALUES (?, ?)"
        kept = pack.tables.execute(insert, (transfer, leaf)).rowcount
        report.check(kept == 1, f"transfers.jsonl: transfer {transfer} stands twice")
    return count


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
