"""Pool and cap counters by the programme's code: what several versions hold and have used counts together."""

from collections import defaultdict

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_COUNTER = sa.table(
    "cap_counter", *(sa.column(name) for name in ("code", "limit_fen", "used_fen", "held_fen"))
)  # fmt: skip
_VOUCHER = sa.table(
    "voucher", *(sa.column(name) for name in ("id", "programme_id", "tranche", "cap_code", "pool_code"))
)  # fmt: skip
_PROGRAMME = sa.table("programme", sa.column("id"), sa.column("code"))


def upgrade() -> None:
    op.add_column("voucher", sa.Column("pool_code", sa.String(), nullable=False, server_default=""))
    codes = {row.id: row.code for row in op.get_bind().execute(sa.select(_PROGRAMME))}
    _rename_counters(codes)
    _rename_on_vouchers(codes)


def renamed(code: str, names: dict[str, str]) -> str:
    """C.ent[p,…] and C.pool[p,…] with p as `names` has it; any other code as it is."""
    head, _, rest = code.partition("[")
    programme, comma, tail = rest.partition(",")
    return f"{head}[{names[programme]}{comma}{tail}" if head in ("C.ent", "C.pool") and programme in names else code


def _rename_counters(names: dict[str, str]) -> None:
    """Figures are kept: those of several versions are added, under the larger limit, or what is taken already."""
    bind = op.get_bind()
    merged: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in bind.execute(sa.select(_COUNTER)).all():
        code = renamed(row.code, names)
        if code != row.code:
            limit, used, held = merged[code]
            merged[code] = [max(limit, row.limit_fen), used + row.used_fen, held + row.held_fen]
            bind.execute(sa.delete(_COUNTER).where(_COUNTER.c.code == row.code))
    for code, (limit, used, held) in sorted(merged.items()):
        values = {"code": code, "limit_fen": max(limit, used + held), "used_fen": used, "held_fen": held}
        bind.execute(sa.insert(_COUNTER).values(**values))


def _rename_on_vouchers(names: dict[str, str]) -> None:
    bind = op.get_bind()
    for row in bind.execute(sa.select(_VOUCHER).where(_VOUCHER.c.cap_code != "")).all():
        pool = renamed(f"C.pool[{row.programme_id},{row.tranche}]", names)
        change = sa.update(_VOUCHER).where(_VOUCHER.c.id == row.id)
        bind.execute(change.values(cap_code=renamed(row.cap_code, names), pool_code=pool))


def downgrade() -> None:
    """`RuntimeError` where a code has several versions: their figures are one, and do not come apart again."""
    rows = op.get_bind().execute(sa.select(_PROGRAMME)).all()
    names = {row.code: row.id for row in rows}
    if len(names) < len(rows):
        raise RuntimeError("programmes with several versions share their counters since 0015")
    _rename_counters(names)
    bind = op.get_bind()
    for row in bind.execute(sa.select(_VOUCHER).where(_VOUCHER.c.cap_code != "")).all():
        change = sa.update(_VOUCHER).where(_VOUCHER.c.id == row.id)
        bind.execute(change.values(cap_code=renamed(row.cap_code, names)))
    op.drop_column("voucher", "pool_code")
