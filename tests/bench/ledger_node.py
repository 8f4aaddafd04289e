"""One serving node without a model: the shipped lease book and journal writer, its calls made in a loop.

`python -m tests.bench.ledger_node URL FOLDER NAME CALLS RATE`: says `ready` once its epoch is open, waits for a line on
standard input, makes the calls (RATE a second; 0: as fast as it can), and tells in one line of JSON what it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sqlalchemy import Engine

from marketplace.clock import now_ms
from marketplace.db import open_database
from marketplace.settings import Settings
from marketplace.usage.recovery import close_epoch, register_node
from marketplace.vouchers.admission import MarketAdmission
from serving.digests import mint_usage_id
from serving.journal import JournalWriter
from serving.leases import LeaseBook
from serving.metering import UsageRecord
from serving.ports import Principal, ServedVersion
from tests.marketplace.town import PRINCIPAL

MODEL = "vendor/steel"
SERVED = ServedVersion(f"ver_{MODEL}", f"lst_{MODEL}", MODEL, 1, Path("/"), "d", True, "org_vendor")
TURN = 32  # calls between two turns of the event loop
BOUND = {"calls": 1, "rows": 1, "ms": 1}
DIGESTS = ("b2:0123456789abcdef0123456789abcdef", "b2:fedcba9876543210fedcba9876543210")


class LedgerNode:
    """A node's epoch on a market's database: leases are asked for there, records go to its own journal."""

    def __init__(self, engine: Engine, folder: Path, name: str, clock: Callable[[], int] = now_ms) -> None:
        self.engine, self.folder, self.name, self.clock = engine, folder, name, clock
        self.admission = MarketAdmission(engine, lambda token: PRINCIPAL, Settings(demo=False), clock)
        self.epoch = register_node(engine, folder, name)
        self.journal = JournalWriter(folder, name, self.epoch)
        self.book = LeaseBook(self.admission, name, self.epoch)

    async def call(
        self, principal: Principal = PRINCIPAL, served: ServedVersion = SERVED, bound: Mapping[str, int] = BOUND,
        digests: tuple[str, str] = DIGESTS,
    ) -> None:  # fmt: skip
        """What the data plane does with money in one call (`serving.calls`): draw the lease, write, keep the rest."""
        reserved = self.book.reserve_now(principal, served, bound, "use")
        if reserved is None:
            reserved = await self.book.reserve(principal, served, bound, "use")
        at_ms = self.clock()
        units = reserved.units_for(bound)
        amount = reserved.amount_for(units)
        record = UsageRecord(
            mint_usage_id(at_ms), principal.key_id, principal.organisation, f"{served.name}@1", "",
            reserved.price_version, reserved.lease_id, units, amount, at_ms, "ok", *digests,
        )  # fmt: skip
        self.journal.usage(record)
        reserved.keep(amount)

    async def work(self, calls: int, rate: int) -> list[float]:
        """Make the calls; answers the instant (monotonic) after each record was written."""
        written, began = [], time.monotonic()
        for number in range(1, calls + 1):
            await self.call()
            written.append(time.monotonic())
            if rate:
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            elif number % TURN == 0:
                await asyncio.sleep(0)
        return written

    def stop(self) -> None:
        """An orderly end: sealed, ingested, settled."""
        self.journal.close()
        self.admission.close()
        close_epoch(self.engine, self.folder, self.name, self.epoch)

    def close(self) -> None:
        """As kill -9 leaves it: the journal is not sealed, its leases are not settled."""
        self.journal.close(seal=False)
        self.admission.close()


@contextlib.contextmanager
def node_of(url: str, folder: Path, name: str) -> Iterator[LedgerNode]:
    engine = open_database(url)
    node = LedgerNode(engine, folder, name)
    try:
        yield node
    finally:
        node.close()
        engine.dispose()


def main(url: str, folder: Path, name: str, calls: int, rate: int) -> None:
    with node_of(url, folder, name) as node:
        print("ready", flush=True)
        sys.stdin.readline()
        began, cpu = time.monotonic(), time.process_time()
        written = asyncio.run(node.work(calls, rate))
        cpu = time.process_time() - cpu
        told = {"began": began, "ended": written[-1], "cpu_us": cpu / calls * 1e6, "leases_asked": node.book.opened}
        print(json.dumps(told | {"written": written if rate else []}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
