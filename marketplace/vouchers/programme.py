"""A voucher programme as data: every rule of ../shared/design/vouchers.md, "Programme parameters", and none of it code.

A field that the published rules leave open is None; `unset` names them, and a programme is not activated before each
has a value. Amounts are integer fen, shares basis points (10,000 = all), days calendar days in Asia/Shanghai.
"""

from __future__ import annotations

from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from marketplace.evidence.kinds import FileKind
from marketplace.ledger.postings import Terms
from marketplace.vouchers.relations import Relation
from marketplace.vouchers.signals import Signals
from model_store.errors import BadInput, Conflict

FOLDER = Path(__file__).parent / "programmes"
MAX_POOL_FEN = 10**13
Fen = Annotated[int, Field(ge=0, le=MAX_POOL_FEN)]
Code = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,59}$")]
Kind = Literal["enterprise", "vendor"]
CHECKS = ("standing", "uscc", "filing", "cap", "pool", "evidence")
NEVER_OVERRIDDEN = ("standing", "cap", "pool")  # the ledger and the register would refuse all the same


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ratio(_Part):
    """The voucher's share of gross, exactly."""

    num: int = Field(ge=1, le=10_000)
    den: int = Field(ge=1, le=10_000)

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.num > self.den:
            raise ValueError("a ratio is at most 1")
        return self

    @property
    def fraction(self) -> Fraction:
        return Fraction(self.num, self.den)


class RatioRule(_Part):
    """A ratio for some: every condition that is given must hold. The first rule that fits decides, else `ratio`."""

    ratio: Ratio
    tiers: tuple[Literal["base", "vertical", "small", "app"], ...] = ()
    filed: bool | None = None
    firm_age_max_years: int | None = Field(default=None, ge=0)


class Tranche(_Part):
    """A part of the pool. `own_approval`: it is not released with the programme but later, by two persons."""

    code: Code
    fen: Fen
    own_approval: bool = False


class Funder(_Part):
    name_zh: str
    name_en: str
    share_bp: int = Field(ge=0, le=10_000)


class Check(_Part):
    """One check of an application. It holds for `valid_days` after its day (Asia/Shanghai) and is then made again,
    before the approval and before the confirmation. `override`: a failure may be let pass by two persons, or never."""

    code: Literal["standing", "uscc", "filing", "cap", "pool", "evidence"]
    valid_days: int = Field(default=90, ge=1, le=3_650)
    override: Literal["two_persons", "never"] = "two_persons"

    @property
    def may_be_overridden(self) -> bool:
        return self.override == "two_persons" and self.code not in NEVER_OVERRIDDEN


class Evidence(_Part):
    """One piece of evidence. `types`: of a file, the kinds that are taken; none named: every kind the market takes."""

    code: Code
    title_zh: str = Field(max_length=200)
    title_en: str = Field(max_length=200)
    required: bool = True
    kind: Literal["text", "date", "amount_fen", "file"] = "text"
    types: tuple[FileKind, ...] = ()

    @model_validator(mode="after")
    def _types_of_files(self) -> Self:
        if self.types and self.kind != "file":
            raise ValueError("only a file has types")
        return self


class Validity(_Part):
    """How long a voucher may be used: `days` from issue, at the latest `until`; redeemed `redeem_days` after that."""

    days: int = Field(ge=1, le=3_650)
    until: date | None = None
    redeem_days: int = Field(default=90, ge=0, le=3_650)


class TaxBasis(_Part):
    """What of gross is the market's fee and what VAT, in basis points."""

    fee_bp: int = Field(default=0, ge=0, le=10_000)
    vat_bp: int = Field(default=0, ge=0, le=10_000)


class Source(_Part):
    """A sentence of the published document that a value rests on."""

    field: str
    zh: str
    en: str


class ProgrammeFile(_Part):
    """One programme. `unset` fields are None until activation names their values."""

    code: Code
    version: int = Field(default=1, ge=1)
    title_zh: str = Field(min_length=1, max_length=200)
    title_en: str = Field(min_length=1, max_length=200)
    document_zh: str = ""
    document_en: str = ""
    sources: tuple[Source, ...] = ()
    is_demo: bool = False
    kind: Literal["model", "compute"] = "model"
    who: tuple[Kind, ...] = ("enterprise",)
    pool_fen: Fen
    tranches: tuple[Tranche, ...] = Field(min_length=1)
    funders: tuple[Funder, ...] = ()
    ratio: Ratio | None = None
    ratio_max: Ratio | None = None  # where the document states a bound only
    ratio_rules: tuple[RatioRule, ...] = ()
    cap_fen: Fen
    cap_period: Literal["programme", "calendar_year"]
    contract_once: bool = False  # it pays for a contract out of one voucher at most; else a second one takes over
    min_spend_fen: Fen = 0
    base: Literal["settled"] = "settled"  # the share is taken of what was really settled
    subject: Literal["base", "derivative", "both"] = "both"
    filing_required: bool = True
    related_party_policy: Literal["refuse", "allow"] = "refuse"
    stacking: Literal["none", "cap_total_ratio"] = "none"
    stacking_max: Ratio | None = None  # all subsidies of a contract together; None: the voucher's own ratio
    priority: int = Field(default=100, ge=0, le=1_000)  # burn order: smaller first
    validity: Validity | None = None
    late_usage_grace_days: int = Field(default=7, ge=0, le=365)
    checks: tuple[Check, ...] = tuple(Check(code=code) for code in CHECKS)
    evidence_schema: tuple[Evidence, ...] | None = None
    retention_years: int = Field(default=10, ge=1, le=100)  # how long evidence is kept at least
    settlement_mode: Literal["reimburse", "deduct"] | None = None
    payee: Literal["enterprise", "provider", "platform"] | None = None
    tax_basis: TaxBasis | None = None
    notice_days: int = Field(default=5, ge=0, le=365)
    notice_on_objection: Literal["continue", "extend", "restart"] = "extend"  # what a dismissed objection does to it
    clawback_policy: Literal["full", "proportional"] = "full"
    signals: Signals = Signals()  # what is looked for, and which findings hold a claim back

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if sum(tranche.fen for tranche in self.tranches) > self.pool_fen:
            raise ValueError("the tranches are more than the pool")
        if len({tranche.code for tranche in self.tranches}) != len(self.tranches):
            raise ValueError("two tranches have one code")
        if self.funders and sum(funder.share_bp for funder in self.funders) != 10_000:
            raise ValueError("the funders' shares are not 10000 basis points together")
        if len({item.code for item in self.evidence_schema or ()}) != len(self.evidence_schema or ()):
            raise ValueError("two pieces of evidence have one code")
        if self.stacking_max and self.stacking == "none":
            raise ValueError("without stacking there is no bound on all subsidies together")
        if self.ratio_max and any(ratio.fraction > self.ratio_max.fraction for ratio in self.ratios()):
            raise ValueError("a ratio is above the document's bound")
        if self.is_demo != ("演示" in self.title_zh):
            raise ValueError("a demonstration programme, and only such, has 演示 in its title")
        if (
            self.settlement_mode
            and self.payee
            and (self.settlement_mode == "reimburse") != (self.payee == "enterprise")
        ):
            raise ValueError("reimbursement is paid to the enterprise, a deduction to the provider or the platform")
        return self

    def ratios(self) -> list[Ratio]:
        return [*([self.ratio] if self.ratio else []), *(rule.ratio for rule in self.ratio_rules)]

    def piece(self, code: str) -> Evidence | None:
        """What the schema says of a piece of evidence."""
        return next((item for item in self.evidence_schema or () if item.code == code), None)

    def relates(self, relation: Relation | None) -> bool:
        """Whether a relation between caller and provider is one that this programme does not pay across."""
        return relation is not None and relation.share_bp >= self.signals.related_share_bp

    def terms(self) -> Terms:
        basis = self.tax_basis or TaxBasis()
        return Terms(fee_bp=basis.fee_bp, vat_bp=basis.vat_bp)

    def use_by(self, issued_on: date) -> date:
        """The last day a voucher issued on that day may be used; `ValueError` while validity is unset."""
        if self.validity is None:
            raise ValueError(f"{self.code} has no validity")
        last = issued_on + timedelta(days=self.validity.days)
        return min(last, self.validity.until) if self.validity.until else last


# What a published document may leave open, with the words for it; in the order that activation names them.
OPEN_FIELDS = {
    "ratio": ("补贴比例", "the voucher's ratio"),
    "settlement_mode": ("结算方式(先付后补或直接抵扣)", "the settlement mode (reimburse or deduct)"),
    "validity": ("有效期", "the validity"),
    "payee": ("收款方", "the payee"),
    "evidence_schema": ("申报材料清单", "the list of evidence"),
    "tax_basis": ("计税口径", "the tax basis"),
}


def unset(programme: ProgrammeFile) -> list[str]:
    """The fields that still have no value, in the order of `OPEN_FIELDS`."""
    return [name for name in OPEN_FIELDS if getattr(programme, name) is None]


def decide_ratio(programme: ProgrammeFile, *, tier: str, filed: bool, firm_age_years: int | None) -> Ratio:
    """The ratio for a listing of `tier` and a firm of that age (None: not known, so no rule on age fits)."""
    for rule in programme.ratio_rules:
        if rule.tiers and tier not in rule.tiers:
            continue
        if rule.filed is not None and rule.filed != filed:
            continue
        if rule.firm_age_max_years is not None and (firm_age_years is None or firm_age_years > rule.firm_age_max_years):
            continue
        return rule.ratio
    if programme.ratio is None:
        raise unset_refusal(programme)
    return programme.ratio


def read_programme(document: Any) -> ProgrammeFile:
    """A programme from JSON-able data; `BadInput` PROGRAMME_INVALID with the first field that breaks a rule."""
    try:
        return ProgrammeFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise BadInput(
            "PROGRAMME_INVALID",
            zh=f"券项目文件中的“{field}”有误: {first['msg']}",
            en=f"{field}: {first['msg']}",
            remedy_zh="请修改后重新提交",
            remedy_en="correct it and send it again",
            field=field,
        ) from None


def shipped(include_demo: bool = True) -> list[ProgrammeFile]:
    """The programme files that ship, Dongguan's two and the demonstrations, by code."""
    found = [read_programme(yaml.safe_load(path.read_text(encoding="utf-8"))) for path in sorted(FOLDER.glob("*.yaml"))]
    return [programme for programme in found if include_demo or not programme.is_demo]


def unset_refusal(programme: ProgrammeFile) -> Conflict:
    """`Conflict` PROGRAMME_UNSET: which values activation must still name, one by one."""
    missing = unset(programme)
    return Conflict(
        "PROGRAMME_UNSET",
        zh=f"“{programme.title_zh}”尚有未定事项: {'、'.join(OPEN_FIELDS[name][0] for name in missing)}",
        en=f"{programme.title_en} leaves open: {', '.join(OPEN_FIELDS[name][1] for name in missing)}",
        remedy_zh="请按实施细则逐项填写后再启用",
        remedy_en="name each of them from the implementing rules, then activate",
        details={
            "unset": [{"field": name, "zh": OPEN_FIELDS[name][0], "en": OPEN_FIELDS[name][1]} for name in missing]
        },
    )
