"""What an application gives as evidence, by its programme's schema: texts, days, amounts. Files: `evidence.files`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from marketplace.vouchers.programme import Evidence, ProgrammeFile
from model_store.errors import BadInput, Conflict

MAX_EVIDENCE = 50
MAX_TEXT = 2_000
MAX_FEN = 10**13


def read_given(rules: ProgrammeFile, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """[{code, value}] as it is kept; `BadInput` EVIDENCE_INVALID, TEXT_TOO_LONG by field.

    Codes that the schema does not name are kept as text (`founded-on` is one that ratios may ask for).
    """
    if len(items) > MAX_EVIDENCE or any(not str(item.get("code", "")).strip() for item in items):
        raise _invalid("evidence", f"材料须写明 code, 最多 {MAX_EVIDENCE} 项",
                       f"each piece of evidence has a code, and there are at most {MAX_EVIDENCE}")  # fmt: skip
    found = []
    for item in items:
        code, value = str(item["code"]).strip()[:60], bounded_text(str(item.get("value", "")), "evidence")
        piece = rules.piece(code)
        if piece is not None and value:
            _check_value(piece, value)
        found.append({"code": code, "value": value})
    return found


def _check_value(piece: Evidence, value: str) -> None:
    field = f"evidence.{piece.code}"
    if piece.kind == "file":
        raise _invalid(field, f"“{piece.title_zh}”须上传文件", f"{piece.code} is a file: upload it")
    if piece.kind == "date" and not is_day(value):
        raise _invalid(field, f"“{piece.title_zh}”须为形如 2026-10-01 的日期", f"{piece.code} is a day, as 2026-10-01")
    if piece.kind == "amount_fen" and not (value.isascii() and value.isdigit() and int(value[:20]) <= MAX_FEN):
        raise _invalid(field, f"“{piece.title_zh}”须为以分为单位的整数", f"{piece.code} is a whole amount in fen")


def is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def file_piece(rules: ProgrammeFile, code: str) -> Evidence:
    """What the schema says of a file; `BadInput` EVIDENCE_INVALID where it names no file of that code."""
    piece = rules.piece(code)
    if piece is None or piece.kind != "file":
        wanted = [item.code for item in rules.evidence_schema or () if item.kind == "file"]
        zh = f"项目材料清单中没有文件“{code[:60]}”; 可上传: {'、'.join(wanted) or '无'}"
        en = f"the programme asks for no file {code[:60]!r}; it takes {', '.join(wanted) or 'none'}"
        raise _invalid("code", zh, en)
    return piece


def given_codes(rules: ProgrammeFile, evidence: Iterable[Mapping[str, Any]], files: Iterable[str]) -> set[str]:
    """The codes that are there: a text that says something, a file that counts."""
    said = {str(item["code"]) for item in evidence if str(item.get("value", "")).strip()}
    of_files = {item.code for item in rules.evidence_schema or () if item.kind == "file"}
    return (said - of_files) | set(files)


def ask_for(
    rules: ProgrammeFile, codes: Iterable[str], evidence: Iterable[Mapping[str, Any]], at_ms: int
) -> list[dict[str, Any]]:
    """What a supplement asks for, with what stands there now; `BadInput` EVIDENCE_INVALID for an unknown code."""
    said = {str(item["code"]): str(item.get("value", "")) for item in evidence}
    asked = []
    for code in dict.fromkeys(codes):
        if rules.piece(code) is None:
            raise _invalid("asked", f"项目材料清单中没有“{code[:60]}”", f"the programme asks for no {code[:60]!r}")
        asked.append({"code": code, "at_ms": at_ms, "was": said.get(code, "")})
    return asked


def decide_supplemented(
    asked: Iterable[Mapping[str, Any]], evidence: Iterable[Mapping[str, Any]], files: Iterable[tuple[str, int]]
) -> None:
    """What was asked for has come: a text that reads otherwise now, or a file (code, instant) that came since.

    `Conflict` SUPPLEMENT_MISSING with the codes that have not.
    """
    said = {str(item["code"]): str(item.get("value", "")).strip() for item in evidence}
    newest: dict[str, int] = {}
    for code, at_ms in files:
        newest[code] = max(at_ms, newest.get(code, 0))
    missing = []
    for each in asked:
        value = said.get(each["code"], "")
        came = newest.get(each["code"], 0) >= each["at_ms"] or (value != "" and value != each["was"])
        if not came:
            missing.append(each["code"])
    if missing:
        raise Conflict(
            "SUPPLEMENT_MISSING",
            zh=f"要求补正的材料尚未补齐: {'、'.join(missing)}",
            en=f"what was asked for has not come: {', '.join(missing)}",
            remedy_zh="请补充后重新提交",
            remedy_en="supply it and hand in again",
            details={"missing": missing},
        )


def bounded_text(text: str, field: str, most: int = MAX_TEXT) -> str:
    """Trimmed; `BadInput` TEXT_TOO_LONG."""
    if len(text) > most:
        raise BadInput(
            "TEXT_TOO_LONG",
            zh=f"最多 {most} 个字符",
            en=f"at most {most} characters",
            remedy_zh="请缩短",
            remedy_en="shorten it",
            field=field,
        )
    return text.strip()


def _invalid(field: str, zh: str, en: str) -> BadInput:
    return BadInput(
        "EVIDENCE_INVALID",
        zh=zh,
        en=en,
        remedy_zh="请按项目的材料清单填写",
        remedy_en="follow the programme's evidence_schema",
        field=field,
    )
