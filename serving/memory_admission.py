"""The fakes of serving's two ports, as shipped parts: a market in memory, bundles in a folder. For tests and benches.

`MemoryAdmission` knows keys and prices from dictionaries and grants leases from a purse; `FolderBundles` serves bundle
folders that it is told of. The same contract suite runs on these and on the market's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_store.adapter_file import check_adapter
from model_store.bundle import Bundle, open_bundle
from model_store.errors import PaymentRequired, Unauthenticated
from model_store.manifest import AdapterOf
from serving.digests import mint_usage_id
from serving.errors.access import adapter_base_missing, model_not_found
from serving.leases import now_ms
from serving.metering import Lease, LeaseKind, PriceLine
from serving.ports import Principal, ServedVersion


@dataclass
class Purse:
    """What an organisation may still spend: of a voucher and of its own money. Leases are granted in `step_micro`."""

    voucher_micro: int = 0
    own_micro: int = 0
    step_micro: int = 100_000_000
    kind: LeaseKind = "subsidised"


@dataclass
class MemoryAdmission:
    """Implements `serving.ports.Admission`. `keys` token → principal; `prices` vendor/name → line; `purses` by
    organisation. A model without a price, and every trial, gets a free lease."""

    keys: dict[str, Principal] = field(default_factory=dict)
    prices: dict[str, PriceLine] = field(default_factory=dict)
    purses: dict[str, Purse] = field(default_factory=dict)
    lease_ms: int = 600_000
    leases: dict[tuple[str, str], Lease] = field(default_factory=dict)
    authenticated: int = 0
    opened: int = 0

    async def authenticate(self, token: str) -> Principal:
        self.authenticated += 1
        principal = self.keys.get(token)
        if principal is None:
            raise Unauthenticated(
                "KEY_INVALID",
                zh="密钥无效或已撤销",
                en="the key is not valid, or has been revoked",
                remedy_zh="请在控制台新建密钥",
                remedy_en="make a new one in the console",
                field="authorization",
            )
        return principal

    async def open_lease(
        self,
        principal: Principal,
        served: ServedVersion,
        *,
        node: str,
        epoch: int,
        need_micro: int,
        purpose: str,
        held: Mapping[str, int],
    ) -> Lease:
        self.opened += 1
        line = self.prices.get(served.name)
        organisation = principal.organisation
        if line is None or purpose == "trial":
            return self._lease(organisation, f"{served.listing_id}/{purpose}", node, epoch, "free", 0, 0, [])
        purse = self.purses.get(organisation, Purse())
        subsidised = purse.kind == "subsidised"
        share = need_micro * line.ratio_num // line.ratio_den if subsidised else 0
        voucher_need = -(-need_micro * line.ratio_num // line.ratio_den) if subsidised else 0
        voucher = _grant(
            purse.voucher_micro if subsidised else 0, purse.step_micro, voucher_need - held.get("remaining_micro", 0)
        )
        own = _grant(purse.own_micro, purse.step_micro, need_micro - share - held.get("credit_micro", 0))
        if voucher is None or own is None:
            raise PaymentRequired(
                "VOUCHER_EXHAUSTED",
                zh="模型券余额不足",
                en="the voucher does not cover this call",
                remedy_zh="请申请新的模型券, 或改为自费",
                remedy_en="apply for another voucher, or go on at own cost",
            )
        purse.voucher_micro -= voucher
        purse.own_micro -= own
        return self._lease(
            organisation,
            served.listing_id,
            node,
            epoch,
            purse.kind,
            held.get("remaining_micro", 0) + voucher,
            held.get("credit_micro", 0) + own,
            [line],
        )

    def _lease(
        self,
        organisation: str,
        subject: str,
        node: str,
        epoch: int,
        kind: LeaseKind,
        remaining: int,
        credit: int,
        prices: list[PriceLine],
    ) -> Lease:
        known = self.leases.get((organisation, subject))
        lease = Lease(
            lease_id=known.lease_id if known is not None else f"lea_{mint_usage_id()}",
            node=node,
            epoch=epoch,
            kind=kind,
            organisation=organisation,
            reservation="rsv_memory" if kind == "subsidised" else "",
            subscription="sub_memory" if kind != "free" else "",
            remaining_micro=remaining,
            credit_micro=credit,
            opened_at_ms=now_ms(),
            expires_at_ms=now_ms() + self.lease_ms,
            prices=prices,
        )
        self.leases[(organisation, subject)] = lease
        return lease


def _grant(left: int, step: int, missing: int) -> int | None:
    """A step, or what is missing if that is more, or all that is left; None where even that does not cover it."""
    if missing > left:
        return None
    return min(left, max(step, missing))


class FolderBundles:
    """Implements `serving.ports.BundleSource` over bundle folders, all visible to everyone; private ones to owners."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[int, ServedVersion]] = {}
        self._aliases: dict[tuple[str, str], int] = {}
        self._private: set[str] = set()

    def add(
        self,
        bundle: Path | Bundle,
        *,
        trusted: bool = True,
        owner: str = "org_vendor",
        version: int | None = None,
        private: bool = False,
        aliases: Sequence[str] = (),
    ) -> ServedVersion:
        """Serve a bundle (or the folder of one) under its manifest's name, as the next version unless told which.

        An adapter's base must have been added before. Raises `NotFound` ADAPTER_BASE_MISSING and what `open_bundle` and
        `check_adapter` raise.
        """
        if isinstance(bundle, Path):
            bundle = open_bundle(bundle)
        base = None
        if bundle.manifest.adapter_of is not None:
            base = self._base_of(bundle.manifest.adapter_of)
            check_adapter(bundle, open_bundle(base.bundle))
        name = bundle.manifest.name
        served = self.add_checked(
            name, bundle.digest, bundle.path, trusted=trusted, owner=owner, version=version, base=base
        )
        self._aliases.update({(name, alias): served.version for alias in aliases})
        if private:
            self._private.add(name)
        return served

    def add_checked(
        self,
        name: str,
        digest: str,
        folder: Path,
        *,
        trusted: bool,
        owner: str,
        version: int | None = None,
        base: ServedVersion | None = None,
    ) -> ServedVersion:
        """As `add`, of a bundle whose manifest has been read and checked: no file is opened."""
        versions = self._versions.setdefault(name, {})
        number = max(versions, default=0) + 1 if version is None else version
        served = ServedVersion(
            version_id=f"ver_{name}_{number}",
            listing_id=f"lst_{name}",
            name=name,
            version=number,
            bundle=folder,
            digest=digest,
            trusted=trusted,
            owner=owner,
            base=base,
        )
        versions[number] = served
        return served

    def _base_of(self, of: AdapterOf) -> ServedVersion:
        """By its digest: the numbers of versions are this node's own."""
        for served in self._versions.get(of.name, {}).values():
            if served.digest == of.digest:
                return served
        raise adapter_base_missing(of.name, of.version)

    def resolve(self, name: str, selector: str | None, principal: Principal) -> ServedVersion:
        spelled = name if "/" in name else name.replace("--", "/", 1)
        versions = self._versions.get(spelled)
        if versions is None or not self._seen(spelled, principal):
            raise model_not_found(name, selector)
        if selector is None or selector in ("", "latest"):
            return versions[max(versions)]
        number = int(selector) if selector.isascii() and selector.isdigit() else self._aliases.get((spelled, selector))
        if number not in versions:
            raise model_not_found(name, selector)
        return versions[number]

    def answering(self, name: str, principal: Principal) -> Sequence[ServedVersion]:
        return [self.resolve(name, None, principal)]

    def visible(self, principal: Principal) -> Sequence[ServedVersion]:
        return [
            versions[max(versions)] for name, versions in sorted(self._versions.items()) if self._seen(name, principal)
        ]

    async def fetch(self, served: ServedVersion) -> None:
        """See the port: every bundle lies here."""

    def _seen(self, name: str, principal: Principal) -> bool:
        versions = self._versions[name]
        return name not in self._private or versions[max(versions)].owner == principal.organisation
