"""Where a base graph takes adapters: its *sites*, read from the graph itself, and what an adapter may put there.

A low-rank site behind a linear node computes `y += (x @ A) @ B`. A and B are initializers that are also graph inputs,
so a run may override them; by default their rank is 0 and the graph is the base. In the *indexed* form they are stacks
`A[slots, in, R]`, `B[slots, R, out]`, and `adapter_idx[batch]` says which slot each row of a batch takes. A *whole*
site is a parameter that an adapter replaces (a classification head with its own number of labels).

The graph says so in its metadata, under `SITES_KEY`; `model_store.adapter_injection` writes it. It may bound the rank,
and name one site as its *head*: the linear map from the pooled vector (and a one, for the bias) to the logits of as
many classes as the site has outputs, all zeros in the base. These inputs belong to the server: no caller may feed them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from model_store.errors import Unprocessable
from model_store.manifest import TensorSpec
from model_store.schema import OipType

SITES_KEY = "algomart.adapter_sites"
INDEX = "adapter_idx"
A_SUFFIX, B_SUFFIX = ".lora_A", ".lora_B"
MAX_RANK = 512
MAX_SITES = 4096


@dataclass(frozen=True, slots=True)
class LowRankSite:
    """`A[features_in, rank]` and `B[rank, features_out]`, named `{name}.lora_A` and `{name}.lora_B`."""

    name: str
    features_in: int
    features_out: int
    dtype: OipType
    max_rank: int = MAX_RANK

    @property
    def a(self) -> str:
        return self.name + A_SUFFIX

    @property
    def b(self) -> str:
        return self.name + B_SUFFIX


@dataclass(frozen=True, slots=True)
class AdapterSites:
    """The sites of one graph. `indexed`: rows of one batch may take different adapters. `whole`: by parameter name.
    `head`: the low-rank site that makes the logits of an adapter's own classes; "" for none.
    """

    low_rank: Mapping[str, LowRankSite]
    whole: Mapping[str, TensorSpec]
    indexed: bool
    head: str = ""

    @property
    def parameters(self) -> frozenset[str]:
        """Every graph input that belongs to the sites, and so to no caller."""
        names = {name for site in self.low_rank.values() for name in (site.a, site.b)}
        return frozenset({*names, *self.whole, *([INDEX] if self.indexed else [])})

    def ranks_of(self, tensors: Mapping[str, TensorSpec]) -> dict[str, int]:
        """Check what an adapter brings against these sites, and answer its rank at each low-rank site.

        `tensors`: name → dtype and shape, `A[in, rank]`, `B[rank, out]`, whole parameters as they are. Ranks may
        differ, sites be left out. Raises `Unprocessable` ADAPTER_SITE_UNKNOWN, ADAPTER_TENSOR_DTYPE,
        ADAPTER_TENSOR_SHAPE, ADAPTER_RANK_TOO_LARGE, ADAPTER_INCOMPLETE, ADAPTER_EMPTY.
        """
        if not tensors:
            raise _empty()
        ranks: dict[str, int] = {}
        halves: set[str] = set()
        for name, tensor in tensors.items():
            if name in self.whole:
                _check_whole(tensor, self.whole[name])
                continue
            site = self.low_rank.get(name[: -len(A_SUFFIX)]) if name.endswith((A_SUFFIX, B_SUFFIX)) else None
            if site is None:
                raise _unknown(name, [*self.low_rank, *self.whole])
            halves.add(name)
            rank = _rank_of(tensor, site)
            if ranks.setdefault(site.name, rank) != rank:
                raise _shape(tensor, [ranks[site.name] if side == rank else side for side in tensor.shape])
        for site_name in ranks:
            site = self.low_rank[site_name]
            for half in (site.a, site.b):
                if half not in halves:
                    raise _incomplete(half)
        return ranks


def read_sites(metadata: Mapping[str, str], overridable: Iterable[TensorSpec]) -> AdapterSites | None:
    """The sites that a graph says it has; None where it says nothing. `overridable`: its initializers that are inputs.

    Raises `Unprocessable` ADAPTER_SITES_INVALID where what it says is not so.
    """
    text = metadata.get(SITES_KEY)
    if text is None:
        return None
    specs = {spec.name: spec for spec in overridable}
    try:
        said = json.loads(text)
        names, whole, indexed = said["low_rank"], said["whole"], said["indexed"]
        lists = isinstance(names, list) and isinstance(whole, list) and isinstance(indexed, bool)
        if not lists or len(names) + len(whole) > MAX_SITES or not (names or whole):
            raise ValueError("low_rank, whole, indexed")
        most, head = said.get("max_rank", MAX_RANK), said.get("head", "")
        if not isinstance(most, int) or not 1 <= most <= MAX_RANK or (head and head not in names):
            raise ValueError("max_rank, head")
        low_rank = {name: _site(name, specs, indexed, None if name == head else most) for name in names}
        if indexed and (whole or specs[INDEX].dtype != "INT64" or specs[INDEX].shape != [-1]):
            raise ValueError(INDEX)
        return AdapterSites(low_rank, {name: specs[name] for name in whole}, indexed, head)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise sites_invalid(str(error)[:120]) from error


def _site(name: str, specs: Mapping[str, TensorSpec], indexed: bool, max_rank: int | None) -> LowRankSite:
    """`max_rank` None: of a head, whose rank is its number of classes."""
    a, b = specs[name + A_SUFFIX], specs[name + B_SUFFIX]
    stack = [-1] if indexed else []
    site = LowRankSite(name, a.shape[-2], b.shape[-1], a.dtype, max_rank or min(b.shape[-1], MAX_RANK))
    fits = a.shape == [*stack, site.features_in, -1] and b.shape == [*stack, -1, site.features_out]
    if not fits or a.dtype != b.dtype or min(site.features_in, site.features_out) < 1:
        raise ValueError(name)
    return site


def _rank_of(tensor: TensorSpec, site: LowRankSite) -> int:
    is_a = tensor.name == site.a
    if tensor.dtype != site.dtype:
        raise _dtype(tensor, site.dtype)
    expected = [site.features_in, -1] if is_a else [-1, site.features_out]
    _check_shape(tensor, expected)
    rank = tensor.shape[1] if is_a else tensor.shape[0]
    if rank < 1:
        raise _shape(tensor, expected)
    if rank > site.max_rank:
        raise _rank_too_large(tensor.name, rank, site.max_rank)
    return rank


def _check_whole(tensor: TensorSpec, expected: TensorSpec) -> None:
    if tensor.dtype != expected.dtype:
        raise _dtype(tensor, expected.dtype)
    _check_shape(tensor, expected.shape)


def _check_shape(tensor: TensorSpec, expected: list[int]) -> None:
    fits = len(tensor.shape) == len(expected) and all(
        want in (-1, have) for have, want in zip(tensor.shape, expected, strict=True)
    )
    if not fits:
        raise _shape(tensor, expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


def sites_invalid(why: str) -> Unprocessable:
    return Unprocessable(
        "ADAPTER_SITES_INVALID",
        zh=f"模型声明的适配点与计算图不符: {why}",
        en=f"the adapter sites that the model declares are not what its graph has: {why}",
        remedy_zh="请用 model_store.adapter_injection 重新注入适配点",
        remedy_en="inject the sites again with model_store.adapter_injection",
        field="model.onnx",
    )


def _unknown(name: str, sites: list[str]) -> Unprocessable:
    listed = ", ".join(sites[:12]) + (" …" if len(sites) > 12 else "")
    return Unprocessable(
        "ADAPTER_SITE_UNKNOWN",
        zh=f"基座模型没有适配点“{name[:120]}”",
        en=f"the base has no adapter site for {name[:120]!r}",
        remedy_zh=f"基座的适配点: {listed}; 参数名为“适配点.lora_A”和“适配点.lora_B”",
        remedy_en=f"the base's sites are {listed}; parameters are named SITE.lora_A and SITE.lora_B",
        field=name[:120],
    )


def _dtype(tensor: TensorSpec, expected: str) -> Unprocessable:
    return Unprocessable(
        "ADAPTER_TENSOR_DTYPE",
        zh=f"适配器参数“{tensor.name[:120]}”应为 {expected}, 收到 {tensor.dtype}",
        en=f"the adapter's {tensor.name[:120]!r} must be {expected}, it is {tensor.dtype}",
        remedy_zh=f"请转换为 {expected} 后重新导出适配器",
        remedy_en=f"convert it to {expected} and write the adapter again",
        field=tensor.name[:120],
        details={"expected": expected, "got": tensor.dtype},
    )


def _shape(tensor: TensorSpec, expected: list[int]) -> Unprocessable:
    return Unprocessable(
        "ADAPTER_TENSOR_SHAPE",
        zh=f"适配器参数“{tensor.name[:120]}”的形状应为 {expected} (-1 为秩, 至少为 1), 收到 {tensor.shape}",
        en=f"the adapter's {tensor.name[:120]!r} must have shape {expected} (-1: the rank, at least 1),"
        f" it has {tensor.shape}",
        remedy_zh="A 为 [输入, 秩], B 为 [秩, 输出]: 来自 peft 时请转置, 并把 scaling 乘入 B",
        remedy_en="A is [in, rank] and B is [rank, out]: transpose what comes from peft, and multiply B by its scaling",
        field=tensor.name[:120],
        details={"expected": expected, "got": tensor.shape},
    )


def _rank_too_large(name: str, rank: int, most: int) -> Unprocessable:
    return Unprocessable(
        "ADAPTER_RANK_TOO_LARGE",
        zh=f"适配器参数“{name[:120]}”的秩为 {rank}, 该基座至多 {most}",
        en=f"the adapter's {name[:120]!r} has rank {rank}; this base takes at most {most}",
        remedy_zh=f"请以不超过 {most} 的秩训练 (分类头的秩即类别数), 或请供应商以更大的 --max-rank 发布基座",
        remedy_en=f"train with rank {most} or less (a head's rank is its number of classes), or ask the vendor for a"
        " base with a larger --max-rank",
        field=name[:120],
        details={"rank": rank, "max_rank": most},
    )


def _incomplete(missing: str) -> Unprocessable:
    return Unprocessable(
        "ADAPTER_INCOMPLETE",
        zh=f"适配器缺少“{missing[:120]}”: 每个适配点需要 A 和 B",
        en=f"the adapter has no {missing[:120]!r}: a site takes both A and B",
        remedy_zh="请补上, 或去掉另一半",
        remedy_en="add it, or leave the other half out too",
        field=missing[:120],
    )


def _empty() -> Unprocessable:
    return Unprocessable(
        "ADAPTER_EMPTY",
        zh="适配器文件中没有参数",
        en="the adapter file holds no parameters",
        remedy_zh="请重新导出适配器",
        remedy_en="write the adapter again",
        field="adapter",
    )
