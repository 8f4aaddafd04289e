"""Names: what a model, a vendor and an alias may be called, and the two spellings of one model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import BadInput
from model_store.names import (
    MAX_SLUG_CHARACTERS,
    RESERVED_VENDORS,
    canonical,
    check_alias,
    check_slug,
    check_vendor,
    path_name,
    split_name,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def lawful(slug: str) -> bool:
    try:
        return check_slug(slug) == slug
    except BadInput:
        return False


SLUGS = st.text(LETTERS + "._-", min_size=1, max_size=20).filter(lawful)


@given(SLUGS, SLUGS)
def test_the_two_spellings_map_onto_each_other_without_loss(vendor: str, model: str) -> None:
    name = f"{vendor}/{model}"
    assert canonical(path_name(name)) == name
    assert split_name(path_name(name)) == split_name(name) == (vendor, model)
    assert "/" not in path_name(name)


@given(st.text(max_size=60))
def test_a_lawful_slug_is_short_plain_and_safe_in_a_path(slug: str) -> None:
    if lawful(slug):
        assert 0 < len(slug) <= MAX_SLUG_CHARACTERS
        assert set(slug) <= set(LETTERS + "._-")
        assert "--" not in slug
        assert slug not in (".", "..")


@pytest.mark.parametrize("slug", ["", "-a", "a-", "a--b", "A", "a b", "轴承", ".a", "_a", "a/b", "a\n", "a" * 49])
def test_what_is_no_slug_is_refused(slug: str) -> None:
    with pytest.raises(BadInput) as error:
        check_slug(slug, field="vendor")
    assert (error.value.code, error.value.field) == ("NAME_INVALID", "vendor")
    assert error.value.remedy_zh


@pytest.mark.parametrize("name", ["", "acme", "acme/", "/m", "a/b/c", "a--b--c", "a/b--c", "--", "/"])
def test_what_is_no_model_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput) as error:
        split_name(name)
    assert error.value.code == "NAME_INVALID"


@pytest.mark.parametrize("vendor", sorted(RESERVED_VENDORS))
def test_the_markets_own_paths_are_no_vendors(vendor: str) -> None:
    with pytest.raises(BadInput) as error:
        check_vendor(vendor)
    assert error.value.code == "NAME_RESERVED"


def test_other_vendors_are_free() -> None:
    assert check_vendor("dongzhi") == "dongzhi"


@pytest.mark.parametrize("alias", ["champion", "canary-2", "v1.2", "stable_eu"])
def test_an_alias_is_a_word(alias: str) -> None:
    assert check_alias(alias) == alias


@pytest.mark.parametrize("alias", ["latest", "v1", "v12", "1", "Champion", "", "a" * 33, "冠军", "a b"])
def test_reserved_or_unlawful_aliases_are_refused(alias: str) -> None:
    with pytest.raises(BadInput) as error:
        check_alias(alias)
    assert error.value.code == "ALIAS_INVALID"
