"""Hand-made traces: whatever is in them, the rows add up to the step."""

from __future__ import annotations

import pytest

from ratrain.profile.fused import Figures
from ratrain.profile.rows import BACKWARD, DATA, FORWARD, GAPS, MARK, label, marked, rows, split, window, works
from ratrain.profile.trace import Array, Op, Span

MM = (Array((8, 16), 4, 512), Array((16, 32), 4, 2048))
KERNEL = "graph_0_cpp_fused_add_native_layer_norm_view_1"


def trace():
    """A step of 1000 ns: data 0-100, forward 150-500, backward 550-900."""
    custom = Op("ratrain::linear_cross_entropy", 400, 480)
    custom.children = [Op("aten::mm", 410, 450, MM), Op("aten::mm", 450, 460, MM)]
    graph = Op("## Call CompiledFxGraph abc ##", 200, 390)
    graph.children = [Op(KERNEL, 210, 260), Op("aten::mm", 260, 380, MM)]
    forward = Op(MARK + FORWARD, 150, 500, children=[graph, custom])
    fill = Op("aten::zeros_like", 600, 640, children=[Op("aten::fill_", 610, 630)])
    passes = Op(MARK + BACKWARD, 120, 900, children=[forward, fill])
    step = Op(MARK + "optimizer", 110, 950, children=[passes])
    data = Op(MARK + DATA, 0, 100, children=[Op("aten::clone", 50, 70)])
    around = Op(MARK + "steps", 0, 1000, children=[data, step])
    return Op("", 0, 1000, children=[around])


def figures():
    told = Figures()
    told.add(KERNEL, backward=False, nbytes=1 << 20)
    return told


def table(root, **options):
    marks = marked(root)
    return rows(split(window(root), marks), steps=1, figures=figures(), total=1000, on_gpu=False, **options)


def test_rows_add_up_to_the_step():
    assert sum(row.seconds for row in table(trace())) == pytest.approx(1000e-9, rel=1e-12)


def test_work_is_told_by_phase_and_by_the_operation_it_is_part_of():
    seen = {(row.phase, row.name): row for row in table(trace())}
    product = seen[FORWARD, "mm 8x16 @ 16x32"]
    assert (product.calls, product.flops, product.seconds) == (1, 2 * 8 * 16 * 32, pytest.approx(120e-9))
    assert seen[FORWARD, "mm 8x16 @ 16x32 (linear_cross_entropy)"].calls == 2
    kernel = seen[FORWARD, "fused add_layer_norm_view #0.1"]
    assert (kernel.bytes, kernel.flops, kernel.trace_name) == (1 << 20, None, KERNEL)
    assert seen[BACKWARD, "zeros_like"].seconds == pytest.approx(40e-9)  # with the fill inside it
    assert seen[DATA, "sampler"].seconds == pytest.approx(80e-9)


def test_the_time_of_what_stands_around_is_a_gap():
    gaps = {row.name: round(row.seconds * 1e9) for row in table(trace()) if row.phase == GAPS}
    assert gaps == {
        "between phases": 1000 - 100 - 840,
        "optimizer: Python outside of operations": 840 - 780,
        "backward: Python outside of operations": 780 - 350 - 40,
        "forward: Python outside of operations": 350 - 190 - 80,
        "forward: Python of compiled graphs, allocation": 190 - 170,
        "forward: Python of custom operations": 80 - 50,
    }


def test_a_gpu_is_timed_by_what_it_did_and_the_rest_is_idle():
    root = trace()
    by_name = {op.name: op for op in root.walk()}
    by_name[KERNEL].spans = [Span("triton_", 300, 500)]
    by_name["aten::clone"].spans = [Span("Memcpy HtoD", 60, 90)]
    by_name["ratrain::linear_cross_entropy"].spans = [Span("_losses_kernel", 700, 800)]
    root.spans = [Span("Memset (Device)", 850, 860)]
    # the backward pass has a thread of its own: its operations are no children of the marker
    late = Op("aten::mm", 700, 710, MM, spans=[Span("gemm", 900, 1100)])
    root.children.append(late)
    marks = marked(root)
    made = rows(list(works(root, marks)), steps=1, figures=figures(), total=1000, on_gpu=True)
    told = {(row.phase, row.name): round(row.seconds * 1e9) for row in made}
    assert told == {
        (DATA, "clone"): 30,
        (FORWARD, "fused add_layer_norm_view #0.1"): 200,
        (FORWARD, "_losses_kernel (linear_cross_entropy)"): 100,
        (BACKWARD, "mm 8x16 @ 16x32"): 200,
        (BACKWARD, "Memset (Device)"): 10,
        (GAPS, "GPU idle"): 1000 - 540,
    }


@pytest.mark.parametrize(
    ("name", "inputs", "told"),
    [
        ("triton_poi_fused_add_gelu_3", (), "fused add_gelu #3"),
        ("triton_per_fused_native_layer_norm_0", (), "fused layer_norm #0"),
        ("graph_12_cpp_fused__scaled_dot_product_flash_attention_for_cpu_backward_transpose_view_2", (), None),
        ("mkldnn::_linear_pointwise", (Array((8, 16), 4, 0), Array((32, 16), 4, 0)), "linear 8x16 @ 16x32"),
        ("aten::addmm", (Array((32,), 4, 0), *MM), "addmm 8x16 @ 16x32"),
        ("aten::_softmax", (MM[0],), "_softmax"),
    ],
)
def test_labels_tell_shapes_of_products_and_what_was_fused(name, inputs, told):
    assert label(Op(name, 0, 1, inputs)) == (told or "fused flash_attention_backward_transpose_view #12.2")
