"""Settings: environment variables with the prefix ALGOMART_, each documented in docs/configuration.md."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Everything that can be set. Sizes in bytes, times in seconds or milliseconds as the name says."""

    model_config = SettingsConfigDict(env_prefix="ALGOMART_", extra="ignore")

    home: Path = Field(default=Path(".algomart"), description="Folder of all data: database, registry, blobs, journal")
    host: str = Field(default="127.0.0.1", description="Address the market listens on")
    port: int = Field(default=8000, description="Port the market listens on")
    workers: int = Field(default=1, ge=1, le=64, description="Processes that answer calls on the port")
    grpc_port: int = Field(default=0, description="Port of gRPC; 0: off (Triton's own is 8001)")
    demo: bool = Field(default=True, description="Demonstration organisations, keys, programme and starter catalogue")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite at $ALGOMART_HOME/market.db")
    mlflow_uri: str = Field(default="", description="URL of an MLflow server; empty: one is run as a child process")
    mlflow_backend_uri: str = Field(default="", description="Backend store of the child MLflow; empty: SQLite in home")
    public_url: str = Field(default="", description="How clients reach the market; empty: http://host:port")
    trusted_proxies: str = Field(
        default="", description="Proxies whose X-Forwarded-For counts, as CIDRs separated by commas; empty: none"
    )
    memory_budget_bytes: int = Field(default=2 << 30, description="Memory that loaded models may hold")
    max_body_bytes: int = Field(default=64 << 20, description="Largest request body of a call")
    max_upload_bytes: int = Field(default=1 << 30, description="Largest published bundle")
    run_deadline_ms: int = Field(default=10_000, description="Longest run of one call")
    max_output_bytes: int = Field(default=64 << 20, description="Largest answer of one call")
    run_niceness: int = Field(
        default=5, ge=0, le=19, description="By how much runs in threads give way to the event loop and other programs"
    )
    worker_memory_bytes: int = Field(default=1 << 30, description="Memory limit of the worker for unlisted graphs")
    lease_seconds: int = Field(default=600, description="Life of a lease before it must be renewed")
    max_clock_skew_seconds: int = Field(
        default=300, ge=1, le=3600, description="How far the clock of a node elsewhere may be off this machine's"
    )
    trial_runs_per_day: int = Field(default=20_000, description="Free trial rows per organisation and day")
    sample_ttl_hours: int = Field(default=24, description="Hours a sample set is kept")
    evidence_file_bytes: int = Field(default=20 << 20, description="Largest file of evidence")
    evidence_quota_bytes: int = Field(default=1 << 30, description="Evidence that one organisation may keep")
    key_cache_entries: int = Field(default=10_000, description="Bound of the key cache")
    build_minilm: bool = Field(
        default=True,
        description="Build the MiniLM text base in the background once the workshop is installed (demo only)",
    )
    ingest: Literal["process", "thread"] = Field(
        default="process",
        description="Where usage is brought into the ledger: a process of its own, or a thread of the market's",
    )
    triton_compat: bool = Field(
        default=False,
        description="On /v2 and gRPC, Triton's own name and words, and models without their vendor's name",
    )
    access_log: str = Field(default="", description="File of the access log, - for standard output; empty: none")
    log_level: str = Field(default="info", description="debug, info, warning or error")

    @property
    def sql_url(self) -> str:
        return self.database_url or f"sqlite:///{(self.home / 'market.db').resolve()}"

    @property
    def mapped_folder(self) -> Path:
        """Weights moved out of models that are served, to be mapped; derived, and made again where it is missing."""
        return self.home / "mapped"

    @property
    def url(self) -> str:
        return self.public_url or f"http://{self.host}:{self.port}"
