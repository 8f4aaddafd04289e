"""`serving.ports.BundleSource` of a node elsewhere: the catalogue in memory, bundles brought when needed."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from model_store.bundle import MANIFEST, settle, unpack
from model_store.errors import Refusal, Unprocessable
from serving.catalogue import Catalogue
from serving.ports import ServedVersion
from serving.remote.link import MarketLink
from serving.remote.wire import PREFIX, WireChange, WireChanges, decode_catalogue

_log = logging.getLogger("algomart.remote")
AGAIN_S = 1.0
LISTINGS_AT_ONCE = 100  # more changes than that, and everything is read again


class RemoteCatalogue(Catalogue):
    """Follows the market's changes while `follow` runs. Event loop only, but for `read_now`."""

    def __init__(self, link: MarketLink, bundles: Path) -> None:
        """`bundles`: folder of unpacked bundles, by digest."""
        super().__init__()
        self._link, self._bundles = link, bundles
        self._start, self._number = "", 0
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self.on_terms: Callable[[str | None], None] = lambda listing_id: None  # a price or filing changed; None: any
        self.on_keys: Callable[..., None] = lambda *key_ids: None  # these keys do not hold any more; none: any

    def read_now(self) -> None:
        """Read all of it, blocking. Raises what `MarketLink.call_now` raises."""
        self._take_all(self._link.call_now("GET", f"{PREFIX}/catalogue"))

    async def follow(self) -> None:
        """Take every change as it comes, until cancelled. A market that is away is asked again each second."""
        while True:
            try:
                await self.follow_once()
            except Refusal as refusal:
                _log.warning("the catalogue is not followed just now: %s", refusal)
                await asyncio.sleep(AGAIN_S)
            except Exception:  # whatever it was, a price or a revocation must not be missed for good
                _log.exception("a change of the catalogue could not be taken; asking again")
                await asyncio.sleep(AGAIN_S)

    async def follow_once(self) -> None:
        """Wait for changes (20 s at most) and take them."""
        query: dict[str, str | int] = {"start": self._start, "after": self._number}
        told = msgspec.json.decode(await self._link.call("GET", f"{PREFIX}/changes", params=query), type=WireChanges)
        if told.all:
            content = await self._link.call("GET", f"{PREFIX}/catalogue")
            self.on_terms(None)
            self.on_keys()
            self._take_all(content)  # the place in the feed last: what failed before it is told again
            return
        await self._take(told.changes)
        self._number = told.number

    async def _take(self, changes: list[WireChange]) -> None:
        catalogue = [each for each in changes if each.kind == "catalogue"]
        listings = {listing_id for each in catalogue for listing_id in each.ids}
        if any(not each.ids for each in catalogue) or len(listings) > LISTINGS_AT_ONCE:
            self._take_all(await self._link.call("GET", f"{PREFIX}/catalogue"))
        elif listings:
            query = {"listing": sorted(listings)}
            content = await self._link.call("GET", f"{PREFIX}/catalogue", params=query)
            _, _, entries = decode_catalogue(content, self._bundles)
            self.replace(entries, listings | {entry.listing_id for entry in entries})
        for change in changes:
            if change.kind == "terms":
                for listing_id in change.ids or (None,):
                    self.on_terms(listing_id)
            elif change.kind == "keys":
                self.on_keys(*change.ids)

    def _take_all(self, content: bytes) -> None:
        self._start, self._number, entries = decode_catalogue(content, self._bundles)
        self.replace(entries)

    # --- bundles ------------------------------------------------------------------------------------------------------

    async def fetch(self, served: ServedVersion) -> None:
        """See the port. Each bundle is brought once, whoever waits for it; its digest is checked."""
        for each in (served.base, served):
            if each is not None and not (each.bundle / MANIFEST).is_file():
                task = self._fetching.get(each.digest)
                if task is None:
                    task = self._fetching[each.digest] = asyncio.create_task(self._bring(each))
                await asyncio.shield(task)

    async def _bring(self, served: ServedVersion) -> None:
        archive = self._bundles / f"{served.digest}.{secrets.token_hex(4)}.part"
        try:
            await self._link.download(f"{PREFIX}/bundles/{served.digest}", archive)
            await asyncio.to_thread(_unpack, archive, served)
        finally:
            archive.unlink(missing_ok=True)
            del self._fetching[served.digest]
        _log.info("brought %s@%d", served.name, served.version)

    def forget_unused(self) -> None:
        """Remove the bundles of versions that are gone from the catalogue. Blocking; before any call is answered."""
        used = {
            each.bundle.name
            for entry in self.entries()
            for _, served in entry.versions.values()
            for each in (served, served.base)
            if each is not None
        }
        for path in self._bundles.iterdir() if self._bundles.is_dir() else ():
            if path.name not in used:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _unpack(archive: Path, served: ServedVersion) -> None:
    beside = archive.with_suffix(".folder")
    bundle = unpack(archive, beside)
    if bundle.digest != served.digest:
        shutil.rmtree(beside, ignore_errors=True)
        raise Unprocessable(
            "BUNDLE_FOREIGN",
            zh=f"收到的模型包不是 {served.name}@{served.version}",
            en=f"what came is not the bundle of {served.name}@{served.version}",
            remedy_zh="请联系平台运营方运行 algomart doctor",
            remedy_en="ask the operator to run algomart doctor",
            field="model",
        )
    settle(bundle, served.bundle)
