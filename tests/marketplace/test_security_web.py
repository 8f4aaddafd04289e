"""What a stranger, or one member of one organisation, can make everybody else wait for: nothing."""

from __future__ import annotations

import io
import sqlite3
import threading
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from starlette.datastructures import FormData, UploadFile

from marketplace.body_limit import FORM_BYTES, SMALL_BYTES, limit_of
from marketplace.organisations import members, registration
from marketplace.web import trying
from model_store.processing.tables import read_table

REGISTRATION = {
    "kind": "enterprise",
    "name_zh": "东莞某厂",
    "slug": "some-works",
    "uscc": "914403001922038216",
    "email": "boss@example.com",
    "member_name": "王",
    "password": "a long sentence",
}
LOGIN = {"email": "nobody@example.com", "password": "not the password"}


@pytest.mark.parametrize(
    ("place", "name", "path", "sent", "status"),
    [
        (members, "password_fits", "/api/v1/login", {"json": LOGIN}, 401),
        (members, "password_fits", "/login", {"data": LOGIN}, 401),
        (registration, "hash_password", "/api/v1/organisations", {"json": REGISTRATION}, 201),
    ],
)
def test_nobody_waits_to_write_while_a_strangers_password_is_hashed(
    engine: Engine, client: TestClient, monkeypatch: pytest.MonkeyPatch,
    place: Any, name: str, path: str, sent: dict[str, Any], status: int,
) -> None:  # fmt: skip
    """24 clients with wrong passwords held up every write of the market for 3.5 seconds."""
    hashing = getattr(place, name)
    written: list[bool] = []

    def watched(*arguments: Any) -> Any:
        other = sqlite3.connect(str(engine.url.database), timeout=0, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
            written.append(True)
        except sqlite3.OperationalError:
            written.append(False)
        finally:
            other.close()
        return hashing(*arguments)

    monkeypatch.setattr(place, name, watched)
    assert client.post(path, **sent).status_code == status
    assert written == [True]


def test_a_login_form_of_very_many_fields_is_not_taken_apart(client: TestClient) -> None:
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = client.post("/login", content=b"a=b&" * 100_000, headers=kind)
    assert answer.status_code == 400
    assert "REQUEST_INVALID" in answer.text


def test_forms_without_files_are_small_whatever_they_call_themselves() -> None:
    """They are read before anybody is asked for: 272 MB from a stranger would be spooled to disk."""
    kind = "multipart/form-data; boundary=x"
    assert limit_of("/do/forgot", kind) == SMALL_BYTES
    assert limit_of("/choose", kind) == FORM_BYTES


async def test_a_table_to_try_is_read_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """180 MB of long cells held the loop, and with it every call of the market, for 1.6 seconds."""
    threads: list[int] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return read_table(*arguments, **options)

    monkeypatch.setattr(trying, "read_table", watched)
    form = FormData({"table": UploadFile(io.BytesIO(b"a\n1\n"), filename="a.csv")})
    await trying.rows_of(form, {})
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
