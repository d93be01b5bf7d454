"""Compiles matrix products on a CPU to oneDNN calls if these are faster; see ratrain.kernels.products."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from ratrain.kernels import products

_LINEAR = torch.ops.mkldnn._linear_pointwise.default


def inductor_options() -> dict[str, Any]:
    """Returns torch.compile's `options` for a model on a CPU."""
    return {"post_grad_custom_post_pass": ByOneDNN()} if products.onednn_is_faster() else {}


class ByOneDNN(CustomGraphPass):
    """Replaces the matrix products of a graph, forward or backward, by oneDNN calls.

    All supported products are replaced: with two libraries in turn, each finds the other's data in the caches.
    """

    def __call__(self, graph: fx.Graph) -> None:
        _take_operands_as_they_lie()
        for node in list(graph.nodes):
            if node.target == torch.ops.aten.mm.default:
                _replace(graph, node, *node.args)
            elif node.target == torch.ops.aten.addmm.default and not node.kwargs and _is_row(node.args[0], node):
                _replace(graph, node, *node.args[1:], bias=node.args[0])

    def uuid(self) -> Any:
        return get_hash_for_files((__file__, products.__file__))


def _replace(graph: fx.Graph, node: fx.Node, a: fx.Node, b: fx.Node, bias: fx.Node | None = None) -> None:
    left, right = a.meta["val"], b.meta["val"]
    if not (products.by_onednn(left, right) and products.is_plain(right)):
        return
    with graph.inserting_before(node):
        weight = graph.call_function(torch.ops.aten.permute.default, (b, [1, 0]))
        weight.meta["val"] = right.permute(1, 0)
        new = graph.call_function(_LINEAR, (a, weight, bias, "none", [], ""))
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _is_row(bias: fx.Node, product: fx.Node) -> bool:
    return bias.meta["val"].shape == product.meta["val"].shape[1:]


def _take_operands_as_they_lie() -> None:
    """Registers a lowering of the oneDNN product that takes its operands without a copy.

    Inductor's own lowering would copy a transposed weight, which costs as much as oneDNN gains. Only the first operand
    is made contiguous: oneDNN would copy it element by element.
    """
    from torch._inductor import ir, lowering

    if getattr(lowering.lowerings.get(_LINEAR), "_is_fallback_handler", False):
        return
    call = lowering.fallback_handler(_LINEAR)

    def lowered(a: Any, *others: Any) -> Any:
        return call(ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(a)), *others)

    lowered._is_fallback_handler = True  # pyright: ignore[reportFunctionMemberAccess]
    lowering.lowerings[_LINEAR] = lowered
