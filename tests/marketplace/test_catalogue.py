"""The catalogue: who may see and run what, prices that never change the past, filings, lineage, counters."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.catalogue import aliases, filings
from marketplace.catalogue.coverage import coverage
from marketplace.catalogue.documents import load_documents, price_band
from marketplace.catalogue.lineage import lineage
from marketplace.catalogue.listings import find_listing, find_version, listing_detail, own_listing
from marketplace.catalogue.prices import add_price, list_prices, micro_of_fen, price_at
from marketplace.catalogue.search import SearchIndex
from marketplace.catalogue.source import CatalogueSource
from marketplace.catalogue.tables import Alias
from marketplace.db import open_database, reading, transaction
from marketplace.migrations.upgrade import upgrade
from marketplace.usage.tables import Usage
from model_store.errors import BadInput, Conflict, Forbidden, NotFound
from serving.ports import Principal
from tests.marketplace.shelf import actor_of, add_listing, add_organisation, add_version
from tests.postgres import postgres_server

NOW = 1_800_000_000_000


@pytest.fixture
def shelf(engine):
    """A vendor with a model of three versions and a draft, a private derivative of it at a factory, a rival vendor."""
    with transaction(engine) as session:
        for slug, kind in (("acme", "vendor"), ("rival", "vendor"), ("factory", "enterprise"), ("city", "operator")):
            add_organisation(session, slug, kind)
        steel = add_listing(session, "acme/steel", title_zh="钢板缺陷", chains=["新材料"], links=["生产制造"])
        first = add_version(session, steel, 1, "retired")
        second = add_version(session, steel, 2, "listed", parent_version_id=first.id, relation="quantized")
        add_version(session, steel, 3, "inspected")
        private = add_listing(session, "factory/steel-ours", "draft", visibility="private")
        add_version(session, private, 1, "inspected", parent_version_id=second.id, relation="finetune")
        draft = add_listing(session, "acme/draft", "draft")
        add_version(session, draft, 1, "in_review")
        session.add(Alias(listing_id=steel.id, alias="champion", number=2))
    return engine


def principal(slug: str, role: str) -> Principal:
    return Principal("key", f"org_{slug}", role, frozenset({"use"}))


FACTORY, ACME, CITY = principal("factory", "enterprise"), principal("acme", "vendor"), principal("city", "operator")
RIVAL = principal("rival", "vendor")


@pytest.fixture
def source(shelf):
    source = CatalogueSource(shelf, lambda version: Path("/bundles") / version.digest)
    source.refresh()
    return source


@pytest.mark.parametrize("selector", [None, "", "latest", "2", "v2", "champion"])
@pytest.mark.parametrize("name", ["acme/steel", "acme--steel"])
def test_a_listed_version_answers_to_both_spellings_and_every_selector(source, name, selector):
    served = source.resolve(name, selector, FACTORY)
    assert (served.name, served.version, served.trusted) == ("acme/steel", 2, True)
    assert served.bundle == Path("/bundles/digest-acme/steel-2")


@pytest.mark.parametrize(
    ("name", "selector", "who"),
    [
        ("acme/steel", "1", FACTORY),  # retired
        ("acme/steel", "1", ACME),
        ("acme/steel", "3", FACTORY),  # not reviewed yet
        ("acme/steel", "9", FACTORY),
        ("acme/steel", "nobody", FACTORY),
        ("acme/steel", "²", FACTORY),
        ("acme/draft", None, FACTORY),
        ("factory/steel-ours", None, ACME),  # somebody else's private model
        ("factory/steel-ours", None, CITY),
        ("factory/steel-ours", "1", RIVAL),
        ("nobody/nothing", None, FACTORY),
    ],
)
def test_what_a_caller_may_not_run_is_not_found(source, name, selector, who):
    with pytest.raises(NotFound) as refusal:
        source.resolve(name, selector, who)
    assert refusal.value.code == "MODEL_NOT_FOUND"


def test_an_unreviewed_version_runs_untrusted_for_its_owner_and_the_reviewing_operator(source):
    assert not source.resolve("acme/steel", "3", ACME).trusted
    assert source.resolve("acme/steel", None, ACME).version == 2
    assert not source.resolve("acme/draft", None, CITY).trusted
    assert not source.resolve("factory/steel-ours", None, FACTORY).trusted


def test_the_visible_models_are_ordered_by_name(source):
    assert [served.name for served in source.visible(FACTORY)] == ["acme/steel", "factory/steel-ours"]
    assert [served.name for served in source.visible(ACME)] == ["acme/draft", "acme/steel"]
    assert [served.name for served in source.visible(RIVAL)] == ["acme/steel"]


def test_a_withdrawn_listing_is_gone_after_a_refresh_of_it_alone(shelf, source):
    with transaction(shelf) as session:
        find_listing(session, "acme/steel", None).status = "withdrawn"
    source.refresh("lst_acme/steel")
    with pytest.raises(NotFound):
        source.resolve("acme/steel", None, FACTORY)
    assert [served.name for served in source.visible(FACTORY)] == ["factory/steel-ours"]


def test_visitors_see_listed_models_and_only_owners_their_drafts(shelf):
    with reading(shelf) as session:
        from marketplace.organisations.tables import Organisation

        acme, rival, city = (
            actor_of(session.get_one(Organisation, f"org_{slug}")) for slug in ("acme", "rival", "city")
        )
        assert find_listing(session, "acme--steel", None).name == "acme/steel"
        for name, actor in (("acme/draft", None), ("acme/draft", rival), ("factory/steel-ours", city)):
            with pytest.raises(NotFound):
                find_listing(session, name, actor)
        assert find_listing(session, "acme/draft", acme)
        assert find_listing(session, "acme/draft", city)
        with pytest.raises(Forbidden):
            own_listing(session, "acme/steel", rival)
        steel = find_listing(session, "acme/steel", None)
        assert find_version(session, steel, 1, None).state == "retired"
        with pytest.raises(NotFound):
            find_version(session, steel, 3, rival)
        detail = listing_detail(session, steel, rival, None)
        assert [version["version"] for version in detail["versions"]] == [2, 1]
        assert detail["aliases"] == {"champion": 2}
        assert [v["version"] for v in listing_detail(session, steel, acme, None)["versions"]] == [3, 2, 1]


def test_a_price_applies_from_its_instant_on_and_the_past_stays(shelf):
    with transaction(shelf) as session:
        steel = find_listing(session, "acme/steel", None)
        facts = {"kind": "use", "unit": "calls", "actor": "mem"}
        assert price_at(session, steel.id, "use", NOW) is None
        old = add_price(session, steel, micro_per_unit=370_000, at_ms=NOW, **facts)
        new = add_price(session, steel, micro_per_unit=500_000, at_ms=NOW, effective_from_ms=NOW + 10, **facts)
        assert price_at(session, steel.id, "use", NOW - 1) is None
        assert price_at(session, steel.id, "use", NOW + 9) == old
        assert price_at(session, steel.id, "use", NOW + 10) == new
        assert price_at(session, steel.id, "derivative", NOW + 10) is None
        assert [price.id for price in list_prices(session, steel.id)] == [new.id, old.id]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "gift"},
        {"unit": "bytes"},
        {"micro_per_unit": -1},
        {"micro_per_unit": 10**14},
        {"effective_from_ms": NOW - 1},
    ],
)
def test_a_price_that_breaks_a_rule_is_refused(shelf, changes):
    facts = {"kind": "use", "unit": "calls", "micro_per_unit": 1, "actor": "mem", "at_ms": NOW} | changes
    with pytest.raises(BadInput) as refusal, transaction(shelf) as session:
        add_price(session, find_listing(session, "acme/steel", None), **facts)
    assert refusal.value.code == "PRICE_INVALID"
    assert refusal.value.field in changes


@given(st.integers(0, 10**9 - 1), st.integers(0, 999_999))
def test_fen_as_text_become_micro_fen_exactly(fen, micro):
    assert micro_of_fen(f"{fen}.{micro:06d}") == fen * 1_000_000 + micro


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0.1234567", "1,5", "١", "0x1", "nan", "1" * 30])
def test_fen_that_are_no_amount_are_refused(text):
    with pytest.raises(BadInput):
        micro_of_fen(text)


def test_price_bands_are_what_facets_show():
    bands = [price_band(micro) for micro in (None, 0, 100_000, 370_000, 2_000_000, 20_000_000)]
    assert bands == ["none", "free", "<=0.1fen", "<=1fen", "<=10fen", ">10fen"]


def test_a_demonstration_filing_cannot_pass_for_a_real_one(shelf):
    facts = {"kind": "备案", "model_name": "某模型", "holder": "某公司", "valid_from": "2026-01-01", "actor": "mem"}
    with transaction(shelf) as session:
        filings.register_filing(session, number="粤网信备 2026-1", **facts)
        filings.register_filing(session, number="演示-不是备案号-7", is_demo=True, **facts)
    for number, is_demo in (("演示-不是备案号-8", False), ("粤网信备 2026-2", True)):
        with pytest.raises(BadInput), transaction(shelf) as session:
            filings.register_filing(session, number=number, is_demo=is_demo, **facts)
    with pytest.raises(Conflict), transaction(shelf) as session:
        filings.register_filing(session, number="粤网信备 2026-1", **facts)


@pytest.mark.parametrize(
    "days", [{"valid_from": "2026-02-30"}, {"valid_until": "2025-12-31"}, {"valid_from": "tomorrow"}]
)
def test_a_filing_needs_days_that_exist_and_follow_each_other(shelf, days):
    facts = {
        "number": "x",
        "kind": "备案",
        "model_name": "m",
        "holder": "h",
        "valid_from": "2026-01-01",
        "actor": "mem",
    }
    with pytest.raises(BadInput), transaction(shelf) as session:
        filings.register_filing(session, **(facts | days))


def test_lineage_is_walked_both_ways_and_never_names_a_stranger_s_private_model(shelf):
    from marketplace.organisations.tables import Organisation

    with reading(shelf) as session:
        steel = find_listing(session, "acme/steel", None)
        factory = actor_of(session.get_one(Organisation, "org_factory"))
        tree = lineage(session, find_version(session, steel, 2, None), None)
        assert [(node["version"], node["relation"]) for node in tree["ancestors"]] == [(1, "quantized")]
        assert (tree["descendants"], tree["hidden_descendants"]) == ([], 1)
        mine = lineage(session, find_version(session, steel, 1, None), factory)
        assert [(node["name"], node["depth"]) for node in mine["descendants"]] == [
            ("acme/steel", 1),
            ("factory/steel-ours", 2),
        ]
        assert mine["descendants"][1]["reuses_weights"]


def test_counters_leave_starters_and_demonstrations_out(shelf):
    with transaction(shelf) as session:
        add_organisation(session, "show", is_demo=True)
        add_listing(session, "acme/starter", is_starter=True)
        add_listing(session, "show/model")
        add_listing(session, "acme/base", tier="base")
        session.add(Usage(usage_id="u1", key_id="k", organisation_id="org_factory", listing_id="lst_acme/steel",
                          model="acme/steel@2", amount_micro=0, occurred_at_ms=NOW))  # fmt: skip
        session.flush()
        map_ = coverage(session, NOW + 1)
        later = coverage(session, NOW + 31 * 86_400_000)
    assert map_["counters"]["small_or_app"] == {"target": 200, "listed": 1, "called_30d": 1, "demonstration": 2}
    assert map_["counters"]["base"]["listed"] == 1
    assert later["counters"]["small_or_app"]["called_30d"] == 0
    cells = {(cell["chain"], cell["link"]): cell["models"] for cell in map_["cells"]}
    assert cells["新材料", "生产制造"] == ["acme/steel"]
    assert cells["家具制造", "生产制造"] == []
    assert len(map_["chains"]) == 20
    assert map_["chains_are_an_assumption"]


def test_an_alias_points_only_at_a_version_that_can_be_called(shelf):
    with transaction(shelf) as session:
        steel = find_listing(session, "acme/steel", None)
        aliases.set_alias(session, steel, "canary", find_version(session, steel, 2, None), actor="mem")
    with pytest.raises(Conflict), transaction(shelf) as session:
        aliases.set_alias(session, steel, "old", find_version(session, steel, 1, None), actor="mem")
    with transaction(shelf) as session:
        aliases.delete_alias(session, steel, "canary", actor="mem")
    with pytest.raises(NotFound), transaction(shelf) as session:
        aliases.delete_alias(session, steel, "canary", actor="mem")


def test_the_index_shows_listed_models_to_all_and_private_ones_to_their_owner(shelf):
    index = SearchIndex(load_documents)
    index.refresh(shelf)
    assert [card["name"] for card in index.search("钢板").cards] == ["acme/steel"]
    own = {card["name"] for card in index.search("", organisation_id="org_factory").cards}
    assert own == {"acme/steel", "factory/steel-ours"}
    with transaction(shelf) as session:
        find_listing(session, "acme/steel", None).status = "withdrawn"
    index.refresh(shelf, "lst_acme/steel")
    assert index.search("钢板").total == 0


@pytest.fixture(scope="module")
def postgres_url():
    yield from postgres_server()


def test_the_parts_of_a_manifest_are_read_alike_from_both_databases(engine, postgres_url):
    postgres = open_database(postgres_url)
    upgrade(postgres)
    read = []
    for database in (engine, postgres):
        with transaction(database) as session:
            add_organisation(session, "acme", created_at_ms=NOW)
            base = add_listing(session, "acme/steel", created_at_ms=NOW, updated_at_ms=NOW)
            told = {"method": "boosting", "metrics": [{"name": "r2", "value": 0.9}], "cost": None,
                    "features": [{"name": "t", "title_zh": "温度", "title_en": "Temperature"}]}  # fmt: skip
            add_version(session, base, manifest=told, scorecard={"precision": {"value": 1}}, created_at_ms=NOW)
            adapter = add_listing(session, "acme/steel-adapter", created_at_ms=NOW, updated_at_ms=NOW)
            of = {"name": "acme/steel", "digest": "digest-acme/steel-1", "version": 1}
            add_version(session, adapter, manifest={"adapter_of": of}, created_at_ms=NOW)
        source = CatalogueSource(database, lambda version: Path("/bundles") / version.digest)
        source.refresh()
        read.append((load_documents(database), sorted(source.entries(), key=lambda entry: entry.name)))
    postgres.dispose()
    documents, entries = read[0]
    assert read[0] == read[1]
    assert any("温度" in text for text, _ in documents[0].fields)
    assert documents[0].card["metrics"] == [{"name": "r2", "value": 0.9}]
    assert documents[1].card["metrics"] == []
    assert entries[1].versions[1][1].base == entries[0].versions[1][1]


def test_the_search_index_is_read_behind_and_a_search_waits_for_it(shelf):
    index = SearchIndex(load_documents)
    index.refresh_behind(shelf)
    assert [card["name"] for card in index.search("钢板").cards] == ["acme/steel"]
