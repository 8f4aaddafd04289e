"""统一社会信用代码, the unified social credit identifier of GB 32100-2015.

Eighteen characters of 31 (digits and capitals without I O S V Z): registering authority (1), category (1),
administrative division (6 digits), subject identifier (9), check character (1). The check is
C18 = 31 - (Σ value(Ci) · 3^(i-1) mod 31) mod 31.
"""

from __future__ import annotations

import re

from model_store.errors import BadInput

ALPHABET = "0123456789ABCDEFGHJKLMNPQRTUWXY"
DEMO_DIVISION = "000000"  # no administrative division has this code, so a demonstration code can be nobody's
_WEIGHTS = tuple(pow(3, i, 31) for i in range(17))
_FORM = re.compile(rf"[{ALPHABET}]{{2}}\d{{6}}[{ALPHABET}]{{10}}")


def check_character(first_17: str) -> str:
    """The 18th character for the first seventeen (GB 32100-2015, 4.6)."""
    total = sum(ALPHABET.index(character) * weight for character, weight in zip(first_17, _WEIGHTS, strict=True))
    return ALPHABET[(31 - total % 31) % 31]


def is_valid(code: str) -> bool:
    """Whether `code` has the form of the standard and its check character."""
    return bool(_FORM.fullmatch(code)) and check_character(code[:17]) == code[17]


def is_demo(code: str) -> bool:
    """Whether `code` is one that `demo_code` makes."""
    return code[2:8] == DEMO_DIVISION


def check_uscc(text: str, *, field: str = "uscc") -> str:
    """The code in capitals without spaces; `BadInput` USCC_INVALID with what is wrong."""
    code = re.sub(r"\s", "", text).upper()
    if is_valid(code):
        return code
    if _FORM.fullmatch(code):
        zh, en = "校验位不符, 很可能抄错了一个字符", "its check character does not fit; one character is probably wrong"
    else:
        zh, en = (
            "应为18位数字与大写字母(不含 I、O、S、V、Z)",
            "it takes 18 digits and capitals, without I, O, S, V and Z",
        )
    raise BadInput(
        "USCC_INVALID",
        zh=f"统一社会信用代码“{code[:24]}”无效: {zh}",
        en=f"the unified social credit code {code[:24]!r} is not valid: {en}",
        remedy_zh="请对照营业执照核对(GB 32100-2015)",
        remedy_en="compare it with the business licence (GB 32100-2015)",
        field=field,
    )


def demo_code(number: int) -> str:
    """A well-formed code for demonstration organisation `number` (0..99999), recognisable by its division 000000."""
    body = f"91{DEMO_DIVISION}DEM0{number:05d}"
    return body + check_character(body)
