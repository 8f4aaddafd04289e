"""A bundle: the folder that is published, packed, moved and served. Sealed once, then immutable.

`manifest.json` names every other file with its SHA-256, so the digest of a bundle is the SHA-256 of its manifest.json.
A folder becomes a bundle by a rename, so a half-written one is never seen under its final name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model_store.errors import BadInput, Conflict, TooLarge, Unprocessable
from model_store.manifest import BundleFile, Manifest

MANIFEST = "manifest.json"
MODEL = "model.onnx"
ADAPTER = "adapter.onnx_adapter"
MAX_MANIFEST_BYTES = 8 * 1024 * 1024
MAX_PATH_CHARACTERS = 200
MAX_PATH_DEPTH = 8
LITTER = frozenset({".DS_Store", "Thumbs.db"})
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+=, -]*")


@dataclass(frozen=True)
class Limits:
    """Bounds on what `unpack` accepts. `max_ratio` counts only past `ratio_free_bytes` (zeros compress 1000 : 1)."""

    max_files: int = 1024
    max_file_bytes: int = 2 * 1024**3
    max_total_bytes: int = 4 * 1024**3
    max_ratio: int = 200
    ratio_free_bytes: int = 64 * 1024**2


@dataclass(frozen=True)
class Bundle:
    """A sealed bundle folder. `digest`: SHA-256 (hex) of manifest.json's bytes."""

    path: Path
    manifest: Manifest
    digest: str

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def adapter_path(self) -> Path:
        """Of an adapter bundle, which has no graph of its own."""
        return self.path / ADAPTER


def open_bundle(path: Path, verify: bool = False) -> Bundle:
    """Read a bundle folder; with `verify` also hash every file and refuse what the manifest does not name.

    Raises `Unprocessable`: MANIFEST_MISSING, MANIFEST_INVALID, MODEL_MISSING, BUNDLE_FILE_CHANGED, BUNDLE_FILE_UNNAMED.
    """
    bundle, _ = open_bundle_with_facts(path)
    if verify:
        _verify_files(path, bundle.manifest)
    return bundle


def open_bundle_with_facts(path: Path) -> tuple[Bundle, os.stat_result]:
    """As `open_bundle`, and the `stat` of the very manifest.json that was read."""
    content, facts = _read_manifest(path)
    manifest = parse_manifest(content)
    if not os.path.isfile(f"{path}/{_main_file(manifest)}"):
        raise _model_missing(_main_file(manifest))
    return Bundle(path=path, manifest=manifest, digest=hashlib.sha256(content).hexdigest()), facts


def seal(folder: Path, manifest: Manifest) -> Bundle:
    """Hash every file in `folder`, write manifest.json canonically (atomically), and return the bundle.

    Raises `BadInput` FILE_NAME_INVALID (also for links), MANIFEST_INVALID (a value that JSON cannot say) and
    `Unprocessable` MODEL_MISSING.
    """
    files = {
        name: BundleFile(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size)
        for name in list_files(folder)
    }
    if _main_file(manifest) not in files:
        raise _model_missing(_main_file(manifest))
    full = manifest.model_copy(update={"files": files})
    content = canonical_manifest(full)
    partial = folder / f".{MANIFEST}.{secrets.token_hex(4)}"
    _write_durably(partial, content)
    os.replace(partial, folder / MANIFEST)
    return Bundle(path=folder, manifest=parse_manifest(content), digest=hashlib.sha256(content).hexdigest())


def pack(bundle: Bundle, zip_path: Path) -> Path:
    """Write the bundle as a zip: entries sorted, times fixed, so the same bundle gives the same bytes. Atomic."""
    partial = zip_path.with_name(f".{zip_path.name}.{secrets.token_hex(4)}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for name in sorted([MANIFEST, *bundle.manifest.files]):
                entry = zipfile.ZipInfo(name)  # 1980-01-01: no clock in the bytes
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                source = bundle.path / name
                entry.file_size = source.stat().st_size
                with source.open("rb") as reader, archive.open(entry, "w") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
        os.replace(partial, zip_path)
    finally:
        partial.unlink(missing_ok=True)
    return zip_path


def unpack(zip_path: Path, folder: Path, limits: Limits | None = None, seal_if_unsealed: bool = False) -> Bundle:
    """Unpack a zip into `folder` (which must not exist, or be empty), checked and verified, all or nothing.

    With `seal_if_unsealed`, a manifest.json whose `files` is empty (written by hand) is sealed after unpacking. A
    folder that already holds the very same bundle is returned as it is. Raises what `extract` and `open_bundle`
    raise, and `Conflict` BUNDLE_EXISTS.
    """
    from model_store.archive import extract  # here, because archive builds on this module's names and limits

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir()
        extract(zip_path, partial, limits or Limits())
        manifest = parse_manifest(read_manifest_bytes(partial))
        if seal_if_unsealed and not manifest.files:
            seal(partial, manifest)
        bundle = open_bundle(partial, verify=True)
        return settle(bundle, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def settle(bundle: Bundle, folder: Path) -> Bundle:
    """Rename a finished bundle to its final folder; the same bundle already there is fine, another one is not."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    try:
        os.rename(bundle.path, folder)
    except OSError as error:
        if not folder.exists():
            raise
        if (folder / MANIFEST).is_file() and file_sha256(folder / MANIFEST) == bundle.digest:
            return open_bundle(folder)
        raise Conflict(
            "BUNDLE_EXISTS",
            zh=f"文件夹 {folder.name} 已有其他内容",
            en=f"folder {folder.name} already holds something else",
            remedy_zh="请换一个空文件夹",
            remedy_en="choose an empty folder",
            field="folder",
        ) from error
    return Bundle(path=folder, manifest=bundle.manifest, digest=bundle.digest)


def bare_bundle(onnx_path: Path, name: str, folder: Path, golden: Path | None = None) -> Bundle:
    """A bundle of task "tensor" from a bare .onnx (and golden samples in any layout of `golden.read_golden_folder`).

    Raises what `graph_specs` and `read_golden_folder` raise; `BadInput` NAME_INVALID.
    """
    from model_store.golden import read_golden_folder, write_golden
    from model_store.graph_specs import read_graph_specs
    from model_store.names import canonical

    lawful = canonical(name)
    inputs, outputs = read_graph_specs(onnx_path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir()
        shutil.copyfile(onnx_path, partial / MODEL)
        if golden is not None:
            names = [spec.name for spec in inputs], [spec.name for spec in outputs]
            write_golden(partial, read_golden_folder(golden, *names))
        manifest = Manifest.model_validate(
            {
                "name": lawful,
                "title_zh": lawful,
                "title_en": lawful,
                "inputs": inputs,
                "outputs": outputs,
                # Nothing in a bare graph says that its rows are independent, so rows of two callers are never mixed.
                "batching": {"dynamic": False},
            }
        )
        return settle(seal(partial, manifest), folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# --- manifest.json ----------------------------------------------------------------------------------------------------


def canonical_manifest(manifest: Manifest) -> bytes:
    """manifest.json's bytes: keys sorted, UTF-8, one space of indent, a final newline, no NaN or infinity."""
    try:
        data = manifest.model_dump(mode="json")
        if data["adapter_of"] is None:  # keeps the bytes, and so the digest, of every bundle sealed before it was there
            del data["adapter_of"]
        text = json.dumps(data, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
        return f"{text}\n".encode()
    except ValueError as error:  # NaN; a value in `example` or `recipe` that JSON does not have; a lone surrogate
        raise BadInput(
            "MANIFEST_INVALID",
            zh=f"清单中有 JSON 无法表示的值: {error}",
            en=f"the manifest holds a value that JSON cannot say: {error}",
            remedy_zh="请只用有限的数、文本、列表和对象",
            remedy_en="use finite numbers, text, lists and objects only",
            field=MANIFEST,
        ) from error


def read_manifest_bytes(folder: Path) -> bytes:
    """The bytes of manifest.json; a link is none. Raises `Unprocessable` MANIFEST_MISSING, `TooLarge`."""
    return _read_manifest(folder)[0]


def _read_manifest(folder: Path) -> tuple[bytes, os.stat_result]:
    """With system calls and strings alone: a node may have ten thousand of them to read at its start."""
    try:
        descriptor = os.open(f"{folder}/{MANIFEST}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):  # ELOOP: a link; ENXIO: a socket
            raise _manifest_missing() from None
        raise
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise _manifest_missing()
        if facts.st_size > MAX_MANIFEST_BYTES:
            raise _manifest_too_large()
        content = os.read(descriptor, facts.st_size)
        while len(content) < facts.st_size and (more := os.read(descriptor, facts.st_size - len(content))):
            content += more
    finally:
        os.close(descriptor)
    return content, facts


def _manifest_missing() -> Unprocessable:
    return Unprocessable(
        "MANIFEST_MISSING",
        zh="包内没有 manifest.json",
        en="there is no manifest.json in the bundle",
        remedy_zh="请在包的根目录放置 manifest.json, 或直接发布单个 model.onnx",
        remedy_en="put manifest.json at the root of the bundle, or publish the bare model.onnx",
        field=MANIFEST,
    )


def _manifest_too_large() -> TooLarge:
    return TooLarge(
        "MANIFEST_TOO_LARGE",
        zh=f"manifest.json 超过 {MAX_MANIFEST_BYTES} 字节",
        en=f"manifest.json is over {MAX_MANIFEST_BYTES} bytes",
        remedy_zh="清单只放说明, 数据请放在其他文件",
        remedy_en="a manifest describes; keep data in other files",
        field=MANIFEST,
    )


def parse_manifest(content: bytes) -> Manifest:
    """manifest.json → `Manifest`; `Unprocessable` MANIFEST_INVALID names each wrong field (at most ten)."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        problems = [
            {"field": ".".join(str(part) for part in item["loc"]) or MANIFEST, "message": item["msg"]}
            for item in error.errors(include_url=False, include_context=False, include_input=False)[:10]
        ]
        raise manifest_invalid(problems) from error


def manifest_invalid(problems: list[dict[str, str]]) -> Unprocessable:
    """The refusal for a manifest with these wrong fields."""
    listed = "; ".join(f"{each['field']}: {each['message']}" for each in problems)
    details: dict[str, Any] = {"problems": problems}
    return Unprocessable(
        "MANIFEST_INVALID",
        zh=f"manifest.json 不符合规范: {listed}",
        en=f"manifest.json does not follow the schema: {listed}",
        remedy_zh="请按所列字段修改 (见 docs 中的清单说明)",
        remedy_en="mend the fields listed (see the manifest's description in docs)",
        field=problems[0]["field"] if problems else MANIFEST,
        details=details,
    )


# --- files ------------------------------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    with path.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


def check_file_name(name: str) -> str:
    """A relative POSIX path of plain ASCII segments: no `..`, no leading `/`, no backslash, no hidden file.

    Raises `BadInput` FILE_NAME_INVALID.
    """
    segments = name.split("/")
    lawful = len(name) <= MAX_PATH_CHARACTERS and len(segments) <= MAX_PATH_DEPTH
    if lawful and all(_SEGMENT.fullmatch(each) and not each.endswith((".", " ")) for each in segments):
        return name
    raise _file_name_invalid(name)


def _file_name_invalid(name: str) -> BadInput:
    return BadInput(
        "FILE_NAME_INVALID",
        zh=f"包内文件名 {name[:120]!r} 不被允许",
        en=f"the file name {name[:120]!r} is not allowed in a bundle",
        remedy_zh="文件名只用英文字母、数字、空格和 . _ - @ + = , 不以点开头, 不含 .. 或链接",
        remedy_en="use ASCII letters, digits, spaces and . _ - @ + = , in file names; no leading dot, no .., no link",
        field=name[:120],
    )


def list_files(folder: Path) -> list[str]:
    """Relative POSIX names of every file below `folder`, sorted, without manifest.json and what desktops leave behind.

    Links and special files are refused: a link may point outside. Raises `BadInput` FILE_NAME_INVALID.
    """
    names: list[str] = []
    for root, folders, files in os.walk(folder, followlinks=False):
        for each in [*folders, *files]:
            path = Path(root, each)
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise _file_name_invalid(name)
            if path.is_file() and name != MANIFEST and each not in LITTER:
                names.append(check_file_name(name))
    return sorted(names)


def _verify_files(path: Path, manifest: Manifest) -> None:
    found = list_files(path)
    for name in found:
        if name not in manifest.files:
            raise Unprocessable(
                "BUNDLE_FILE_UNNAMED",
                zh=f"文件 {name} 不在 manifest.json 的 files 中",
                en=f"file {name} is not named in the manifest's files",
                remedy_zh="请重新封装 (algomart publish 会自动完成)",
                remedy_en="seal the bundle again (algomart publish does it)",
                field=name,
            )
    for name, expected in manifest.files.items():
        check_file_name(name)
        file = path / name
        if name in found and file.stat().st_size == expected.bytes and file_sha256(file) == expected.sha256:
            continue
        raise Unprocessable(
            "BUNDLE_FILE_CHANGED",
            zh=f"文件 {name} 缺失, 或与 manifest.json 中的 SHA-256 不符",
            en=f"file {name} is missing, or is not what its SHA-256 in manifest.json says",
            remedy_zh="请重新封装后再上传",
            remedy_en="seal the bundle again and upload it anew",
            field=name,
        )


def _main_file(manifest: Manifest) -> str:
    return MODEL if manifest.adapter_of is None else ADAPTER


def _model_missing(name: str = MODEL) -> Unprocessable:
    kind_zh, kind_en = ("模型导出为 ONNX", "model to ONNX") if name == MODEL else ("适配器导出", "adapter")
    return Unprocessable(
        "MODEL_MISSING",
        zh=f"包内没有 {name}",
        en=f"there is no {name} in the bundle",
        remedy_zh=f"请把{kind_zh}并命名为 {name}",
        remedy_en=f"export the {kind_en} and name it {name}",
        field=name,
    )


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as writer:
        writer.write(content)
        writer.flush()
        os.fsync(writer.fileno())
