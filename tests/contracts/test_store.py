"""The contract of `ModelStore`, run on a real MLflow server (files linked, and uploaded) and on the twin in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ulid import ULID

from model_store.bundle import Bundle
from model_store.errors import NotFound, Unavailable
from model_store.memory_store import MemoryStore
from model_store.mlflow_store import MlflowStore
from model_store.store import ModelStore
from tests.marketplace.linear_models import linear_bundle
from tests.registry import running_child


@pytest.fixture(params=["memory", "mlflow, linked", "mlflow, uploaded"])
def store(request: pytest.FixtureRequest) -> Iterator[ModelStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    child = running_child()
    folder = child.artifact_folder if "linked" in request.param else None
    store = MlflowStore(child.base_url, child.headers, folder)
    yield store
    store.close()


@pytest.fixture
def name() -> str:
    return f"acme/{str(ULID()).lower()}"


@pytest.fixture
def bundle(tmp_path: Path, name: str) -> Bundle:
    return linear_bundle(tmp_path / "bundle", name)


def publication() -> str:
    return f"pub_{ULID()}"


def numbers(store: ModelStore, name: str) -> list[int]:
    return [version.number for version in store.versions(name)]


def test_versions_of_a_model_are_numbered_from_one(store: ModelStore, name: str, bundle: Bundle) -> None:
    assert store.versions(name) == []
    made = [store.create_pending(name, bundle, publication=publication()) for _ in range(3)]
    assert made == numbers(store, name) == [1, 2, 3]


def test_both_spellings_of_a_name_are_one_model(store: ModelStore, name: str, bundle: Bundle) -> None:
    store.create_pending(name.replace("/", "--"), bundle, publication=publication())
    (version,) = store.versions(name)
    assert version.name == name
    assert store.versions(name.replace("/", "--")) == [version]


def test_a_version_is_pending_until_it_is_confirmed(store: ModelStore, name: str, bundle: Bundle) -> None:
    made = publication()
    number = store.create_pending(name, bundle, publication=made)
    mine = [version for version in store.pending() if version.name == name]
    assert [(each.number, each.publication, each.digest) for each in mine] == [(number, made, bundle.digest)]
    store.confirm(name, number)
    assert name not in {version.name for version in store.pending()}
    assert [version.pending for version in store.versions(name)] == [False]


def test_confirming_twice_is_fine_and_confirming_nothing_is_refused(
    store: ModelStore, name: str, bundle: Bundle
) -> None:
    number = store.create_pending(name, bundle, publication=publication())
    store.confirm(name, number)
    store.confirm(name, number)
    for what, wanted in ((name, 7), ("acme/nothing-of-the-kind", 1)):
        with pytest.raises(NotFound) as refusal:
            store.confirm(what, wanted)
        assert refusal.value.code == "VERSION_NOT_FOUND"


def test_a_version_carries_its_parent_and_relation(store: ModelStore, name: str, tmp_path: Path) -> None:
    parent = {"name": "acme/base", "version": 3, "relation": "finetune"}
    store.create_pending(name, linear_bundle(tmp_path / "child", name, parent=parent), publication=publication())
    (version,) = store.versions(name)
    assert (version.parent, version.relation) == ("acme/base@3", "finetune")


def test_metrics_of_any_name_are_kept(store: ModelStore, name: str, tmp_path: Path) -> None:
    names = ["mae", "miss_rate_at_5%_overkill", "漏检率", "../x", "a/b", "x" * 400]
    metrics = [{"name": each, "value": 0.5, "rows": 10} for each in names]
    assert store.create_pending(name, linear_bundle(tmp_path / "m", name, metrics=metrics), publication="pub_m") == 1


def test_a_removed_version_is_gone_with_its_aliases_and_its_number_stays_used(
    store: ModelStore, name: str, bundle: Bundle
) -> None:
    for _ in range(2):
        store.create_pending(name, bundle, publication=publication())
    store.set_alias(name, "champion", 2)
    store.remove(name, 2)
    store.remove(name, 2)
    assert numbers(store, name) == [1]
    assert store.aliases(name) == {}
    assert store.create_pending(name, bundle, publication=publication()) == 3


def test_what_a_publication_left_is_discarded_and_nothing_else(store: ModelStore, name: str, bundle: Bundle) -> None:
    first, second = publication(), publication()
    for made in (first, second):
        store.create_pending(name, bundle, publication=made)
    store.discard(first)
    store.discard(first)
    store.discard(publication())
    assert [version.publication for version in store.versions(name)] == [second]


def test_aliases_are_set_moved_and_deleted(store: ModelStore, name: str, bundle: Bundle) -> None:
    assert store.aliases(name) == {}
    for _ in range(2):
        store.create_pending(name, bundle, publication=publication())
    store.set_alias(name, "champion", 1)
    store.set_alias(name, "shadow", 1)
    store.set_alias(name, "champion", 2)
    assert store.aliases(name) == {"champion": 2, "shadow": 1}
    store.delete_alias(name, "shadow")
    store.delete_alias(name, "shadow")
    assert store.aliases(name) == {"champion": 2}


def test_an_alias_of_a_version_that_is_not_there_is_refused(store: ModelStore, name: str, bundle: Bundle) -> None:
    store.create_pending(name, bundle, publication=publication())
    with pytest.raises(NotFound) as refusal:
        store.set_alias(name, "champion", 9)
    assert refusal.value.code == "VERSION_NOT_FOUND"


def test_publishers_at_the_same_time_get_different_numbers(store: ModelStore, name: str, bundle: Bundle) -> None:
    made: list[int] = []
    threads = [
        threading.Thread(target=lambda: made.append(store.create_pending(name, bundle, publication=publication())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [1, 2, 3, 4]


# --- what only the real one has ---------------------------------------------------------------------------------------


def test_the_files_of_a_version_are_linked_and_go_when_it_is_removed(name: str, bundle: Bundle) -> None:
    child = running_child()
    store = MlflowStore(child.base_url, child.headers, child.artifact_folder)
    before = set(child.artifact_folder.rglob("model.onnx"))
    number = store.create_pending(name, bundle, publication=publication())
    (made,) = set(child.artifact_folder.rglob("model.onnx")) - before
    assert made.samefile(bundle.model_path)
    assert (made.parent / "MLmodel").is_file()
    store.remove(name, number)
    assert not made.exists()
    assert bundle.model_path.is_file()


def test_a_publication_that_broke_off_before_its_version_is_discarded_too(
    name: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = running_child()
    store = MlflowStore(child.base_url, child.headers, child.artifact_folder)
    made = publication()
    before = set(child.artifact_folder.rglob("manifest.json"))
    monkeypatch.setattr("model_store.mlflow_store.tag_pairs", _fails_on_second_call())
    with pytest.raises(RuntimeError):
        store.create_pending(name, bundle, publication=made)
    monkeypatch.undo()
    assert len(set(child.artifact_folder.rglob("manifest.json")) - before) == 1
    store.discard(made)
    assert set(child.artifact_folder.rglob("manifest.json")) == before


def test_a_server_that_does_not_answer_is_said_to_be_unavailable(name: str, bundle: Bundle) -> None:
    store = MlflowStore("http://127.0.0.1:9", timeout_s=1)
    for call in (
        lambda: store.create_pending(name, bundle, publication="pub_x"),
        lambda: store.versions(name),
        lambda: store.aliases(name),
    ):
        with pytest.raises(Unavailable) as refusal:
            call()
        assert refusal.value.code == "REGISTRY_UNAVAILABLE"


def test_the_child_answers_nobody_without_its_token() -> None:
    child = running_child()
    for headers in ({}, {"X-AlgoMart-Registry-Token": "guess"}, {"Authorization": "Bearer guess"}):
        answer = httpx.get(f"{child.base_url}/api/2.0/mlflow/experiments/get?experiment_id=0", headers=headers)
        assert (answer.status_code, answer.content) == (401, b"")
    assert httpx.get(f"{child.base_url}/health", headers=child.headers).is_success


def _fails_on_second_call():  # type: ignore[no-untyped-def]
    from model_store.mlflow_store import tag_pairs

    calls = iter([tag_pairs])

    def stand_in(tags: dict[str, str]) -> list[dict[str, str]]:
        real = next(calls, None)
        if real is None:
            raise RuntimeError("killed")
        return real(tags)

    return stand_in
