"""What Inductor is asked about its kernels, with nodes made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch._inductor.codegen.cpp
import torch._inductor.codegen.triton
from torch._inductor.virtualized import V

from ratrain.profile.fused import Figures, announced

OWNERS = [torch._inductor.codegen.cpp.CppScheduling, torch._inductor.codegen.triton.TritonScheduling]


class Node:
    def __init__(self, reads, writes):
        self.reads, self.writes = reads, writes

    def get_read_write_buffer_accesses(self, *, include_reads, include_writes):
        return {**(self.reads if include_reads else {}), **(self.writes if include_writes else {})}


LAYER_NORM = [
    Node({"x": 1000}, {"mean": 10}),
    Node({"x": 1000, "mean": 10}, {"variance": 10}),
    Node({"x": 1000, "mean": 10, "variance": 10, "gain": 8}, {"out": 1000}),
    object(),  # a marker in a GPU kernel's schedule
]


@pytest.fixture(params=OWNERS, ids=lambda owner: owner.__name__)
def told(request, monkeypatch):
    """What is told of a kernel called `name` with those nodes."""
    monkeypatch.setattr(request.param, "codegen_comment", lambda self, nodes, kernel_name=None: kernel_name)

    def told(name, nodes, **graph):
        known = {"graph_id": 3, "is_backward": False, "removed_buffers": {"variance"}} | graph
        with announced() as figures, V.set_graph_handler(SimpleNamespace(**known)):
            assert request.param.codegen_comment(None, nodes, kernel_name=name) == name
            assert request.param.codegen_comment(None, nodes) is None  # a version that names nothing
        return figures

    return told


def test_arrays_from_outside_are_read_once_and_what_outlives_the_kernel_is_written(told):
    figures = told("triton_per_fused_native_layer_norm_0", LAYER_NORM, is_backward=True)
    assert figures.nbytes("triton_per_fused_native_layer_norm_0", backward=True) == 1000 + 8 + 10 + 1000
    assert figures.nbytes("triton_per_fused_native_layer_norm_0", backward=False) is None


def test_a_kernel_on_a_cpu_is_known_by_its_graph(told):
    figures = told("cpp_fused_native_layer_norm_0", LAYER_NORM)
    assert figures.nbytes("graph_3_cpp_fused_native_layer_norm_0", backward=False) == 2018


def test_what_inductor_no_longer_answers_is_left_untold(told):
    assert len(told("cpp_fused_add_0", [Node(None, None)])) == 0


def test_without_the_place_to_listen_nothing_is_told_and_nothing_breaks(monkeypatch):
    for owner in OWNERS:
        monkeypatch.delattr(owner, "codegen_comment")
    with announced() as figures:
        assert len(figures) == 0


def test_figures_of_a_kernel_that_two_graphs_call_the_same_are_not_used():
    told = Figures()
    told.add("triton_poi_fused_add_0", backward=False, nbytes=10)
    told.add("triton_poi_fused_add_0", backward=True, nbytes=20)
    told.add("triton_poi_fused_mul_1", backward=False, nbytes=10)
    told.add("triton_poi_fused_mul_1", backward=False, nbytes=30)
    assert told.nbytes("triton_poi_fused_add_0", backward=True) == 20
    assert told.nbytes("triton_poi_fused_mul_1", backward=False) is None
    assert told.nbytes("triton_poi_fused_gone_2", backward=False) is None
