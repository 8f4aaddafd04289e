"""Area versions: paths that name a version. Optional in the protocol: asked only where the metadata lists versions."""

from __future__ import annotations

from serving.conformance.checks import Area, NotApplicable, expect, oip, v2
from serving.conformance.kit import Kit
from serving.conformance.tensors import outputs_of
from serving.conformance.wire import Exchange

AREA = Area("versions", "V", "版本")
_LISTED = oip("Model Metadata Response JSON Object", "The model versions that may be explicitly requested")
_USED = oip("Inference Response JSON Object", '"model_version" : The specific model version used for inference.')
_FAILED = oip("Inference Response JSON Error Object", "must be indicated by an HTTP error status (typically 400)")
_NOT_READY = v2("Health", "A 200 status code indicates true and a 4xx status code indicates false.")
UNKNOWN = "999999999"


@AREA.must("所列版本的元数据", "each listed version has metadata", _LISTED)
def metadata(kit: Kit) -> None:
    for version in kit.versions():
        exchange = kit.get(kit.path(kit.subject, version=version))
        expect(exchange.status == 200, f"version {version}: {exchange.failure or exchange.status}", exchange)
        expect(exchange.json().get("name") == kit.subject, f"version {version}: another name", exchange)


@AREA.must("所列版本就绪", "each listed version's readiness can be asked", _LISTED)
def ready(kit: Kit) -> None:
    for version in kit.versions():
        exchange = kit.get(kit.path(kit.subject, "ready", version))
        expect(exchange.status == 200, f"version {version}: {exchange.failure or exchange.status}", exchange)


@AREA.must("指定版本推理, model_version 与之一致", "inference on a version says that version", _USED)
def infer(kit: Kit) -> None:
    for version in kit.versions():
        exchange = kit.post_json(kit.subject, kit.subject_request(), version)
        outputs_of(exchange)
        found = exchange.json().get("model_version")
        expect(found in (None, version), f"asked for {version}, model_version is {found!r}", exchange)


@AREA.must("未指定版本时 model_version 为所列之一", "without a version, model_version is a listed one", _USED)
def default(kit: Kit) -> None:
    versions = kit.versions()
    exchange = kit.infer_subject()
    outputs_of(exchange)
    found = exchange.json().get("model_version")
    if found is None:
        raise NotApplicable("the response gives no model_version (optional)")
    expect(found in versions, f"model_version is {found!r}, the versions are {versions}", exchange)


@AREA.must("未知版本推理: error", "inference on an unknown version is refused", _FAILED)
def unknown_infer(kit: Kit) -> None:
    kit.versions()
    _is_error(kit.post_json(kit.subject, kit.subject_request(), UNKNOWN))


@AREA.must("未知版本元数据: error", "an unknown version's metadata is an error object", _FAILED)
def unknown_metadata(kit: Kit) -> None:
    kit.versions()
    _is_error(kit.get(kit.path(kit.subject, version=UNKNOWN)))


@AREA.must("未知版本不就绪 (4xx)", "an unknown version is not ready: 4xx", _NOT_READY)
def unknown_ready(kit: Kit) -> None:
    kit.versions()
    exchange = kit.get(kit.path(kit.subject, "ready", UNKNOWN))
    expect(400 <= exchange.status < 500, f"{exchange.status} is not a 4xx", exchange)


def _is_error(exchange: Exchange) -> None:
    expect(exchange.status >= 400, f"{exchange.failure or exchange.status} is no error status", exchange)
    exchange.error()
