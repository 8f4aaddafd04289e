"""The child of `jobs.SubprocessRunner`: `python -m adapters.run_job <spec.json>`. One JSON object a line on stdout."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from adapters.jobs import BASE_MEMORY_BYTES, JobLimits, JobSpec, error_from
from adapters.recipe import Context, Outcome, recipe_named

NICENESS = 10


def perform(spec: JobSpec, report: Callable[..., None]) -> Outcome:
    """Build the context of `spec` and run its recipe. Raises what the recipe raises."""
    from model_store.bundle import open_bundle

    recipe = recipe_named(spec.recipe)
    parent = open_bundle(Path(spec.parent)) if spec.parent else None
    recipe.check_parent(parent.manifest if parent else None)
    out = Path(spec.out)
    shutil.rmtree(out, ignore_errors=True)  # what an earlier attempt left half-written
    out.mkdir(parents=True)
    context = Context(
        data=Path(spec.data),
        parent=parent,
        params=recipe.check(spec.params),
        out=out,
        name=spec.name,
        seed=spec.seed,
        columns=dict(spec.columns),
        label_column=spec.label_column,
        parent_version=spec.parent_version,
        report=report,
    )
    return recipe.run(context)


def limit_self(limits: JobLimits) -> None:
    """Bind this process and its children: memory, CPU, file size, no core dumps, low priority."""
    memory = limits.memory_bytes + BASE_MEMORY_BYTES
    for what, bound in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        lowered = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (lowered, lowered))
    os.nice(NICENESS)


def end_with_the_market() -> None:
    """Wait on stdin, which the market holds open; when it closes, nobody wants the result any more."""
    while os.read(0, 1):
        pass
    os._exit(3)


def _say(stdout: TextIO, message: dict[str, Any]) -> None:
    stdout.write(json.dumps(message, ensure_ascii=False) + "\n")
    stdout.flush()


def main(spec_path: str) -> int:
    stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be taken for a report
    threading.Thread(target=end_with_the_market, daemon=True).start()
    spec = JobSpec.from_dict(json.loads(Path(spec_path).read_text()))
    limit_self(spec.limits)

    def report(progress: float, stage: str, **metrics: float) -> None:
        numbers = {name: float(value) for name, value in metrics.items()}
        _say(stdout, {"progress": progress, "stage": stage, "metrics": numbers})

    try:
        outcome = perform(spec, report)
    except Exception as exception:
        traceback.print_exc()
        _say(stdout, {"error": error_from(exception)})
        return 1
    _say(stdout, {"result": outcome.as_dict()})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
