"""Walk a parsed graph, its subgraphs and local functions. Iterative, because the depth is a stranger's choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx

from model_store.inspection.limits import Limits
from model_store.inspection.operators import (
    CONTRIB_DOMAIN,
    CONTRIB_OPERATORS,
    RANDOM_OPERATORS,
    STANDARD_DOMAINS,
    domain_of,
)
from model_store.inspection.report import Findings

FunctionKey = tuple[str, str]


@dataclass(slots=True)
class Walk:
    """What a walk has seen. `tensors`: every constant with the place where it stands."""

    ops: Counter[str] = field(default_factory=Counter)
    tensors: list[tuple[onnx.TensorProto, str]] = field(default_factory=list)
    random: bool = False
    calls: dict[FunctionKey | None, Counter[FunctionKey]] = field(default_factory=dict)
    nodes_of: Counter[FunctionKey | None] = field(default_factory=Counter)
    too_big: bool = False


def walk_model(model: onnx.ModelProto, limits: Limits, findings: Findings) -> Walk:
    """Visit every node and constant of the main graph, its subgraphs and the local functions; judge each operator."""
    walk = Walk()
    functions = {(domain_of(item.domain), item.name): item for item in model.functions}
    if len(model.functions) > limits.functions:
        findings.error(
            "GRAPH_TOO_LARGE",
            f"计算图有 {len(model.functions)} 个局部函数, 上限 {limits.functions}",
            f"the graph has {len(model.functions)} local functions, at most {limits.functions} are accepted",
            "请在导出时内联函数",
            "inline functions when exporting",
        )
        return walk
    _walk_nodes(None, model.graph.node, "graph", functions.keys(), walk, limits, findings)
    _add_graph_tensors(model.graph, "graph", walk)
    for key, function in functions.items():
        place = f"function {key[0]}:{key[1]}"
        _walk_nodes(key, function.node, place, functions.keys(), walk, limits, findings)
        for attribute in function.attribute_proto:
            walk.tensors.extend((tensor, place) for tensor in attribute_tensors(attribute))
    _check_expansion(walk, limits, findings)
    return walk


def _walk_nodes(
    owner: FunctionKey | None,
    nodes: Iterable[onnx.NodeProto],
    place: str,
    functions: Iterable[FunctionKey],
    walk: Walk,
    limits: Limits,
    findings: Findings,
) -> None:
    """Visit `nodes` and all that is nested in their attributes. `owner`: their function, None: the graph."""
    calls = walk.calls.setdefault(owner, Counter())
    stack: list[tuple[Iterator[onnx.NodeProto], str, int]] = [(iter(nodes), place, 0)]
    while stack and not walk.too_big:
        iterator, where, depth = stack[-1]
        node = next(iterator, None)
        if node is None:
            stack.pop()
            continue
        walk.nodes_of[owner] += 1
        if walk.nodes_of.total() > limits.nodes:
            _too_many_nodes(limits, findings)
            walk.too_big = True
            return
        here = f"{where}/{node.name or node.op_type}"
        _judge_operator(node, here, functions, calls, walk, findings)
        for attribute in node.attribute:
            walk.tensors.extend((tensor, here) for tensor in attribute_tensors(attribute))
            for graph in attribute_graphs(attribute):
                if depth + 1 > limits.graph_depth:
                    findings.error(
                        "GRAPH_TOO_DEEP",
                        f"子图嵌套超过 {limits.graph_depth} 层",
                        f"subgraphs are nested more than {limits.graph_depth} deep",
                        "请简化 If / Loop / Scan 的嵌套",
                        "nest If, Loop and Scan less deeply",
                        here,
                    )
                    continue
                _add_graph_tensors(graph, here, walk)
                stack.append((iter(graph.node), here, depth + 1))


def _judge_operator(
    node: onnx.NodeProto,
    here: str,
    functions: Iterable[FunctionKey],
    calls: Counter[FunctionKey],
    walk: Walk,
    findings: Findings,
) -> None:
    domain = domain_of(node.domain)
    key = (domain, node.op_type)
    label = node.op_type if domain == "ai.onnx" else f"{domain}:{node.op_type}"
    if key in functions:
        calls[key] += 1
        return
    if len(walk.ops) < 4096 or label in walk.ops:
        walk.ops[label[:128]] += 1
    if domain in STANDARD_DOMAINS:
        walk.random = walk.random or node.op_type in RANDOM_OPERATORS
        return
    if domain == CONTRIB_DOMAIN:
        if node.op_type not in CONTRIB_OPERATORS:
            findings.error(
                "OPERATOR_NOT_ALLOWED",
                f"算子 com.microsoft:{node.op_type} 不在允许列表中",
                f"operator com.microsoft:{node.op_type} is not on the list of allowed ones",
                "请用标准算子 (ai.onnx, ai.onnx.ml) 重新导出",
                "export again with standard operators (ai.onnx, ai.onnx.ml)",
                here,
            )
        return
    findings.error(
        "DOMAIN_NOT_ALLOWED",
        f"算子 {domain}:{node.op_type} 属于自定义域, 需要加载供应商代码, 不允许",
        f"operator {domain}:{node.op_type} is of a custom domain, which needs the vendor's code; it is not allowed",
        "请改用 ai.onnx 或 ai.onnx.ml 的算子, 或把它写成模型内的局部函数",
        "use operators of ai.onnx or ai.onnx.ml, or write it as a local function in the model",
        here,
    )


def _check_expansion(walk: Walk, limits: Limits, findings: Findings) -> None:
    """Functions may call functions, not themselves, and must not multiply past the node bound ("billion laughs")."""
    expanded: dict[FunctionKey | None, int] = {}
    open_: set[FunctionKey | None] = set()
    stack: list[tuple[FunctionKey | None, bool]] = [(None, False), *((key, False) for key in walk.calls)]
    while stack:
        key, done = stack.pop()
        if done:
            open_.discard(key)
            called = walk.calls.get(key, Counter())
            expanded[key] = walk.nodes_of[key] + sum(count * expanded.get(name, 0) for name, count in called.items())
            if expanded[key] > limits.nodes:
                _too_many_nodes(limits, findings)
                return
            continue
        if key in expanded:
            continue
        open_.add(key)
        stack.append((key, True))
        for name in walk.calls.get(key, Counter()):
            if name in open_:
                findings.error(
                    "FUNCTION_RECURSIVE",
                    f"局部函数 {name[0]}:{name[1]} 调用了自己",
                    f"local function {name[0]}:{name[1]} calls itself",
                    "ONNX 不允许递归函数, 请改用 Loop",
                    "ONNX allows no recursive functions; use Loop",
                )
                return
            if name not in expanded:
                stack.append((name, False))


def _too_many_nodes(limits: Limits, findings: Findings) -> None:
    findings.error(
        "GRAPH_TOO_LARGE",
        f"计算图 (展开函数后) 超过 {limits.nodes} 个节点",
        f"the graph has more than {limits.nodes} nodes once functions are expanded",
        "请简化计算图",
        "make the graph smaller",
    )


def attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor in an attribute, those of sparse tensors included."""
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for item in [*sparse, *attribute.sparse_tensors]:
        yield item.values
        yield item.indices


def attribute_graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _add_graph_tensors(graph: onnx.GraphProto, place: str, walk: Walk) -> None:
    walk.tensors.extend((tensor, place) for tensor in graph.initializer)
    for sparse in graph.sparse_initializer:
        walk.tensors.append((sparse.values, place))
        walk.tensors.append((sparse.indices, place))
