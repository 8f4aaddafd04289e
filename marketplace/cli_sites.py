"""What `algomart sites` does: a vendor's bundle becomes a base on which factories keep adapters of their own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import typer

from model_store.adapter_base import with_sites
from model_store.bundle import open_bundle, unpack


def make(bundle: Path, out: Path, targets: list[str], max_rank: int, classes: int | None, as_json: bool) -> None:
    """`bundle`: a folder or a zip. Prints what was made; raises what `unpack`, `open_bundle` and `with_sites` raise."""
    with tempfile.TemporaryDirectory(prefix="algomart-sites-") as work:
        if bundle.is_file():
            opened = unpack(bundle, Path(work) / "bundle", seal_if_unsealed=True)
        else:
            opened = open_bundle(bundle, verify=True)
        made = with_sites(opened, out, targets, max_rank, classes)
    names = [name for name in made.sites.low_rank if name != made.sites.head]
    room = made.sites.low_rank[made.sites.head].features_out if made.sites.head else 0
    if as_json:
        facts = {
            "bundle": str(out), "digest": made.bundle.digest, "sites": names, "max_rank": max_rank, "classes": room,
            "difference": made.difference, "adapter_bytes_per_rank": made.bytes_per_rank,
        }  # fmt: skip
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    typer.echo(f"✓ {out} · {len(names)} 个适配点 sites · 秩至多 rank at most {max_rank} · 类别 classes {room}")
    typer.echo(f"  样例输出最大差异 golden samples differ by at most {made.difference:.2g}")
    typer.echo(f"  秩 8 的适配器 an adapter of rank 8: {8 * made.bytes_per_rank / 1024:.1f} KiB")
    typer.echo(f"  下一步 next: algomart publish {out} --name {made.bundle.manifest.name}")
