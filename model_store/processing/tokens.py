"""Tokenizers of bundles (tokenizer.json), read once and kept: a file is immutable, and so is what it makes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from model_store.errors import Unprocessable


@lru_cache(maxsize=32)
def tokenizer_of(path: Path, max_length: int) -> Any:
    """A `tokenizers.Tokenizer` that truncates to `max_length` and pads to the longest of a batch."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise Unprocessable(
            "TOKENIZER_INVALID",
            zh=f"模型包中的 {path.name} 不是有效的分词器",
            en=f"{path.name} in the bundle is no valid tokenizer",
            remedy_zh="请用 tokenizers 库导出 tokenizer.json",
            remedy_en="export it with the tokenizers library",
            field=path.name,
        ) from error
    tokenizer.enable_truncation(max_length)
    pad = next((name for name in ("[PAD]", "<pad>") if tokenizer.token_to_id(name) is not None), None)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad) if pad else 0, pad_token=pad or "[PAD]")
    return tokenizer
