"""Search over a written catalogue: what a factory types, in Chinese and English, finds what it means."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.catalogue.query import parse_query
from marketplace.catalogue.search import Document, SearchIndex
from marketplace.catalogue.synonyms import Synonyms, shipped_synonyms
from marketplace.catalogue.words import index_terms, phrase_terms, runs

_LINES = (Path(__file__).parent / "search_catalogue.txt").read_text(encoding="utf-8").splitlines()
CATALOGUE = [line for line in _LINES if not line.startswith("#")]

# What somebody types → what must be found (all of these, before anything else), and what must not.
QUERIES = [
    ("轴承 故障", {"dongzhi/bearing-fault"}, {"dongzhi/steel-faults", "dongzhi/wine-quality"}),
    ("轴承", {"dongzhi/bearing-fault", "huazhi/bearing-life"}, {"dongzhi/tool-wear"}),
    ("寿命", {"huazhi/bearing-life", "dongzhi/turbofan-rul"}, {"dongzhi/bearing-fault"}),
    ("缺陷", {"dongzhi/steel-faults", "huazhi/steel-faults-tree", "dongzhi/pcb-defect"}, {"dongzhi/power-load"}),
    ("钢板质检", {"huazhi/steel-faults-tree"}, {"dongzhi/pcb-defect"}),
    ("发动机还能用多久", {"dongzhi/turbofan-rul"}, {"dongzhi/wine-quality"}),
    ("液压", {"dongzhi/hydraulic-cooler", "huazhi/hydraulic-valve"}, {"dongzhi/wine-quality"}),
    ("阀", {"huazhi/hydraulic-valve"}, {"dongzhi/hydraulic-cooler"}),
    ("焊接 电路板", {"dongzhi/pcb-defect"}, {"dongzhi/steel-faults"}),
    ("PCB", {"dongzhi/pcb-defect", "huazhi/pcb-anomaly"}, {"dongzhi/steel-faults"}),
    ("工单", {"dongzhi/work-orders"}, {"dongzhi/wine-quality"}),
    ("合同分类", {"huazhi/contract-clauses"}, {"dongzhi/steel-faults"}),
    ("能耗", {"huazhi/steel-energy", "dongzhi/power-load"}, {"dongzhi/tool-wear"}),
    ("tool wear", {"dongzhi/tool-wear"}, {"huazhi/digit-reader"}),
    ("bearings", {"dongzhi/bearing-fault", "huazhi/bearing-life"}, {"dongzhi/tool-wear"}),
    ("remaining useful life", {"huazhi/bearing-life", "dongzhi/turbofan-rul"}, {"dongzhi/wine-quality"}),
    ("RUL", {"dongzhi/turbofan-rul", "huazhi/bearing-life"}, {"dongzhi/wine-quality"}),
    ("steel plate defect", {"dongzhi/steel-faults", "huazhi/steel-faults-tree"}, {"dongzhi/pcb-defect"}),
    ("芯片 良率", {"dongzhi/wafer-yield"}, {"dongzhi/pcb-defect"}),
    ("ＰＣＢ异常", {"huazhi/pcb-anomaly"}, {"dongzhi/pcb-defect"}),
    ("混凝土强度预测", {"huazhi/concrete-strength"}, {"dongzhi/wine-quality"}),
    ("参数优化", {"huazhi/injection-params", "dongzhi/wine-quality"}, {"dongzhi/bearing-fault"}),
    ("predictive maintenance", {"dongzhi/bearing-fault", "dongzhi/hydraulic-cooler"}, {"dongzhi/wine-quality"}),
    ("hydr", {"dongzhi/hydraulic-cooler", "huazhi/hydraulic-valve"}, {"dongzhi/wine-quality"}),
]  # fmt: skip


def document(line: str, number: int, *, owner: str = "org_1", listed: bool = True) -> Document:
    name, title_zh, title_en, summary, task, scenario, chain = line.split("|")
    return Document(
        listing_id=f"lst_{number}",
        owner=owner,
        listed=listed,
        fields=[(name, 5), (title_zh, 6), (title_en, 6), (summary, 2), (task, 3), (scenario, 3), (chain, 2)],
        facets=[("task", task), ("scenario", scenario), ("chain", chain), ("vendor", name.partition("/")[0])],
        card={"name": name},
        price_micro=None if number == 0 else number * 1000,
        created_at_ms=number,
    )


@pytest.fixture(scope="module")
def index() -> SearchIndex:
    index = SearchIndex()
    index.rebuild(document(line, number) for number, line in enumerate(CATALOGUE))
    return index


def names(found) -> list[str]:
    return [card["name"] for card in found.cards]


@pytest.mark.parametrize(("text", "expected", "unexpected"), QUERIES, ids=[query[0] for query in QUERIES])
def test_a_written_query_finds_what_it_means(index, text, expected, unexpected):
    found = names(index.search(text))
    assert expected <= set(found)
    assert not unexpected & set(found)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("轴承 故障", "dongzhi/bearing-fault"),
        ("钢板 缺陷", "dongzhi/steel-faults"),
        ("合同", "huazhi/contract-clauses"),
        ("液压 阀门", "huazhi/hydraulic-valve"),
        ("刀具磨损", "dongzhi/tool-wear"),
        ("wine", "dongzhi/wine-quality"),
    ],
)
def test_the_best_hit_comes_first(index, text, first):
    assert names(index.search(text))[0] == first


def test_an_empty_query_shows_the_whole_shelf_newest_first(index):
    found = index.search("", page_size=100)
    assert found.total == len(CATALOGUE)
    assert names(found)[0] == CATALOGUE[-1].split("|")[0]


def test_a_query_that_nothing_fits_finds_nothing(index):
    assert index.search("zzzz").total == 0
    assert index.search("鲸鱼").total == 0


def test_facets_count_and_leave_their_own_filter_aside(index):
    found = index.search("", filters={"vendor": ["huazhi"]})
    vendors = {facet["value"]: facet["count"] for facet in found.facets["vendor"]}
    assert found.total == vendors["huazhi"] == 9
    assert vendors["dongzhi"] == 11
    tasks = {facet["value"]: facet["count"] for facet in found.facets["task"]}
    assert sum(tasks.values()) == found.total
    counts = [facet["count"] for facet in found.facets["task"]]
    assert counts == sorted(counts, reverse=True)


def test_filters_of_one_axis_add_and_of_two_axes_narrow(index):
    either = index.search("", filters={"task": ["embedding", "text-classification"]})
    both = index.search("", filters={"task": ["embedding", "text-classification"], "vendor": ["huazhi"]})
    assert (either.total, both.total) == (3, 1)
    assert index.search("", filters={"task": ["no such task"]}).total == 0
    assert index.search("", filters={"no such axis": ["x"]}).total == len(CATALOGUE)


def test_pages_do_not_overlap_and_cover_everything(index):
    pages = [names(index.search("", sort="name", page=page, page_size=7)) for page in (1, 2, 3, 4)]
    together = [name for page in pages for name in page]
    assert together == sorted(line.split("|")[0] for line in CATALOGUE)
    assert pages[3] == []


def test_sorting_by_price_puts_the_unpriced_last(index):
    found = names(index.search("", sort="price", page_size=100))
    assert found[-1] == CATALOGUE[0].split("|")[0]
    assert found[0] == CATALOGUE[1].split("|")[0]


def test_a_listing_that_is_not_public_is_found_by_its_own_organisation_only():
    index = SearchIndex()
    index.put(document(CATALOGUE[0], 0, owner="org_1", listed=False))
    index.put(document(CATALOGUE[1], 1, owner="org_2"))
    assert names(index.search("轴承", organisation_id="org_2")) == ["huazhi/bearing-life"]
    assert set(names(index.search("轴承", organisation_id="org_1"))) == {"dongzhi/bearing-fault", "huazhi/bearing-life"}
    assert names(index.search("轴承", organisation_id="org_1", mine=True)) == ["dongzhi/bearing-fault"]


def test_a_changed_listing_is_found_by_its_new_words_only():
    index = SearchIndex()
    index.put(document(CATALOGUE[0], 0))
    index.put(document(CATALOGUE[-1], 0))
    assert index.search("轴承").total == 0
    assert index.search("葡萄酒").total == 1
    index.remove("lst_0")
    assert index.search("").total == 0


def test_chinese_is_indexed_as_characters_and_bigrams():
    assert index_terms("轴承故障, PCB板") == {"轴", "承", "故", "障", "轴承", "承故", "故障", "pcb", "板"}
    assert phrase_terms("轴承故障") == ("轴承", "承故", "故障")
    assert runs("ＰＣＢ　Bearings-7") == ["pcb", "bearing", "7"]


def test_synonyms_are_cut_out_of_unbroken_chinese_longest_first():
    table = Synonyms([["轴承", "bearing"], ["轴承座", "housing"]])
    assert table.split_chinese("旧轴承座坏") == [("旧", False), ("轴承座", True), ("坏", False)]
    assert table.of("Bearings") == {"轴承"}


@given(st.text(max_size=300))
def test_no_text_breaks_the_search(index, text):
    found = index.search(text)
    assert found.total >= len(found.cards)
    parse_query(text, shipped_synonyms())


@given(st.lists(st.integers(0, 19), max_size=40), st.data())
def test_any_sequence_of_changes_leaves_the_index_as_if_built_fresh(changes, data):
    changed, fresh, present = SearchIndex(), SearchIndex(), {}
    for number in changes:
        if number in present and data.draw(st.booleans()):
            changed.remove(f"lst_{number}")
            del present[number]
        else:
            present[number] = document(CATALOGUE[number], number)
            changed.put(present[number])
    fresh.rebuild(present.values())
    for text in ("", "轴承", "缺陷", "pcb"):
        one, other = changed.search(text, page_size=100), fresh.search(text, page_size=100)
        assert names(one) == names(other)
        assert one.facets == other.facets
