"""Settings: environment variables with the prefix ALGOMART_, each documented in docs/configuration.md."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class NodeSettings(BaseSettings):
    """What a node serves with, in a market or by itself: `serving.settings.ServingSettings` has fields of these names,
    with these defaults. Sizes in bytes, times in seconds or milliseconds as the name says."""

    max_samples_bytes: int = Field(default=264 << 20, ge=1, description="Body of a sample set")
    max_samples_in_all_bytes: int = Field(default=528 << 20, ge=1, description="What such bodies may hold together")
    max_bodies_in_all_bytes: int = Field(default=512 << 20, ge=1, description="What all bodies in hand may hold")
    max_connections: int = Field(default=4096, ge=1, description="HTTP connections")
    receive_timeout_s: float = Field(default=30.0, gt=0, description="For a head to come, or a body to move on")
    send_timeout_s: float = Field(default=30.0, gt=0, description="For a client to read on")
    drain_s: float = Field(
        default=0.0, ge=0, description="At the end, how long readiness says no before the port closes"
    )
    threads: int = Field(default=0, ge=0, description="Threads that run graphs; 0: one a core")
    run_niceness: int = Field(
        default=-1,
        ge=-1,
        le=19,
        description="How far runs in threads give way to the event loop and other programs; -1: on one core 5, else 0",
    )
    worker_slots: int = Field(default=8, ge=1, description="Unlisted graphs that may run at once")
    worker_slots_per_owner: int = Field(default=2, ge=1, description="Of those, how many of one organisation")
    pinned_models: str = Field(
        default="", description="Models that are never unloaded to make room: vendor/name, separated by commas"
    )
    queue_requests: int = Field(default=256, ge=1, description="Waiting calls of one organisation for one model")
    queue_requests_in_all: int = Field(default=2048, ge=1, description="All waiting calls")
    key_rate_per_s: int = Field(default=0, ge=0, description="Calls a second of any one key; 0: the key's own limit")
    key_burst: int = Field(default=0, ge=0, description="Of those, how many at once; 0: what a second allows")
    key_concurrency: int = Field(default=1024, ge=0, description="Calls of any one key in hand; 0: the key's own limit")
    inline_ms: float = Field(
        default=0.0, ge=0, le=5, description="Runs shorter than this stay on the event loop; 0: 1 ms"
    )
    idempotency_entries: int = Field(default=100_000, ge=1, description="Idempotency keys remembered")
    grpc_calls: int = Field(default=256, ge=1, description="gRPC calls in hand")
    grpc_streams: int = Field(default=64, ge=1, description="gRPC streams")
    journal_sync: Literal["grouped", "before_answer"] = Field(
        default="grouped", description="When the journal is synced: for a group of calls, or before each answer"
    )
    metrics_token: str = Field(default="", description="Who may read /metrics from another machine; empty: nobody")


class Settings(NodeSettings):
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
