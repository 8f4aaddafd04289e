"""What the command line prints for people: tables that fit a terminal, money in yuan and fen, times in Asia/Shanghai.

The words follow the terminal's language (LC_ALL, LC_MESSAGES, LANG: Chinese where it says zh, else English); refusals
come in both. Scripts read `--json`, which none of this touches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
SHANGHAI = ZoneInfo("Asia/Shanghai")
INTERVAL_CELLS = 10
PIPE_WIDTH = 200


def speaks_chinese() -> bool:
    """Whether the terminal's own language is Chinese."""
    said = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG") or ""
    return said.lower().startswith("zh")


def word(zh: str, en: str) -> str:
    return zh if speaks_chinese() else en


def title_of(item: Row) -> str:
    return str(word(item.get("title_zh", ""), item.get("title_en", "")))


def yuan(fen: int) -> str:
    """Whole fen as yuan with two places."""
    return f"¥{fen / 100:,.2f}"


def fen_of_micro(micro: int) -> str:
    """Micro-fen as fen, exact, without trailing zeros: 370000 → 0.37."""
    whole, rest = divmod(abs(micro), 1_000_000)
    digits = f"{whole:,}" + (f".{rest:06d}".rstrip("0") if rest else "")
    return f"-{digits}" if micro < 0 else digits


def local_time(at_ms: int | None) -> str:
    """Asia/Shanghai to the second; empty for None."""
    return "" if at_ms is None else datetime.fromtimestamp(at_ms / 1000, SHANGHAI).strftime("%Y-%m-%d %H:%M:%S")


def interval(value: float, low: float, high: float, span: tuple[float, float], cells: int = INTERVAL_CELLS) -> str:
    """A point and its error bar as text on a common scale: `   ├──●───┤  `."""
    first, last = span
    width = (last - first) or 1.0

    def cell(number: float) -> int:
        return max(0, min(cells - 1, round((number - first) / width * (cells - 1))))

    line = [" "] * cells
    for position in range(cell(low), cell(high) + 1):
        line[position] = "─"
    line[cell(low)], line[cell(high)] = "├", "┤"
    line[cell(value)] = "●"
    return "".join(line)


def _table(*columns: tuple[str, str]) -> Table:
    """`columns` are (heading, how): `key` and `right` are never shortened, `right` aligns, `` folds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, how in columns:
        kept = how in {"key", "right"}
        table.add_column(heading, no_wrap=kept, overflow="fold", justify="right" if how == "right" else "left")
    return table


def _kept(table: Table) -> Table:
    """The table with its unshortened columns held at their full width; what folds takes the rest of the terminal."""
    for column in table.columns:
        if column.no_wrap:
            column.min_width = max((cell_len(str(cell)) for cell in column.cells), default=0)
    return table


# --- finding ------------------------------------------------------------------------------------------------------
def models(answer: Row) -> RenderableType:
    table = _table((word("模型", "model"), "key"), (word("名称", "title"), ""), (word("指标", "metric"), "key"))
    for item in answer["items"]:
        table.add_row(item["name"], title_of(item), _best_metric(item))
    found = answer["total"]
    closing = word(f"共 {found} 个模型", f"{found} models")
    if not found:
        closing = word("没有找到。换个说法, 或去掉筛选再试。", "Nothing found. Try other words, or fewer filters.")
    return Group(_kept(table), Text(closing, style="dim"))


def _best_metric(item: Row) -> str:
    metrics = item.get("metrics") or []
    if not metrics:
        return ""
    first = metrics[0]
    return f"{first['name']} {first['value']:.3g}"


# --- choosing -----------------------------------------------------------------------------------------------------
def choice(done: Row) -> RenderableType:
    """A ranking with its error bars, what each costs, why others were left out, and what to adapt first."""
    result = done["result"]
    parts: list[RenderableType] = []
    candidates = {f"{each['model']}@{each['version']}": each for each in result["candidates"]}
    rankings = result.get("rankings") or []
    for ranking in rankings:
        parts += [_ranking(ranking, [candidates[name] for name in ranking["order"]]), _verdict(ranking)]
    unranked = [each for each in result["candidates"] if each.get("value") is None]
    if unranked:
        parts.append(_unlabelled(unranked))
    parts += [Text(f"! {line}", style="yellow") for line in _warnings(result["candidates"])]
    if result.get("adapt_first"):
        parts.append(_adapt_first(done, result["adapt_first"]))
    if result.get("left_out"):
        parts.append(_left_out(result["left_out"]))
    if not candidates:
        parts.insert(0, Text(word("货架上没有能跑这些样本的模型。", "No model on the shelf can run these samples.")))
    return Group(*parts)


def _ranking(ranking: Row, ranked: list[Row]) -> Table:
    arrow = "↑" if ranking["higher_is_better"] else "↓"
    table = _table(("", "right"), (word("模型", "model"), ""), (f"{ranking['metric']} {arrow}", "right"),
                   ("95%", "key"), (word("毫秒", "ms"), "right"), (word("千次价", "per 1000"), "right"),
                   (word("券付", "voucher"), "right"))  # fmt: skip
    span = (min(each["low"] for each in ranked), max(each["high"] for each in ranked))
    for place, each in enumerate(ranked, 1):
        bar = interval(each["value"], each["low"], each["high"], span)
        style = "bold" if each.get("tied_with_best") else ""
        table.add_row(str(place), each["model"], f"{each['value']:.3f}", bar, *_costs(each), style=style)
    return _kept(table)


def _costs(candidate: Row) -> tuple[str, str, str]:
    price = candidate.get("price") or {}
    latency = candidate.get("latency_ms") or {}
    milliseconds = f"{latency['p50']:.2f}" if latency.get("p50") is not None else ""
    if price.get("gross_micro") is None:
        return milliseconds, "–", "–"
    return milliseconds, yuan(price["gross_micro"] // 1_000_000), yuan(price["voucher_micro"] // 1_000_000)


def _verdict(ranking: Row) -> Text:
    if ranking["clear_winner"]:
        return Text(f"✓ {word('明显最优', 'clear winner')}: {ranking['best']}", style="green")
    if len(ranking["order"]) == 1:
        alone = word("只有一个候选, 没有可比的。", "A single candidate: nothing to compare it with.")
        return Text(alone, style="yellow")
    text = word("没有明显的赢家: 加粗者的区间相互重叠, 可比价格和速度, 或增加样本。",
                "No clear winner: those in bold overlap. Compare price and speed, or bring more samples.")  # fmt: skip
    return Text(f"≈ {text}", style="yellow")


def _unlabelled(candidates: list[Row]) -> Table:
    """Without labels there is no accuracy: how much a model covers, the samples' mean shift, agreement."""
    table = _table((word("模型", "model"), ""), (word("覆盖", "coverage"), "right"),
                   (word("偏移 σ", "shift σ"), "right"), (word("一致", "agreement"), "right"),
                   (word("毫秒", "ms"), "right"), (word("千次价", "per 1000"), "right"),
                   (word("券付", "voucher"), "right"))  # fmt: skip
    for each in candidates:
        numbers = (f"{each[name]:.2f}" if isinstance(each.get(name), int | float) else "–"
                   for name in ("coverage", "mean_shift", "agreement"))  # fmt: skip
        table.add_row(each["model"], *numbers, *_costs(each))
    return _kept(table)


def _warnings(candidates: Iterable[Row]) -> list[str]:
    """Each warning once, with the models that it is about."""
    about: dict[str, list[str]] = {}
    for each in candidates:
        for warning in each.get("warnings") or []:
            about.setdefault(word(warning["zh"], warning["en"]), []).append(each["model"])
    return [f"{text} ({', '.join(names)})" for text, names in about.items()]


def _adapt_first(done: Row, suggestions: list[Row]) -> RenderableType:
    first = suggestions[0]
    command = f"algomart adapt {first['recipe']} --model {first['model']} --sample-set {done['sample_set_id']}"
    label = done["result"].get("label_column")
    if label:
        command += f' --label-column "{label}"'
    heading = word("先适配再比较", "Adapt first, then compare")
    lines = [f"  {title_of(each)} ← {each['model']} (≈ {each['minutes']:g} min)" for each in suggestions]
    return Group(Text(heading, style="bold"), *map(Text, lines), Text(f"  $ {command}", style="cyan"))


def _left_out(left: list[Row]) -> RenderableType:
    """How many for each reason, the first of them with its own words."""
    by_reason: dict[str, list[Row]] = {}
    for each in left:
        by_reason.setdefault(str(each["reason"]), []).append(each)
    lines = [
        Text(
            word(f"未参评 {len(left)} 个 (--json 全部列出)", f"Left out: {len(left)} (--json lists all)"), style="bold"
        )
    ]
    for reason, those in by_reason.items():
        first = those[0]
        example = f"{first['model']}: {word(first['zh'], first['en'])}"
        lines.append(Text(f"  {len(those)} × {reason}, {word('例如', 'such as')} {example}", style="dim"))
    return Group(*lines)


# --- adapting -----------------------------------------------------------------------------------------------------
def adapted(job: Row) -> RenderableType:
    """The new model beside its parent on the same held-out rows, and how to call it."""
    result = job.get("result")
    if not result:
        return Text(f"{job['id']}: {job['state']}")
    table = _table((word("指标", "metric"), "key"), (word("适配后", "adapted"), "right"), ("95%", "key"),
                   (word("原模型", "parent"), "right"), ("95%", "key"), (word("行", "rows"), "right"))  # fmt: skip
    before = {metric["name"]: metric for metric in result.get("parent_metrics") or []}
    for metric in result["metrics"]:
        parent = before.get(metric["name"])
        arrow = "↑" if metric["higher_is_better"] else "↓"
        table.add_row(f"{metric['name']} {arrow}", *_measured(metric), *_measured(parent), str(metric["rows"]))
    _kept(table)
    made = f"✓ {result['name']}@{result['version']} · {result['relation']} ← {result['parent']['name']}"
    parts: list[RenderableType] = [table, Text(made, style="green")]
    parts += [Text(f"! {_note(note)}", style="yellow") for note in result.get("notes") or []]
    if result.get("call"):
        parts.append(Text(f"  $ {result['call']['curl']}", style="cyan", overflow="fold"))
    return Group(*parts)


def _measured(metric: Row | None) -> tuple[str, str]:
    if metric is None:
        return "–", ""
    low, high = metric.get("low"), metric.get("high")
    return f"{metric['value']:.3f}", "" if low is None or high is None else f"{low:.3f}–{high:.3f}"


def _note(note: Any) -> str:
    return word(note.get("zh", ""), note.get("en", "")) if isinstance(note, Mapping) else str(note)


# --- money --------------------------------------------------------------------------------------------------------
def usage(answer: Row) -> RenderableType:
    table = _table((word("时间", "time"), "key"), (word("用量号", "usage id"), "key"), (word("模型", "model"), ""),
                   (word("分", "fen"), "right"), (word("付自", "paid by"), ""),
                   (word("结果", "status"), ""))  # fmt: skip
    for row in answer["items"]:
        paid = f"{row['lease_kind']} {row['ratio_num']}/{row['ratio_den']}" if row["ratio_num"] else row["lease_kind"]
        amount = fen_of_micro(row["amount_micro"])
        model = row["model"] + (word(" (适配器)", " (adapter)") if row.get("adapter") else "")
        table.add_row(local_time(row["occurred_at_ms"])[5:], row["usage_id"], model, amount, paid, row["status"])
    return Group(_kept(table), Text(word(f"共 {answer['total']} 条", f"{answer['total']} records"), style="dim"))


def vouchers(items: Iterable[Row]) -> RenderableType:
    """Face = used + reserved + leased + available (before anything is returned)."""
    table = _table((word("券", "voucher"), ""), (word("状态", "state"), "key"), (word("面额", "face"), "right"),
                   (word("已用", "used"), "right"), (word("已预留", "reserved"), "right"),
                   (word("可用", "available"), "right"), (word("截止", "use by"), "key"))  # fmt: skip
    for item in items:
        amounts = (item["face_fen"], item["used_fen"], item["reserved_fen"] + item["leased_fen"], item["available_fen"])
        name = item.get("title_zh" if speaks_chinese() else "title_en") or item["programme"]
        table.add_row(f"{name}\n{item['id']}", item["state"], *map(yuan, amounts), item["use_by"])
    if not table.row_count:
        return Text(word("还没有模型券: 在控制台申请。", "No model voucher yet: apply for one in the console."))
    return _kept(table)


def keys(items: Iterable[Row]) -> RenderableType:
    table = _table((word("密钥", "key"), "key"), (word("名称", "name"), ""), (word("前缀", "prefix"), "key"),
                   (word("权限", "scopes"), ""), (word("停用于", "revoked"), ""))  # fmt: skip
    for item in items:
        revoked = local_time(item.get("revoked_at_ms"))
        table.add_row(item["id"], item["name"], item["prefix"], " ".join(item["scopes"]), revoked)
    return _kept(table)


def reviews(answer: Row) -> RenderableType:
    table = _table((word("送审号", "review"), "key"), (word("模型", "model"), "key"), (word("状态", "state"), ""),
                   (word("已等 (小时)", "waiting (h)"), "right"))  # fmt: skip
    for item in answer["items"]:
        table.add_row(item["id"], f"{item['name']}@{item['version']['version']}", item["state"],
                      f"{item.get('age_ms', 0) / 3_600_000:.1f}")  # fmt: skip
    if not table.row_count:
        return Text(word("没有待审的版本。", "Nothing waits for review."))
    return _kept(table)


def printer(console: Console, render: Callable[[Any], RenderableType]) -> Callable[[Any], None]:
    """A printer of one answer on that console; what goes into a pipe is not squeezed into 80 columns."""

    def show(answer: Any) -> None:
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = PIPE_WIDTH
        console.print(render(answer), highlight=False)

    return show
