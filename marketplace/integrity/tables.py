"""The root of each day's postings, chained to the day before."""

from sqlalchemy import BigInteger, Column
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


class DayRoot(SQLModel, table=True):
    """`root` over the transfers posted on that day (Asia/Shanghai), by id; `chain` binds it to all days before."""

    __tablename__ = "day_root"
    day: str = Field(primary_key=True)  # ISO
    transfers: int
    root: str
    chain: str
    closed_at_ms: int = Field(default_factory=now_ms, sa_column=Column(BigInteger, nullable=False))
