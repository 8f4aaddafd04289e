"""What a check is: a number, the sentence of a public specification that it rests on, and a function that raises
`Unmet` where a server breaks that sentence.

A check never rests on what one server happens to do. MUST: the specification's "must", or a schema's field that is not
#optional. SHOULD: "should", "typically", or a rule of HTTP or JSON that the protocol only implies. EXTENSION: a must of
an extension, asked only of servers that name the extension in `GET /v2`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from serving.conformance.kit import Kit
    from serving.conformance.wire import Exchange

Level = Literal["MUST", "SHOULD", "EXTENSION"]
Run = Callable[["Kit"], None]

_OIP = "https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md"
_V2 = "https://github.com/kserve/kserve/blob/master/docs/predict-api/v2/required_api.md"
_TRITON = "https://github.com/triton-inference-server/server/blob/main/docs/protocol"


@dataclass(frozen=True)
class Rule:
    """One sentence of a specification. `document` a short name, `section` its heading."""

    document: str
    url: str
    section: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.document}, {self.section}: {self.sentence}"


def oip(section: str, sentence: str) -> Rule:
    """KServe's Open Inference Protocol, inference_rest.md."""
    return Rule("Open Inference Protocol", _OIP, section, sentence)


def v2(section: str, sentence: str) -> Rule:
    """Predict Protocol version 2, required_api.md: the text that the Open Inference Protocol came from."""
    return Rule("Predict Protocol V2", _V2, section, sentence)


def triton(extension: str, section: str, sentence: str) -> Rule:
    """One of Triton's extension documents; `extension` is the name of its file."""
    return Rule(f"Triton {extension}", f"{_TRITON}/extension_{extension}.md", section, sentence)


def rfc(number: int, section: str, sentence: str) -> Rule:
    """HTTP semantics (9110), HTTP/1.1 (9112), JSON (8259)."""
    return Rule(f"RFC {number}", f"https://www.rfc-editor.org/rfc/rfc{number}", section, sentence)


class Unmet(Exception):
    """The server breaks the sentence. `exchange`: the request and response that show it; None: the check's last."""

    def __init__(self, why: str, exchange: Exchange | None = None) -> None:
        super().__init__(why)
        self.exchange = exchange


class NotApplicable(Exception):
    """The question does not arise for this server: a model is not served, an optional feature is not offered."""


@dataclass(frozen=True)
class Check:
    """`needs`: models of the kit that it calls. `extension`: the name that `GET /v2` must claim for it to apply."""

    number: str
    area: str
    level: Level
    zh: str
    en: str
    rule: Rule
    run: Run
    needs: tuple[str, ...] = ()
    extension: str | None = None


class Area:
    """The checks of one area, numbered by their letter in the order in which they are written."""

    def __init__(self, name: str, letter: str, zh: str) -> None:
        self.name, self.letter, self.zh = name, letter, zh
        self.checks: list[Check] = []

    def must(self, zh: str, en: str, rule: Rule, *, needs: tuple[str, ...] = ()) -> Callable[[Run], Run]:
        return self._add("MUST", zh, en, rule, needs, None)

    def should(self, zh: str, en: str, rule: Rule, *, needs: tuple[str, ...] = ()) -> Callable[[Run], Run]:
        return self._add("SHOULD", zh, en, rule, needs, None)

    def extension(
        self, name: str, zh: str, en: str, rule: Rule, *, needs: tuple[str, ...] = ()
    ) -> Callable[[Run], Run]:
        return self._add("EXTENSION", zh, en, rule, needs, name)

    def _add(
        self, level: Level, zh: str, en: str, rule: Rule, needs: tuple[str, ...], extension: str | None
    ) -> Callable[[Run], Run]:
        def keep(run: Run) -> Run:
            number = f"{self.letter}{len(self.checks) + 1:02d}"
            self.checks.append(Check(number, self.name, level, zh, en, rule, run, needs, extension))
            return run

        return keep


def expect(holds: bool, why: str, exchange: Exchange | None = None) -> None:
    """Raise `Unmet` where it does not hold."""
    if not holds:
        raise Unmet(why, exchange)
