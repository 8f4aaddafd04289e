"""The one place where ONNX Runtime is imported."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: from 1.29 the binaries report model names otherwise

import onnxruntime as onnxruntime
