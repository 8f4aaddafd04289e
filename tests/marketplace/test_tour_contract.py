"""The tour's contract is a PDF that readers open, and that the market takes as one."""

from __future__ import annotations

import re

import pytest

from marketplace.evidence.kinds import kind_of
from marketplace.tour_contract import contract_pdf
from marketplace.vouchers.programme import shipped


def test_every_object_lies_where_the_table_says(tmp_path):
    content = contract_pdf(["A (demonstration) \\ contract", "second line"])
    path = tmp_path / "contract.pdf"
    path.write_bytes(content)
    assert kind_of(path, ("pdf",)) == "pdf"
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", content)[1])
    assert content[start:].startswith(b"xref\n0 6\n")
    places = [int(row) for row in re.findall(rb"^(\d{10}) 00000 n $", content, re.M)]
    assert [content[place:].split(b"\n")[0] for place in places] == [f"{n} 0 obj".encode() for n in range(1, 6)]
    length = int(re.search(rb"/Length (\d+)", content)[1])
    assert content.partition(b"stream\n")[2][length:].startswith(b"\nendstream")
    assert rb"(A \(demonstration\) \\ contract) Tj" in content


def test_what_its_letters_cannot_show_is_no_contract():
    with pytest.raises(ValueError, match="Helvetica"):
        contract_pdf(["采购合同"])


def test_one_shipped_demonstration_asks_for_a_file_of_named_kinds():
    asked = {file.code: [piece for piece in file.evidence_schema or () if piece.kind == "file"]
             for file in shipped(include_demo=True) if file.is_demo}  # fmt: skip
    assert [(piece.code, piece.required, piece.types) for piece in asked["demo-reimburse"]] == [
        ("contract", True, ("pdf", "png", "jpeg"))
    ]
    assert asked["demo-deduct"] == []  # the starter's own voucher needs none
