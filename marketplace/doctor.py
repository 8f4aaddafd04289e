"""Doctor: is everything that a market's folder holds sound? Each finding says what it looked at and what to do."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text
from sqlmodel import select

from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.clock import instant, now_ms
from marketplace.db import open_database, reading, snapshot
from marketplace.integrity.books import compare_all, list_checks
from marketplace.kept_blobs import kept_blobs
from marketplace.ledger.tables import LedgerTransfer
from marketplace.migrations.upgrade import current_revision, differences, newest_revision
from marketplace.settings import Settings
from model_store.names import path_name

MIN_FREE_BYTES = 1 << 30
NIGHTLY_LATE_MS = 2 * 86_400_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `severity` ok | warning | error."""

    check: str
    severity: str
    zh: str
    en: str
    remedy_zh: str = ""
    remedy_en: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Run every check on a stopped or running market; changes nothing."""
    home = settings.home.resolve()
    findings = [_home(home), _disk(home)]
    if not home.exists() or (not settings.database_url and not (home / "market.db").exists()):
        return findings
    engine = open_database(settings.sql_url)
    checks: list[Callable[[Engine, Path], Finding]] = [_schema, _integrity, _ledger, _nightly, _blobs, _registry]
    try:
        for check in checks:
            findings.append(_guarded(check, engine, home))
    finally:
        engine.dispose()
    return findings


def is_sound(findings: list[Finding]) -> bool:
    return all(finding.severity != "error" for finding in findings)


def _guarded(check: Callable[[Engine, Path], Finding], engine: Engine, home: Path) -> Finding:
    try:
        return check(engine, home)
    except Exception as error:  # a doctor reports what it cannot examine and goes on
        return Finding(
            check.__name__.strip("_"),
            "error",
            f"检查无法完成: {error}",
            f"could not be examined: {error}",
            "请从备份恢复, 或联系支持",
            "restore from a backup",
        )


def _home(home: Path) -> Finding:
    if not home.exists():
        return Finding(
            "home",
            "error",
            f"数据目录 {home} 不存在",
            f"the folder {home} is not there",
            "请检查 ALGOMART_HOME",
            "check ALGOMART_HOME",
        )
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        return Finding(
            "home",
            "warning",
            f"数据目录 {home} 对其他用户可读({mode:o})",
            f"other users can read {home} ({mode:o})",
            f"chmod 700 {home}",
            f"chmod 700 {home}",
        )
    return Finding("home", "ok", f"数据目录 {home}", f"folder {home}")


def _disk(home: Path) -> Finding:
    free = shutil.disk_usage(home if home.exists() else home.parent if home.parent.exists() else Path("/")).free
    gigabytes = f"{free / (1 << 30):.1f} GiB"
    if free < MIN_FREE_BYTES:
        return Finding(
            "disk",
            "error",
            f"磁盘仅余 {gigabytes}",
            f"only {gigabytes} of disk are free",
            "请清理磁盘",
            "make room on the disk",
        )
    return Finding("disk", "ok", f"磁盘可用 {gigabytes}", f"{gigabytes} of disk are free")


def _schema(engine: Engine, _home: Path) -> Finding:
    with engine.connect() as connection:
        revision = current_revision(connection)
    if revision != newest_revision() or differences(engine):
        return Finding(
            "schema",
            "error",
            f"数据库结构版本 {revision} 与程序({newest_revision()})不一致",
            f"the database is at schema {revision}, the program at {newest_revision()}",
            "启动市场会自动升级数据库",
            "starting the market upgrades the database",
        )
    return Finding("schema", "ok", f"数据库结构版本 {revision}", f"database schema {revision}")


def _integrity(engine: Engine, _home: Path) -> Finding:
    if engine.dialect.name != "sqlite":
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        return Finding("integrity", "ok", "数据库可连接", "the database answers")
    with engine.connect() as connection:
        answers = [row[0] for row in connection.execute(text("PRAGMA integrity_check"))]
        orphans = len(list(connection.execute(text("PRAGMA foreign_key_check"))))
    if answers != ["ok"] or orphans:
        return Finding(
            "integrity",
            "error",
            f"数据库损坏: {answers[0]}, 孤立引用 {orphans} 处",
            f"the database is damaged: {answers[0]}, {orphans} dangling references",
            "请从备份恢复",
            "restore from a backup",
        )
    return Finding("integrity", "ok", "数据库完整", "the database is whole")


def _ledger(engine: Engine, _home: Path) -> Finding:
    """Every balance and cap counter rebuilt from the entries; every transfer must sum to zero in each ledger."""
    with snapshot(engine) as session:
        found = compare_all(session)
    if not found.sound:
        first = [str(each["of"]) for each in found.wrong[:5]]
        return Finding(
            "ledger",
            "error",
            f"账本不平, {found.wrong_count} 处不符: {first}",
            f"the ledger does not balance: {found.wrong_count} accounts, caps, transfers or meters differ: {first}",
            "请停止市场并从备份恢复",
            "stop the market and restore from a backup",
        )
    entries, caps = found.replayed.entries, found.caps
    return Finding(
        "ledger",
        "ok",
        f"账本平衡, {entries} 条分录, {caps} 个上限计数",
        f"the ledger balances over {entries} entries and {caps} cap counters",
    )


def _nightly(engine: Engine, _home: Path) -> Finding:
    """What the market's own last nightly check of the ledger said, and whether there was one lately."""
    with reading(engine) as session:
        last = next(iter(list_checks(session, 1)), None)
        posted = session.exec(select(LedgerTransfer.id).limit(1)).first() is not None
    if last is None and not posted:
        return Finding("nightly", "ok", "尚无入账, 无需夜间核对", "nothing is posted yet that a night could check")
    if last is None or now_ms() - last.at_ms > NIGHTLY_LATE_MS:
        return Finding(
            "nightly",
            "warning",
            "账本近两日没有夜间核对",
            "the ledger had no nightly check for two days",
            "市场运行时每日自动核对; 也可在 /city/ledger 立即核对",
            "a running market checks it every day; /city/ledger does so at once",
        )
    when = f"{instant(last.at_ms):%Y-%m-%d %H:%M}"
    if not last.sound:
        return Finding(
            "nightly",
            "error",
            f"{when} 的夜间核对有 {last.wrong_count} 处不符",
            f"the nightly check of {when} found {last.wrong_count} differences",
            "详见 /city/ledger",
            "see /city/ledger",
        )
    return Finding("nightly", "ok", f"{when} 夜间核对相符", f"the nightly check of {when} agreed")


def _blobs(engine: Engine, home: Path) -> Finding:
    """Every blob still has the SHA-256 that it is named by, and every one that something rests on is there."""
    folder = home / "blobs" / "sha256"
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []
    damaged = []
    for path in files:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != path.stem:
                damaged.append(path.name)
    if damaged:
        return Finding(
            "blobs",
            "error",
            f"{len(damaged)} 个文件已损坏: {damaged[:3]}",
            f"{len(damaged)} stored files are damaged: {damaged[:3]}",
            "请从备份恢复这些文件, 或由供应商重新发布",
            "restore these files from a backup, or have their vendors publish again",
        )
    with reading(engine) as session:
        missing = sorted(kept_blobs(session) - {path.name for path in files})
    if missing:
        return Finding(
            "blobs",
            "error",
            f"{len(missing)} 个文件缺失 (模型、申报文件或材料): {missing[:3]}",
            f"{len(missing)} files of bundles, claims or evidence are missing: {missing[:3]}",
            "请从备份恢复这些文件",
            "restore these files from a backup",
        )
    return Finding("blobs", "ok", f"{len(files)} 个文件完好", f"{len(files)} stored files are sound")


def _registry(engine: Engine, home: Path) -> Finding:
    """Every version that the catalogue shows is in the embedded MLflow registry; a foreign one is not asked."""
    database = home / "mlflow.db"
    if not database.exists():
        return Finding("registry", "ok", "未使用内嵌 MLflow", "there is no embedded MLflow registry")
    reader = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        live = "SELECT name, version FROM model_versions WHERE current_stage <> 'Deleted_Internal'"  # rows are kept
        known = {(name, int(version)) for name, version in reader.execute(live)}
    finally:
        reader.close()
    with reading(engine) as session:
        rows = session.exec(
            select(Listing.name, ModelVersion.number).join(ModelVersion, ModelVersion.listing_id == Listing.id)  # type: ignore[arg-type]
        )
        missing = [f"{name}@{number}" for name, number in rows if (path_name(name), number) not in known]
    if missing:
        return Finding(
            "registry",
            "error",
            f"{len(missing)} 个版本不在 MLflow 中: {missing[:3]}",
            f"{len(missing)} versions are not in MLflow: {missing[:3]}",
            "请从备份恢复 mlflow.db, 调用不受影响",
            "restore mlflow.db from a backup; calls go on meanwhile",
        )
    return Finding("registry", "ok", f"MLflow 登记 {len(known)} 个版本", f"MLflow holds {len(known)} versions")
