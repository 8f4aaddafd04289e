"""The files of a bundle, judged by name and first bytes.

Runs in the market's own process: it opens nothing that can run.

A pickle is recognised by walking its opcodes (`pickletools.genops` executes none of them).
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import stat
import zipfile
from pathlib import Path

from model_store.inspection.limits import Limits
from model_store.inspection.report import Findings

_HEAD_BYTES = 4096
_PICKLE_OPCODES_SEEN = 24  # so many lawful opcodes in a row are no accident in weights or text
_TEXT = {".json", ".md", ".txt", ".csv", ".yaml", ".yml", ".cff", ".spdx"}
_DATA = {
    ".onnx",
    ".onnx_adapter",
    ".safetensors",
    ".npz",
    ".npy",
    ".u64",
    ".u32",
    ".f32",
    ".data",
    ".weights",
    ".bin",
    ".sig",
    ".sigstore",
}
_PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
_BARE_NAMES = {"LICENSE", "LICENCE", "NOTICE", "COPYING", "README"}
_WEIGHTS_NAME = re.compile(r"(?:model\.onnx[._-]data|[A-Za-z0-9_.-]+\.onnx_data(?:_\d+)?)")
_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".cloudpickle", ".npobj", ".sav"}
_PROGRAMS = {
    ".py", ".pyc", ".pyo", ".pyd", ".pyz", ".so", ".dll", ".dylib", ".exe", ".bat", ".cmd", ".ps1", ".sh", ".js",
    ".jar", ".class", ".wasm", ".whl", ".egg", ".ipynb",
}  # fmt: skip
# First bytes → what it is, zh and en. Zip archives are judged apart: an .npz is one.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x7fELF", "Linux 可执行文件或动态库", "a Linux program or library"),
    (b"MZ", "Windows 可执行文件或动态库", "a Windows program or library"),
    (b"\xcf\xfa\xed\xfe", "macOS 可执行文件或动态库", "a macOS program or library"),
    (b"\xca\xfe\xba\xbe", "macOS 可执行文件或 Java 类", "a macOS program or a Java class"),
    (b"#!", "脚本", "a script"),
    (b"\x1f\x8b\x08", "gzip 压缩文件", "a gzip archive"),
    (b"BZh", "bzip2 压缩文件", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "xz 压缩文件", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "7z 压缩文件", "a 7z archive"),
    (b"Rar!", "rar 压缩文件", "a rar archive"),
    (b"\x89HDF\r\n", "HDF5 文件 (Keras 模型可含代码)", "an HDF5 file (a Keras model may carry code)"),
    (b"GGUF", "GGUF 文件", "a GGUF file"),
)
_RAW = {".data", ".weights", ".bin", ".u64", ".u32", ".f32"}  # raw numbers: any two first bytes may occur by chance
# The first byte of a ModelProto is the tag of one of its fields 1–8, 14, 20, 25 or 26.
_MODEL_FIRST_BYTES = frozenset({0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA, 0xD2})


def check_files(root: Path, limits: Limits, findings: Findings) -> int:
    """Walk the bundle folder and judge each file; returns the bytes in all. Never follows a link."""
    total = count = 0
    for folder, folders, names in os.walk(root, followlinks=False):
        for name in sorted([*folders, *names]):
            path = Path(folder, name)
            where = path.relative_to(root).as_posix()
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            count += 1
            if count > limits.files:
                findings.error(
                    "BUNDLE_TOO_MANY_FILES",
                    f"包内文件超过 {limits.files} 个",
                    f"the bundle holds more than {limits.files} files",
                    "请减少文件数量",
                    "keep fewer files",
                )
                return total
            if not stat.S_ISREG(status.st_mode):
                findings.error(
                    "FILE_NOT_REGULAR",
                    "包内有符号链接或特殊文件",
                    "a link or special file is in the bundle",
                    "请以普通文件代替链接",
                    "put the file itself there, not a link",
                    where,
                )
                continue
            total += status.st_size
            check_size(where, status.st_size, limits, findings)
            check_name(where, findings)
            check_head(path, where, findings)
    if total > limits.bundle_bytes:
        findings.error(
            "BUNDLE_TOO_LARGE",
            f"包共 {total} 字节, 上限 {limits.bundle_bytes}",
            f"the bundle has {total} bytes, at most {limits.bundle_bytes} are accepted",
            "请减小模型, 或向运营方申请更高的上限",
            "make the model smaller, or ask the operator for a higher limit",
        )
    return total


def check_size(where: str, size: int, limits: Limits, findings: Findings) -> None:
    """One file against its own bound: the graph has a smaller one than weights, golden samples a smaller one still."""
    bound = limits.file_bytes
    if where == "model.onnx":
        bound = limits.model_bytes
    elif where.startswith("golden/"):
        bound = limits.golden_bytes
    elif where == "manifest.json":
        bound = limits.manifest_bytes
    if size > bound:
        findings.error(
            "FILE_TOO_LARGE",
            f"文件有 {size} 字节, 上限 {bound}",
            f"the file has {size} bytes, at most {bound} are accepted",
            "请把权重放在外部数据文件 (model.onnx.data), 或减小文件",
            "keep weights in an external data file (model.onnx.data), or make the file smaller",
            where,
        )


def check_name(where: str, findings: Findings) -> None:
    """The allow-list by name."""
    name = where.rsplit("/", 1)[-1]
    suffix = Path(name).suffix.lower()
    if suffix in _PICKLES:
        _refuse_pickle(where, findings)
    elif suffix in _PROGRAMS:
        _refuse_program(where, "代码", "code", findings)
    elif suffix in _TEXT | _DATA | _PICTURES or name in _BARE_NAMES or _WEIGHTS_NAME.fullmatch(name):
        return
    else:
        findings.error(
            "FILE_NOT_ALLOWED",
            "这种文件不允许放在包内",
            "a file of this kind may not be in a bundle",
            "包内只放 manifest.json、model.onnx 及外部权重、card.md、golden/、source/ (safetensors、json、txt)、图片",
            "a bundle holds manifest.json, model.onnx and its weights, card.md, golden/, source/ (safetensors, json,"
            " txt) and pictures",
            where,
        )


def check_head(path: Path, where: str, findings: Findings) -> None:
    """What the file is by its first bytes, whatever its name says."""
    try:
        with path.open("rb") as reader:
            head = reader.read(_HEAD_BYTES)
    except OSError as error:
        findings.error(
            "FILE_UNREADABLE",
            f"文件无法读取: {error.strerror}",
            f"the file cannot be read: {error.strerror}",
            "请检查文件权限",
            "check the file's permissions",
            where,
        )
        return
    suffix = path.suffix.lower()
    if is_pickle(head, text=suffix in _TEXT):
        _refuse_pickle(where, findings)
        return
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path, where, suffix, findings)
        return
    for magic, zh, en in _MAGIC:
        if head.startswith(magic) and not (suffix in _RAW and len(magic) < 3):
            _refuse_program(where, zh, en, findings)
            return
    if suffix == ".onnx" and (not head or head[0] not in _MODEL_FIRST_BYTES):
        findings.error(
            "MODEL_NOT_ONNX",
            "文件为空或不是 ONNX 模型",
            "the file is empty or no ONNX model",
            "请重新导出为 ONNX 并完整上传",
            "export to ONNX again and upload all of it",
            where,
        )


def is_pickle(head: bytes, text: bool = False) -> bool:
    """Whether the first bytes read as a pickle: its opcodes are listed, never executed.

    Protocols 0 and 1 have no signature and are looked for only where the file does not claim to be text.
    """
    signed = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if not signed and (text or head[:1] not in b"(]}cilFGIJKLMNSTUVX\x88\x89\x8a\x8b"):
        return False
    seen = 0
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            seen += 1
            if opcode.name == "STOP":
                return signed or seen > 3
            if seen >= _PICKLE_OPCODES_SEEN:
                return True
    except Exception:  # not a pickle, or one longer than what was read
        return signed and seen >= 2
    return False


def _check_archive(path: Path, where: str, suffix: str, findings: Findings) -> None:
    """Of zips only .npz may stay, and only with .npy members; PyTorch's and joblib's are pickles inside."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        names = []
    if any(name.endswith((".pkl", ".pickle")) or "data.pkl" in name for name in names):
        _refuse_pickle(where, findings)
    elif suffix != ".npz" or not all(name.endswith(".npy") for name in names):
        _refuse_program(where, "压缩文件", "an archive", findings)


def _refuse_pickle(where: str, findings: Findings) -> None:
    findings.error(
        "FILE_IS_PICKLE",
        "文件是 pickle (或含有 pickle), 打开即会执行任意代码, 一律拒收",
        "the file is (or holds) a pickle, which runs code when opened; it is never accepted",
        "请导出为 ONNX (torch.onnx.export, skl2onnx), 权重用 safetensors",
        "export to ONNX (torch.onnx.export, skl2onnx) and keep weights as safetensors",
        where,
    )


def _refuse_program(where: str, zh: str, en: str, findings: Findings) -> None:
    findings.error(
        "FILE_NOT_ALLOWED",
        f"文件是{zh}, 不允许放在包内",
        f"the file is {en}, which may not be in a bundle",
        "请从包中移除; 预处理与后处理用 manifest.json 声明, 不用代码",
        "remove it; pre- and post-processing are declared in manifest.json, not coded",
        where,
    )
