"""The conformance kit: a lone node in its own process meets every MUST, and each of many broken servers is caught."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest
import uvicorn

from serving.conformance.catalogue import AREAS
from serving.conformance.export import export
from serving.conformance.models import kit_models
from serving.conformance.run import Report, run_checks
from serving.node import open_node
from tests.e2e.test_serve import RUN
from tests.ports import free_port
from tests.serving.broken_servers import BROKEN, Spoiler

# --- a lone node, as `algomart serve` runs it -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    export(folder)
    return folder


@pytest.fixture(scope="module")
def node(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and key."""
    home, port = tmp_path_factory.mktemp("node"), free_port()
    command = [sys.executable, "-m", "marketplace.cli", "serve", str(models / "algomart")]
    process = subprocess.Popen([*command, "--home", str(home), "--port", str(port)], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, process)
        yield url, json.loads((home / "node-key.json").read_text(encoding="utf-8"))["key"]
    finally:
        process.terminate()
        process.wait(20)


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the node is not ready")


def failures(report: Report) -> dict[str, str]:
    return {each.check.en: each.why for each in report.results if each.outcome == "failed"}


def test_a_lone_node_meets_every_must_and_every_extension_that_it_claims(node: tuple[str, str]) -> None:
    url, key = node
    report = run_checks(url, {"authorization": f"Bearer {key}"})
    assert report.missing == ()
    assert report.conforms, failures(report)
    for each in report.results:
        if each.outcome == "not applicable":
            assert each.check.extension is not None, f"{each.check.number}: {each.why}"
            assert each.check.extension not in report.extensions
    assert failures(report) == {}


def test_the_command_reports_on_the_terminal_as_json_and_as_junit(node: tuple[str, str], tmp_path: Path) -> None:
    url, key = node
    junit = tmp_path / "report.xml"
    command = [sys.executable, "-c", RUN, "conformance", url, "--only", "robustness", "--key", key]  # base install
    told = subprocess.run([*command, "--junit", str(junit)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "符合 conforms" in told.stdout
    assert key not in told.stdout
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("name"), suite.get("failures")) == ("robustness", "0")
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(as_json.stdout)
    assert found["conforms"] is True
    assert found["areas"].keys() == {"robustness"}
    assert int(suite.get("tests", "0")) == len(found["results"])


def test_a_model_of_the_servers_own_is_enough_for_the_general_checks(node: tuple[str, str]) -> None:
    url, key = node
    mine = {"authorization": f"Bearer {key}"}
    report = run_checks(url, mine, model="conformance--mlp", prefix="nothing--of-this-name--")
    assert len(report.missing) == len(kit_models())
    assert report.conforms, failures(report)
    assert report.score(level="MUST")[1] > 40


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], "URL_MISSING"),
        (["http://127.0.0.1:9", "--only", "health"], "NO_V2_SERVER"),
        (["http://127.0.0.1:9", "--only", "colour"], "AREA_UNKNOWN"),
        (["http://127.0.0.1:9", "--header", "nothing"], "HEADER_INVALID"),
    ],
)
def test_what_the_command_cannot_do_it_says(arguments: list[str], code: str) -> None:
    command = [sys.executable, "-m", "marketplace.cli", "conformance", *arguments]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert code in told.stderr
    assert "Traceback" not in told.stderr


def test_a_server_without_any_model_to_check_is_no_success(node: tuple[str, str]) -> None:
    url, key = node
    command = [sys.executable, "-m", "marketplace.cli", "conformance", url, "--key", key, "--prefix", "none--"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "NO_MODEL_TO_CHECK" in told.stderr


def test_the_catalogue_has_unique_numbers_and_a_source_for_each_check() -> None:
    checks = [check for area in AREAS for check in area.checks]
    assert len({check.number for check in checks}) == len(checks) > 150
    assert all(check.rule.sentence and check.rule.url.startswith("https://") for check in checks)
    assert all((check.extension is not None) == (check.level == "EXTENSION") for check in checks)


# --- servers that are broken in one way each --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoilt(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    sound = open_node(models / "algomart", tmp_path_factory.mktemp("sound"), trusted=True)
    port = free_port()
    config = uvicorn.Config(
        Spoiler(sound.app, sound.key), port=port, http="httptools", ws="none", lifespan="on", log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.started
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def test_the_command_shows_the_sentence_that_is_broken_and_the_exchange_that_shows_it(spoilt: str) -> None:
    command = [sys.executable, "-m", "marketplace.cli", "conformance", f"{spoilt}/unknown-is-ready", "--only", "health"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "an unknown model is not ready: 4xx" in told.stdout
    assert "GET v2/models/no-such-model-of-the-conformance-kit/ready" in " ".join(told.stdout.split())
    (check,) = (each for area in AREAS for each in area.checks if each.en == "an unknown model is not ready: 4xx")
    assert check.rule.section in told.stdout


@pytest.mark.parametrize("area", [area.name for area in AREAS])
def test_the_node_behind_the_broken_servers_is_sound(spoilt: str, area: str) -> None:
    assert run_checks(f"{spoilt}/sound", only=area).conforms


def test_every_area_has_a_broken_server() -> None:
    assert {area for area, _, _ in BROKEN.values()} == {area.name for area in AREAS}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_server_is_caught(spoilt: str, how: str) -> None:
    area, _, title = BROKEN[how]
    report = run_checks(f"{spoilt}/{how}", only=area)
    assert title in failures(report)
    (found,) = (each for each in report.results if each.check.en == title)
    assert found.shown is not None
    assert found.shown["response"]
    assert report.conforms == all(each.check.level == "SHOULD" for each in report.results if each.outcome == "failed")
