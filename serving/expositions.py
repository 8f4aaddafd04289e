"""Several processes' metrics as one Prometheus exposition: each sample says which node it is of."""

from __future__ import annotations

from collections.abc import Mapping


def join_expositions(texts: Mapping[str, str]) -> str:
    """`texts` node → its exposition (text format 0.0.4); every family once, its samples with a label `node`."""
    comments: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for node, text in texts.items():
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                known = comments.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif line:
                name, brace, rest = line.partition("{")
                if not brace:
                    name, _, value = line.partition(" ")
                    rest = "} " + value
                comma = "" if rest.startswith("}") else ","
                samples.setdefault(_family(name, comments), []).append(f'{name}{{node="{node}"{comma}{rest}')
    lines = [line for family, found in samples.items() for line in (*comments.get(family, ()), *found)]
    return "\n".join(lines) + "\n"


def _family(name: str, comments: Mapping[str, list[str]]) -> str:
    """A histogram's buckets, sum and count are of one family."""
    for suffix in ("_bucket", "_sum", "_count"):
        if name.endswith(suffix) and name.removesuffix(suffix) in comments:
            return name.removesuffix(suffix)
    return name
