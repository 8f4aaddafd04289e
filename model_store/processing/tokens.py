"""Tokenizers of bundles (tokenizer.json), read once and kept: a file is immutable, and so is what it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from model_store.errors import Unprocessable
from model_store.tensors import Array

CHARACTERS_AT_ONCE = 1_000_000  # until a text is cut, each of its characters takes some 150 bytes


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


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> dict[str, Array]:
    """`input_ids`, `attention_mask`, `token_type_ids`, INT64 [N, the longest], padded on the right."""
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    parts: dict[str, list[Array]] = {name: [] for name in fields}
    for some in _in_parts(texts):
        encoded = tokenizer.encode_batch(some)
        for name, field in fields.items():
            parts[name].append(np.asarray([getattr(each, field) for each in encoded], np.int64))
    if len(parts["input_ids"]) == 1:
        return {name: found[0] for name, found in parts.items()}  # padded by the library
    padding = tokenizer.padding
    filled_with = {"input_ids": padding["pad_id"], "token_type_ids": padding["pad_type_id"]}
    width = max(part.shape[1] for part in parts["input_ids"])
    return {
        name: np.concatenate(
            [
                np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=filled_with.get(name, 0))
                for part in found
            ]
        )
        for name, found in parts.items()
    }


def _in_parts(texts: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and characters + len(text) > CHARACTERS_AT_ONCE:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part
