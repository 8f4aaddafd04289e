"""`algomart up`: one process that answers on one port, and its children. Everything it keeps is in $ALGOMART_HOME.

The order matters. The old epoch's journal is ingested and sealed before the node gets a new epoch, publications that a
crash left open are settled before anybody can publish, and the port opens last. On the way down: no new calls, what
runs is finished, the journal is sealed and ingested, its leases are settled.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType

from marketplace.adapting.service import MarketAdapting
from marketplace.app import create_app
from marketplace.catalogue.publishing import reconcile
from marketplace.choosing.service import MarketChooser
from marketplace.client_address import read_networks
from marketplace.db import open_database, transaction
from marketplace.demo import KEYS_FILE, LOGINS_FILE, seed_organisations
from marketplace.demo_voucher import seed_voucher
from marketplace.housekeeping import Housekeeping
from marketplace.keys.principals import authenticate
from marketplace.market import Market, assemble
from marketplace.migrations.upgrade import upgrade
from marketplace.minilm import MiniLmBuild
from marketplace.nodes.registry import OWN_NODE
from marketplace.operators import INVITATION_FILE, invite_first_operator
from marketplace.settings import Settings
from marketplace.starter import seed_shelf
from marketplace.tracking.supervisor import MlflowChild
from marketplace.usage.ingest import Ingest
from marketplace.usage.recovery import close_epoch, register_node
from marketplace.usage.supervisor import IngestChild, gauges, standing
from marketplace.vouchers.admission import MarketAdmission
from marketplace.vouchers.rollout import load_shipped
from marketplace.workers import Workers, close_left_over, share_of
from model_store.blobs import FolderBlobs
from model_store.errors import Refusal
from model_store.mlflow_store import MlflowStore
from serving.app import ServingApp
from serving.dataplane import DataPlane
from serving.folder_lock import hold_folder
from serving.journal import JournalWriter
from serving.ports import Ports
from serving.server import check_port, serve, shared_socket
from serving.settings import ServingSettings

SETTLE_AGAIN_S = 5.0
FOLDERS = ("journal", "blobs", "bundles", "samples", "jobs", "tmp", "logs")
_log = logging.getLogger("algomart.start")


def run_market(settings: Settings) -> int:
    """Run a market in the foreground until SIGINT or SIGTERM. Answers the exit status; a `Refusal` is printed."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        read_networks(settings.trusted_proxies)
        with ExitStack() as stack:
            settings = settings.model_copy(update={"home": prepare_home(settings.home)})
            stack.enter_context(hold_folder(settings.home))
            check_port(settings.host, settings.port, "ALGOMART_PORT")
            if settings.grpc_port:
                check_port(settings.host, settings.grpc_port, "ALGOMART_GRPC_PORT")
            market = open_market(settings, stack)
            app = create_app(market)
            show_ingest(app, market)
            sockets = None
            if settings.workers > 1:
                workers = Workers(market, settings.workers)
                stack.callback(workers.stop)
                workers.join(app)
                sockets = [shared_socket(settings.host, settings.port), workers.own_socket]
                workers.start()
            print(banner(settings), flush=True)
            serve(
                app,
                settings.host,
                settings.port,
                grpc_port=settings.grpc_port,
                log_level=settings.log_level,
                sockets=sockets,
            )
    except Refusal as refusal:
        print(f"{refusal.code}: {refusal.zh}\n  {refusal.remedy_zh}\n{refusal.en}\n  {refusal.remedy_en}", flush=True)
        return 1
    return 0


def open_market(settings: Settings, stack: ExitStack) -> Market:
    """Every part, started; `stack` stops them again in the opposite order."""
    engine = open_database(settings.sql_url)
    stack.callback(engine.dispose)
    child = None if settings.mlflow_uri else MlflowChild(settings)
    if child is not None:  # takes seconds to come up: the rest goes on meanwhile
        child.start()
        stack.callback(child.stop)
    upgrade(engine)
    if child is not None:
        store = MlflowStore(child.base_url, child.headers, artifact_folder=child.artifact_folder)
    else:
        store = MlflowStore(settings.mlflow_uri)
    stack.callback(store.close)
    market = assemble(settings, engine, FolderBlobs(settings.home / "blobs"), store)
    market.mlflow = child
    open_dataplane(market, stack)
    market.registry_settled.clear()
    stopping = threading.Event()
    stack.callback(stopping.set)
    threading.Thread(target=settle_publications, args=(market, stopping), name="settle", daemon=True).start()
    prepare_data(market)
    if settings.demo and settings.build_minilm:
        build = MiniLmBuild(market)
        build.start()
        stack.callback(build.stop)
    return market


def open_dataplane(market: Market, stack: ExitStack) -> None:
    """Recover old journals, open a new epoch, and put the serving node together."""
    settings, engine, folder = market.settings, market.engine, market.settings.home / "journal"
    close_left_over(market)
    epoch = register_node(engine, folder, OWN_NODE)
    admission = MarketAdmission(engine, partial(authenticate, engine), settings)
    stack.callback(admission.close)
    # On the way down, after the data plane has sealed its journal: ingest the rest, settle the leases.
    stack.callback(close_epoch, engine, folder, OWN_NODE, epoch)
    ingest: Ingest | IngestChild = Ingest(engine, folder) if settings.ingest == "thread" else IngestChild(settings)
    ingest.start()
    stack.callback(ingest.stop)
    adapting = MarketAdapting(market)
    chooser = MarketChooser(market)
    ports = Ports(
        admission=admission, bundles=market.bundles, chooser=chooser, adapting=adapting, market_url=settings.url
    )
    journal = JournalWriter(folder, OWN_NODE, epoch)
    stack.callback(journal.close)
    market.admission, market.ports, market.chooser, market.adapting = admission, ports, chooser, adapting
    market.dataplane = DataPlane(ports, share_of(ServingSettings.of(settings), settings.workers), journal)
    market.extra["ingest"] = ingest
    adapting.start()
    stack.callback(adapting.stop)
    housekeeping = Housekeeping(market)
    housekeeping.start()
    stack.callback(housekeeping.stop)


def show_ingest(app: ServingApp, market: Market) -> None:
    """Readiness tells how far the ledger is behind the calls, and so do the metrics."""
    ingest, folder = market.extra["ingest"], market.settings.home / "journal"
    app.standing = lambda: {"ingest": standing(ingest, folder)}
    app.gauges = lambda: gauges(ingest, folder)


def settle_publications(market: Market, stopping: threading.Event) -> None:
    """Once the registry is up, finish or remove what a crash left half-published; only then may anybody publish.

    A registry that is away, or fails meanwhile, is asked again until `stopping`.
    """
    while not stopping.is_set():
        try:
            if market.mlflow is not None:
                market.mlflow.wait_ready()
            settled = reconcile(market)
        except Refusal as refusal:
            _log.error("the registry is not up; calls go on, publishing waits for it: %s", refusal)
            stopping.wait(SETTLE_AGAIN_S)
            continue
        if any(settled.values()):
            _log.warning("publications settled after a crash: %s", settled)
            market.catalogue_changed()
        market.registry_settled.set()
        return


def prepare_data(market: Market) -> None:
    """Shipped programmes; and the demonstration market, or the first operator's invitation."""
    settings = market.settings
    with transaction(market.engine) as session:
        load_shipped(session, demo=settings.demo)
    if not settings.demo:
        invite_first_operator(market.engine, settings.home)
        return
    seed_organisations(market.engine, settings.home)
    added = seed_shelf(market)
    if added:
        _log.info("%d starter models are on the shelf", added)
    seed_voucher(market.engine)


def prepare_home(home: Path) -> Path:
    """The absolute data folder, made with its sub-folders; nobody else may read it."""
    home = home.expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.chmod(0o700)
    os.umask(0o077)
    for name in FOLDERS:
        (home / name).mkdir(exist_ok=True)
    return home


def banner(settings: Settings) -> str:
    """What a person at the terminal wants to know, in both languages."""
    lines = [f"AlgoMart 算法超市已开张 · the market is open: {settings.url}"]
    if settings.grpc_port:
        lines.append(f"  gRPC: {settings.host}:{settings.grpc_port}")
    if settings.demo:
        lines += [
            f"  演示密钥 demonstration keys:   {settings.home / KEYS_FILE}",
            f"  演示登录 demonstration logins: {settings.home / LOGINS_FILE}",
        ]
    elif (settings.home / INVITATION_FILE).exists():
        lines.append(f"  首位运营人员的邀请 the first operator's invitation: {settings.home / INVITATION_FILE}")
    lines.append("  停止: Ctrl-C · Ctrl-C stops it")
    return "\n".join(lines)


def _leave(number: int, _frame: FrameType | None) -> None:
    """Before uvicorn takes the signals over, and after it gives them back: unwind, so that every part is stopped."""
    raise SystemExit(0)
