"""What a serving node needs from a market, as ports. In the embedded default `marketplace/` implements them in
process; a lone node would reach them over HTTP. Everything synchronous here must answer from memory (no I/O)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from serving.metering import Lease


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much a key may call of one node. 0: no limit; a burst of 0: what a second allows."""

    rate_per_s: int = 0
    burst: int = 0  # calls that may come at once
    concurrency: int = 0  # calls in hand


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `scopes` ⊆ {"use", "choose", "adapt", "publish", "admin"}; `role` is the organisation's kind."""

    key_id: str
    organisation: str
    role: str  # enterprise | vendor | operator
    scopes: frozenset[str]
    member: str = ""
    expires_at_ms: int = 0  # 0: never
    limits: KeyLimits = NO_LIMITS
    weight: int = 0  # of its organisation, where calls wait for their turn; 0: nothing is said of it


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One version that a caller may run, resolved from name and alias or number."""

    version_id: str
    listing_id: str
    name: str  # vendor/name
    version: int
    bundle: Path  # unpacked bundle folder, immutable
    digest: str
    trusted: bool  # listed after review: runs in process; else in the memory-limited worker
    owner: str  # organisation id
    pinned: bool = False
    shadow: ServedVersion | None = None  # gets the same inputs, unanswered and unpaid
    base: ServedVersion | None = None  # of an adapter: whose graph it runs on; no more need be visible of it


class Admission(Protocol):
    async def authenticate(self, token: str) -> Principal:
        """The principal of a market key; raises `Unauthenticated`. Called on a cache miss only."""

    async def open_lease(self, principal: Principal, served: ServedVersion, *, node: str, epoch: int, need_micro: int,
                         purpose: str, held: Mapping[str, int]) -> Lease:  # fmt: skip
        """Open, or extend (same `lease_id`, larger remainders), the lease that covers this organisation and model.

        `need_micro`: gross micro-fen of the call in hand (0 where the price is not known to the node yet);
        `purpose` use or trial; `held` {"remaining_micro", "credit_micro"} that the node still holds under the current
        lease ({} if none). Raises `PaymentRequired` (voucher exhausted or expired, cap reached, no subscription) or
        `Forbidden`. Never grants less than `need_micro` covers.
        """


class BundleSource(Protocol):
    def resolve(self, name: str, selector: str | None, principal: Principal) -> ServedVersion:
        """`name` in either spelling; selector a number, an alias or None (latest visible). In memory.

        Raises `NotFound` MODEL_NOT_FOUND also for what the caller may not see.
        """

    def answering(self, name: str, principal: Principal) -> Sequence[ServedVersion]:
        """Every version that a call of the bare name may meet: the latest, or while a rollout shares the calls its
        stable version, then its canary. Never empty. In memory. Raises `NotFound` as `resolve`."""

    def visible(self, principal: Principal) -> Sequence[ServedVersion]:
        """Every latest version the caller may see, ordered by name; of a rollout the stable one."""

    async def fetch(self, served: ServedVersion) -> None:
        """Awaited before the bundle folders of `served` and its base are read: they are on this disk afterwards.

        Raises `Unavailable` where they cannot be had just now.
        """


class Chooser(Protocol):
    async def create_sample_set(
        self, principal: Principal, *, filename: str, content: bytes, form: Mapping[str, str]
    ) -> dict[str, Any]: ...
    async def delete_sample_set(self, principal: Principal, sample_set_id: str) -> dict[str, Any]: ...
    async def choose(self, principal: Principal, request: Mapping[str, Any]) -> dict[str, Any]: ...
    async def get(self, principal: Principal, choice_id: str) -> dict[str, Any]: ...


class Adapting(Protocol):
    async def create(self, principal: Principal, request: Mapping[str, Any]) -> dict[str, Any]: ...
    async def get(self, principal: Principal, job_id: str) -> dict[str, Any]: ...
    async def list(self, principal: Principal) -> list[dict[str, Any]]: ...
    async def cancel(self, principal: Principal, job_id: str) -> dict[str, Any]: ...
    def recipe_cards(self) -> Sequence[dict[str, Any]]: ...
    def events(self, principal: Principal, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """Progress as it happens, ending with the terminal state; rendered as server-sent events."""


@dataclass(slots=True)
class Ports:
    """What the ASGI application is given."""

    admission: Admission
    bundles: BundleSource
    chooser: Chooser | None = None
    adapting: Adapting | None = None
    market_url: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
