"""Names of organisations and models, and the two spellings a model has.

A model is `vendor/name`; where `/` cannot stand (a V2 path, an MLflow registered model) it is `vendor--name`.
Slugs never hold `--`, so the two spellings map onto each other without loss.
"""

from __future__ import annotations

import re

from model_store.errors import BadInput

MAX_SLUG_CHARACTERS = 48
RESERVED_VENDORS = frozenset(
    {"api", "v1", "v2", "mlflow", "models", "console", "vendor", "city", "static", "metrics", "docs", "openapi"}
    | {"login", "health"}
)
RESERVED_ALIASES = frozenset({"latest"})
_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9._]|-(?!-))*")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,31}")


def check_slug(slug: str, *, field: str = "name") -> str:
    """Return `slug` if it is a lawful vendor or model slug, else raise `BadInput` NAME_INVALID."""
    if len(slug) <= MAX_SLUG_CHARACTERS and _SLUG.fullmatch(slug) and not slug.endswith("-"):
        return slug
    raise BadInput(
        "NAME_INVALID",
        zh=f"“{slug[:80]}”不是有效的名称",
        en=f"{slug[:80]!r} is not a valid name",
        remedy_zh=f"请用小写字母、数字、点、下划线和单个连字符, 最长 {MAX_SLUG_CHARACTERS} 个字符, 例如 acme/steel",
        remedy_en=f"use lower-case letters, digits, dots, underscores and single hyphens, at most {MAX_SLUG_CHARACTERS}"
        " characters, such as acme/steel-faults",
        field=field,
    )


def split_name(name: str, *, field: str = "name") -> tuple[str, str]:
    """Split `vendor/name` (or `vendor--name`) into its two slugs; `BadInput` if it is neither."""
    separator = "/" if "/" in name else "--"
    vendor, found, model = name.partition(separator)
    if not found:
        raise BadInput(
            "NAME_INVALID",
            zh=f"“{name[:80]}”缺少供应商部分",
            en=f"{name[:80]!r} has no vendor part",
            remedy_zh="模型名称的形式是 vendor/name",
            remedy_en="a model is named vendor/name",
            field=field,
        )
    return check_slug(vendor, field=field), check_slug(model, field=field)


def canonical(name: str, *, field: str = "name") -> str:
    """`vendor/name` from either spelling."""
    vendor, model = split_name(name, field=field)
    return f"{vendor}/{model}"


def path_name(name: str) -> str:
    """`vendor--name`: the spelling for V2 paths and MLflow."""
    return name.replace("/", "--", 1)


def check_vendor(slug: str, *, field: str = "vendor") -> str:
    """A vendor slug that is lawful and not reserved for the market's own paths."""
    check_slug(slug, field=field)
    if slug in RESERVED_VENDORS:
        raise BadInput(
            "NAME_RESERVED",
            zh=f"“{slug}”是保留名称",
            en=f"{slug!r} is reserved",
            remedy_zh="请换一个供应商名称",
            remedy_en="choose another vendor name",
            field=field,
        )
    return slug


def check_alias(alias: str, *, field: str = "alias") -> str:
    """An alias a vendor may set: lower-case, not `latest`, not of the form `v<N>` or a bare number."""
    if _ALIAS.fullmatch(alias) and alias not in RESERVED_ALIASES and not re.fullmatch(r"v\d+", alias):
        return alias
    raise BadInput(
        "ALIAS_INVALID",
        zh=f"“{alias[:80]}”不能用作别名",
        en=f"{alias[:80]!r} cannot be an alias",
        remedy_zh="请用小写字母开头的词, 例如 champion; latest 与 v<数字> 为保留别名",
        remedy_en="use a word that starts with a lower-case letter, such as champion; latest and v<N> are reserved",
        field=field,
    )
