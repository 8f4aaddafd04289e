"""Runs the checks against one server: every check alone, none can stop the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model_store.errors import BadInput
from serving.conformance.catalogue import AREAS
from serving.conformance.checks import Check, NotApplicable, Unmet
from serving.conformance.kit import Kit
from serving.conformance.models import PREFIX
from serving.conformance.wire import TIMEOUT_S, Wire

Outcome = Literal["passed", "failed", "not applicable"]


@dataclass(frozen=True)
class Result:
    """`why` a check failed or does not apply; `shown` the request and the response that show a failure."""

    check: Check
    outcome: Outcome
    why: str = ""
    shown: Mapping[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        check = self.check
        found: dict[str, Any] = {
            "check": check.number, "area": check.area, "level": check.level, "extension": check.extension,
            "title_zh": check.zh, "title_en": check.en, "rule": str(check.rule), "source": check.rule.url,
            "outcome": self.outcome,
        }  # fmt: skip
        if self.why:
            found["why"] = self.why
        return found | {"shown": dict(self.shown)} if self.shown else found


@dataclass(frozen=True)
class Report:
    """Every result, in the catalogue's order. `missing`: models of the kit that the server does not serve."""

    url: str
    extensions: tuple[str, ...]
    missing: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def conforms(self) -> bool:
        """No MUST and no claimed extension failed, and something was asked at all."""
        asked = any(each.outcome != "not applicable" for each in self.results)
        return asked and not any(each.outcome == "failed" and each.check.level != "SHOULD" for each in self.results)

    def score(self, area: str | None = None, level: str | None = None) -> tuple[int, int]:
        """Passed, and asked (passed or failed), of an area or a level or both."""
        outcomes = [
            each.outcome
            for each in self.results
            if area in (None, each.check.area) and level in (None, each.check.level)
        ]
        passed = outcomes.count("passed")
        return passed, passed + outcomes.count("failed")

    def as_dict(self) -> dict[str, Any]:
        names = dict.fromkeys(each.check.area for each in self.results)
        scores = {name: dict(zip(("passed", "asked"), self.score(name), strict=True)) for name in names}
        return {
            "url": self.url, "conforms": self.conforms, "extensions": list(self.extensions),
            "missing_models": list(self.missing), "areas": scores, "results": [each.as_dict() for each in self.results],
        }  # fmt: skip


def run_checks(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    model: str | None = None,
    prefix: str = PREFIX,
    only: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Report:
    """Examine the server at `url` (without /v2).

    `model`: the server's own name of the model for general checks, where it does not serve the kit's. `only`: one area,
    or one check by its number. Raises `BadInput` AREA_UNKNOWN, NO_V2_SERVER, NO_MODEL_TO_CHECK.
    """
    checks = [check for area in AREAS for check in area.checks if only in (None, check.area, check.number)]
    if not checks:
        raise _area_unknown(only or "")
    wire = Wire(url, headers or {}, timeout_s)
    try:
        if not wire.send("GET", "v2/health/live").status and not wire.send("GET", "v2").status:
            raise _no_server(url)
        kit = Kit(wire, model, prefix)
        if not kit.served and not kit.has_subject:
            raise _no_model(kit.subject)
        results = tuple(_results(kit, checks))
    finally:
        wire.close()
    missing = tuple(sorted(set(kit.models) - kit.served))
    return Report(url, tuple(sorted(kit.extensions)), missing, results)


def _results(kit: Kit, checks: list[Check]) -> Iterator[Result]:
    gone = ""
    for check in checks:
        why = gone or _why_not(kit, check)
        result = Result(check, "not applicable", why) if why else _run(kit, check)
        yield result
        # What ended the server has failed by that; what comes after it cannot be asked.
        if result.outcome == "failed" and not gone and not kit.is_there():
            gone = f"the server has not answered since {check.number}"


def _why_not(kit: Kit, check: Check) -> str:
    if check.extension is not None and check.extension not in kit.extensions:
        return f"GET /v2 does not claim {check.extension}"
    missing = [kit.name_of(name) for name in check.needs if name not in kit.served]
    return f"not served: {', '.join(missing)}" if missing else ""


def _run(kit: Kit, check: Check) -> Result:
    kit.last = None
    try:
        check.run(kit)
    except NotApplicable as reason:
        return Result(check, "not applicable", str(reason))
    except Unmet as unmet:
        exchange = unmet.exchange or kit.last
        return Result(check, "failed", str(unmet), exchange.shown() if exchange else None)
    except Exception as error:  # an answer that the check did not foresee: a failure of the server, not of the run
        shown = kit.last.shown() if kit.last else None
        return Result(check, "failed", f"unforeseen answer: {type(error).__name__}: {error}", shown)
    return Result(check, "passed")


def _area_unknown(given: str) -> BadInput:
    names = ", ".join(area.name for area in AREAS)
    return BadInput(
        "AREA_UNKNOWN",
        zh=f"没有名为“{given[:80]}”的领域或检查",
        en=f"there is no area and no check {given[:80]!r}",
        remedy_zh=f"可选: {names}, 或检查编号如 I01",
        remedy_en=f"one of {names}, or a check's number such as I01",
        field="only",
    )


def _no_server(url: str) -> BadInput:
    return BadInput(
        "NO_V2_SERVER",
        zh=f"{url[:200]} 没有回答",
        en=f"{url[:200]} does not answer",
        remedy_zh="请给出服务地址, 不含 /v2, 例如 http://127.0.0.1:8001",
        remedy_en="give the server's address without /v2, such as http://127.0.0.1:8001",
        field="url",
    )


def _no_model(name: str) -> BadInput:
    return BadInput(
        "NO_MODEL_TO_CHECK",
        zh=f"该服务没有测试模型, 也没有模型“{name[:80]}”",
        en=f"the server has none of the kit's models, and no model {name[:80]!r}",
        remedy_zh="请用 --export 写出测试模型并部署, 或用 --model 指定已有模型; 需要密钥时加 --key",
        remedy_en="serve the models that --export writes, or name one with --model; --key where one is needed",
        field="model",
    )
