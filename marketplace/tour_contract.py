"""The contract that the tour hands in as evidence: a one-page PDF that any reader opens, in words that nobody takes
for a real one's. Written by hand, so that the tour needs no library (ISO 32000-1, 7.5: header, objects, xref, trailer).
"""

from __future__ import annotations


def contract_pdf(lines: list[str]) -> bytes:
    """A page with these lines in Helvetica, which every reader has: printable ASCII only (`ValueError` else)."""
    if not all(line.isascii() and line.isprintable() for line in lines):
        raise ValueError("Helvetica of a reader's own has no other letters")
    shown = "".join(f"({_escaped(line)}) Tj T*\n" for line in lines)
    stream = f"BT /F1 12 Tf 72 770 Td 18 TL\n{shown}ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    rows = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    xref = f"xref\n0 {size}\n0000000000 65535 f \n{rows}trailer\n<< /Size {size} /Root 1 0 R >>\n"
    return f"{out}{xref}startxref\n{len(out)}\n%%EOF\n".encode("ascii")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
