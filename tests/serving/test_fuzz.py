"""Nonsense at the decoders and at the socket: a refusal each time, never another exception, never a 500."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_store.adapter_file import write_adapter
from model_store.errors import Refusal
from model_store.manifest import Manifest
from serving.heads import given_request_id, head_of, known_head
from serving.journal_format import (
    MAGIC,
    VERSION,
    JournalHeader,
    JournalUnreadable,
    frame,
    frame_of,
    read_segment,
    verify,
)
from serving.journal_summary import summarise
from serving.multipart import parse_form
from serving.protocols.oip import Target, parse_model_path
from serving.protocols.oip_generate import decode_generate
from serving.protocols.oip_request import decode_request
from serving.protocols.use_rows import read_rows
from tests.serving.parts import rows
from tests.serving.test_http import PATH, Served, numbers, raw, read_answers, request_of, serve

MANIFEST = Manifest.model_validate(
    {
        "name": "acme/m",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "dtype": "FP32", "shape": [-1, 1]}],
        "features": [
            {"name": "speed", "kind": "number", "unit": "rpm"},
            {"name": "colour", "kind": "category", "categories": ["red", "blue"]},
        ],
    }
)
names = st.sampled_from(
    ["inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "id", "x", "speed", "colour",
     "binary_data_size", "binary_data", "classification", "priority", "timeout"]
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), names,
    st.sampled_from(["FP32", "INT8", "BYTES", "BF16", "BOOL"]),
)  # fmt: skip
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)
tensors = st.fixed_dictionaries(
    {"name": st.just("x") | scalars, "datatype": st.sampled_from(["FP32", "INT64", "BYTES", "FP16"]) | scalars,
     "shape": st.lists(st.integers(-2, 5) | st.sampled_from([0, 2**31, 2**62]) | scalars, max_size=4) | scalars},
    optional={"data": st.lists(documents, max_size=6) | documents,
              "parameters": st.dictionaries(names, scalars, max_size=3) | scalars},
)  # fmt: skip
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3) | documents},
    optional={"outputs": documents, "parameters": documents, "id": scalars},
)
bodies = st.one_of(
    st.binary(max_size=200),
    (requests | documents).map(lambda value: json.dumps(value).encode()),
    st.tuples(requests.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60)).map(b"".join),
)
lengths = st.none() | st.integers(0, 400)


@settings(max_examples=400, deadline=None)
@given(bodies, lengths)
def test_a_request_is_decoded_or_refused(body: bytes, header_length: int | None) -> None:
    with contextlib.suppress(Refusal):
        decode_request(body, header_length)


tables = st.lists(
    st.lists(
        st.sampled_from(["speed", "colour", "red", "1", "-1e400", "", '"', "转速", "\x00", "=1+1"]), max_size=4
    ).map(",".join),
    max_size=6,
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
kinds = st.sampled_from(
    ["application/json", "text/csv", "image/png", "text/plain", "application/octet-stream", "", "multipart/form-data",
     "application/vnd.apache.parquet", "multipart/form-data; boundary=b", "multipart/form-data; boundary=", "\x00"]
)  # fmt: skip
parts = st.lists(
    st.tuples(
        st.sampled_from([
            b'Content-Disposition: form-data; name="file"; filename="a.csv"',
            b'content-disposition: form-data; name="x"',
            b"Content-Type: text/csv", b"nonsense", b"",
        ]),
        st.binary(max_size=40) | tables,
    ).map(lambda part: b"--b\r\n" + part[0] + b"\r\n\r\n" + part[1] + b"\r\n"),
    max_size=3,
).map(lambda found: b"".join(found) + b"--b--\r\n")  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(kinds, st.one_of(bodies, tables, parts, st.binary(max_size=80).map(lambda tail: b"PAR1" + tail)))
def test_rows_of_any_kind_are_read_or_refused(kind: str, body: bytes) -> None:
    with contextlib.suppress(Refusal):
        read_rows(kind, body, MANIFEST)


@settings(max_examples=200, deadline=None)
@given(kinds, st.binary(max_size=120) | parts)
def test_a_form_is_read_or_refused(kind: str, body: bytes) -> None:
    with contextlib.suppress(Refusal):
        parse_form(kind, body)


fields = st.dictionaries(
    st.sampled_from(
        [b"authorization", b"x-api-key", b"x-request-id", b"x-priority", b"inference-header-content-length"]
    ),
    st.binary(max_size=30) | st.sampled_from([b"Bearer key-factory", b"bearer ", b"12", b"high"]),
)


@settings(max_examples=300, deadline=None)
@given(fields, st.text(max_size=40), st.binary(max_size=120))
def test_heads_and_paths_are_understood_or_refused(given_: dict[bytes, bytes], path: str, whole: bytes) -> None:
    parse_model_path("/v2/models/" + path)
    given_request_id(given_)
    with contextlib.suppress(Refusal):
        head = head_of(Target("acme--double", None, "infer"), given_)
        if head is not None:
            known = known_head(whole + b"{}", b"{}", head)
            if known is not None:
                known.span_of(whole)


@settings(max_examples=200, deadline=None)
@given(bodies)
def test_a_generate_request_is_decoded_or_refused(body: bytes) -> None:
    with contextlib.suppress(Refusal):
        decode_generate(body, MANIFEST)


packed = st.one_of(
    st.binary(max_size=80),
    documents.map(lambda value: msgspec.msgpack.encode(_small(value))),
    st.sampled_from(["usage", "start", "progress", "end", "seal", "header"]).flatmap(
        lambda kind: documents.map(
            lambda value: msgspec.msgpack.encode({"kind": kind, "seq": 1, "usage": _small(value)})
        )
    ),
    st.sampled_from([b"\xa1\xff", b"\x81\xa4kind\xa1\xff", b"\x91" * 5000, b"\xdf\xff\xff\xff\xff"]),
)


def _small(value: Any) -> Any:
    """As the format can say it: integers of 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, dict):
        return {key: _small(inner) for key, inner in value.items()}
    return [_small(inner) for inner in value] if isinstance(value, list) else value


@settings(max_examples=300, deadline=None)
@given(st.lists(packed, max_size=4), st.booleans(), st.binary(max_size=20))
def test_a_journal_of_lawful_frames_with_any_contents_is_read_up_to_them(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], whole_header: bool, tail: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.alj"
    header = frame_of(JournalHeader(MAGIC, VERSION, "node", 1, 1)) if whole_header else b""
    path.write_bytes(header + b"".join(map(frame, contents)) + tail)
    with contextlib.suppress(JournalUnreadable):
        segment = read_segment(path)
        assert not segment.entries or contents
        verify(path)
        summarise(path)


# Read in a process of its own: what reads them is C++, and it would end with this one.
READ_ADAPTERS = """
import random, sys
from pathlib import Path
from model_store.adapter_file import read_adapter
from model_store.adapter_file import write_adapter
from model_store.errors import Refusal
good, path, chance = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(20261130)
read = 0
for turn in range(600):
    content = bytearray(good)
    for _ in range(chance.randint(1, 6)):
        content[chance.randrange(len(content))] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
    if turn % 4 == 0:
        del content[chance.randrange(len(content)):]
    if turn % 10 == 0:
        content = bytearray(chance.randbytes(chance.randrange(400)))
    path.write_bytes(content)
    try:
        read_adapter(path)
        read += 1
    except Refusal:
        pass
print("read", read)
"""


def test_adapter_files_are_read_or_refused_whatever_stands_in_them(tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good", {"site.A": rows(3, 2), "site.B": rows(2, 4)})
    command = [sys.executable, "-c", READ_ADAPTERS, str(good), str(tmp_path / "made")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("read ")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("node"), receive_timeout_s=2.0)


lines = st.lists(
    st.one_of(
        st.sampled_from([
            b"Inference-Header-Content-Length: 5", b"Inference-Header-Content-Length: -1", b"X-Deadline-Ms: nan",
            b"Content-Encoding: gzip", b"Content-Encoding: br", b"X-Priority: \xff", b"Idempotency-Key: a",
            b"Idempotency-Key: \xe4", b"X-Request-Id: \x7f", b"Expect: 100-continue", b"Accept: */*",
        ]),
        st.binary(min_size=1, max_size=20).map(lambda value: b"X-A: " + bytes(c for c in value if c not in b"\r\n\0")),
    ),
    max_size=4,
)  # fmt: skip


paths = st.sampled_from(
    [PATH, "/v2/models/acme--types/infer", "/v1/use/acme/double", "/v2/models/%00/infer", "/v2/repository/index",
     "/v2/models/acme--double/generate", "/v1/embeddings"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies, lines, paths)
def test_no_request_makes_a_500(served: Served, body: bytes, more: list[bytes], path: str) -> None:
    content = raw(body, path, extra=b"".join(line + b"\r\n" for line in more))
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(content)
        answers: Any = read_answers(connection, 1)
    assert answers[0][0] < 500 or answers[0][0] in (501, 504), answers


KINDS = ("call", "call", "call", "empty line", "other length", "broken", "no key", "ordinary", "binary")


def asked(kind: str, value: int) -> bytes:
    """One request of a kind; the answer to it is known (`answered`)."""
    x = np.full((1, 3), value, np.float32)
    extra = b"X-Request-Id: r-%d\r\n" % value
    if kind == "empty line":
        return b"\r\n"
    if kind == "broken":
        return raw(b"{" * (1 + value), extra=extra)
    if kind == "no key":
        return raw(orjson.dumps(request_of(x)), key="unknown-key-0123456789abcdef0123456789abcdef", extra=extra)
    if kind == "ordinary":
        return raw(orjson.dumps(request_of(x)), extra=b"Expect-Nothing: 1\r\nX-Deadline-Ms: 60000\r\n")
    if kind == "binary":
        tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
        head = orjson.dumps({"inputs": [tensor]})
        return raw(head + x.tobytes(), extra=b"Inference-Header-Content-Length: %d\r\n" % len(head))
    content = orjson.dumps(request_of(x))
    return raw(content + b" " * (value if kind == "other length" else 0))


def check_answer(kind: str, value: int, status: int, body: bytes) -> None:
    if kind == "broken":
        assert (status, orjson.loads(body)["request_id"]) == (400, f"r-{value}")
    elif kind == "no key":
        assert (status, orjson.loads(body)["request_id"]) == (401, f"r-{value}")
    else:
        assert (status, numbers(body)) == (200, [2.0 * value] * 3)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 99)), min_size=1, max_size=12),
    st.lists(st.integers(1, 3_000), max_size=8),
    st.booleans(),
)
def test_requests_on_one_connection_are_answered_in_order_however_they_are_cut(
    served: Served, requests: list[tuple[str, int]], cuts: list[int], slowly: bool
) -> None:
    """Heads known and new, whole and in pieces, small and pipelined: each answer is that of its own request."""
    content = b"".join(asked(kind, value) for kind, value in requests)
    edges = sorted({0, *(cut for cut in cuts if cut < len(content)), len(content)})
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in pairwise(edges):
            connection.sendall(content[start:end])
            if slowly:
                time.sleep(0.003)
        due = [(kind, value) for kind, value in requests if kind != "empty line"]
        answers: Any = read_answers(connection, len(due))
    for (kind, value), (status, body) in zip(due, answers, strict=True):
        check_answer(kind, value, status, body)


def test_the_node_is_well_after_all_that(served: Served) -> None:
    with served.client() as client:
        assert client.post(PATH, json=request_of(rows(1))).status_code == 200
