"""A lone serving node over the in-memory market, key, lease and journal on: `python -m tests.bench.node FOLDER PORT`.

Shows the hot path by itself; `--ordinary` takes uvicorn's plain protocol instead, to see what the hot path gains.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serving.app import ServingApp
from serving.dataplane import DataPlane
from serving.journal import JournalWriter
from serving.memory_admission import FolderBundles, MemoryAdmission, Purse
from serving.messages import Request, Response
from serving.metering import PriceLine
from serving.ports import Ports, Principal
from serving.server import server_of
from serving.settings import ServingSettings
from tests.bench import conv, dense
from tests.bench.conv import conv_bundle
from tests.bench.tiny import NAME, tiny_bundle

KEY = "bench-key-0123456789abcdef0123456789abcdef0123456789abcdef"


class NoNative:
    """This node offers Open Inference only."""

    async def answer(self, request: Request) -> Response:
        return Response(404)


def open_bench_node(
    folder: Path, settings: ServingSettings | None = None, *, all_models: bool = False
) -> tuple[ServingApp, DataPlane]:
    """The application and its data plane, not started. `all_models`: the dense ones too (a second more)."""
    bundles = FolderBundles()
    bundles.add(tiny_bundle(folder / "bundle"))
    names = [NAME]
    for side in conv.SIDES:
        name = conv.name_of(side)
        bundles.add(conv_bundle(folder / name.rpartition("/")[2], side))
        names.append(name)
    if all_models:
        for width in dense.WIDTHS:
            names.append(bundles.add(dense.dense_bundle(folder / f"dense-{width}", width)).name)
    admission = MemoryAdmission(
        keys={KEY: Principal("key_bench", "org_bench", "enterprise", frozenset({"use"}))},
        prices={name: PriceLine(f"prc_{name}", name, "calls", 370_000, 1, 3) for name in names},
        purses={"org_bench": Purse(voucher_micro=10**15, own_micro=10**15, step_micro=10**13)},
    )
    ports = Ports(admission=admission, bundles=bundles)
    plane = DataPlane(ports, settings or ServingSettings(), JournalWriter(folder / "journal", "bench", 1))
    return ServingApp(plane, ports, native=NoNative()), plane


def main(folder: Path, port: int, fast: bool) -> None:
    app, _ = open_bench_node(folder, all_models=True)
    server_of(app, "127.0.0.1", port, log_level="warning", fast=fast).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), "--ordinary" not in sys.argv)
