"""Files that a decision about public money rests on."""

from sqlalchemy import BigInteger, Column
from sqlmodel import Field, SQLModel

from marketplace.clock import now_ms


def _big() -> Column:  # type: ignore[type-arg]
    return Column(BigInteger, nullable=False)


class EvidenceFile(SQLModel, table=True):
    """One file, kept as a blob under its SHA-256. The row outlives the file: what was handed in stays told.

    `of` and `subject_id`: what it was handed in for (application | subsidy | invoice). `withdrawn_at_ms`: it counts no
    longer, and is kept all the same. `deleted_at_ms`: the file itself went after its years of keeping.
    """

    __tablename__ = "evidence_file"
    id: str = Field(primary_key=True)
    of: str
    subject_id: str = Field(index=True)
    organisation_id: str = Field(index=True)  # who handed it in and may read it
    code: str
    name: str  # as it was called; shown, never trusted
    kind: str  # by its content: pdf | png | jpeg | xlsx | ofd
    size_bytes: int = Field(sa_column=_big())
    sha256: str = Field(index=True)
    uploaded_by: str
    created_at_ms: int = Field(default_factory=now_ms, sa_column=_big())
    keep_until: str  # ISO day in Asia/Shanghai, counted in
    withdrawn_by: str = ""
    withdrawn_at_ms: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    deleted_by: str = ""
    deleted_at_ms: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
