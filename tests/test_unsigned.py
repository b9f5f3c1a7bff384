"""ARM: signed activations of linear layers, which OpenVINO multiplies wrongly there, become unsigned: the same numbers.

benchmarks/arm.sh runs this and the engine's tests there.
"""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import tiny
import torch
from openvino import opset13 as op

from edadm.engines import cpu, moves
from edadm.engines.graph import build_graph
from edadm.engines.reference import relative_error
from edadm.engines.unsigned import keep_unsigned
from edadm.quantization import checkpoint


def ends_before_linears(graph: ov.Model) -> list[tuple[float, float]]:
    """What the lowest and the highest integer stand for in the quantization before each linear layer."""
    found = []
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input_value(0).get_node()
        while source.get_type_name() in ("Multiply", "Subtract", "Convert", "Reshape", "Transpose"):
            source = source.input_value(0).get_node()
        if source.get_type_name() == "FakeQuantize":
            found.append(tuple(source.input_value(port).get_node().data.item() for port in (3, 4)))
    return found


def is_signed(ends: tuple[float, float]) -> bool:
    low, high = ends
    return low < 0 and np.isclose(-low * 127, high * 128)


def nodes(compiled: ov.CompiledModel) -> list[ov.Node]:
    return compiled.get_runtime_model().get_ops()


def test_no_linear_of_a_network_reads_signed_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save(tmp_path / "w4a8", tiny.conditional_unet())
    graph = build_graph(checkpoint.load(folder))
    signed = list(map(is_signed, ends_before_linears(graph)))
    assert 0 < sum(signed) < len(signed)
    keep_unsigned(graph)
    after = ends_before_linears(graph)
    assert after.count((0.0, 255.0)) == sum(signed) and len(after) == len(signed)

    cpu.deploy(folder, tmp_path / "engine")
    inputs = (*tiny.inputs(4, channels=4), tiny.context(4, 3))
    expected = cpu.load(tmp_path / "engine", 4, threads=1)(*inputs)
    monkeypatch.setattr(cpu, "is_x86", lambda: False)
    monkeypatch.setattr(moves, "is_x86", lambda: False)
    rewritten = []
    monkeypatch.setattr(cpu, "keep_unsigned", lambda graph: (keep_unsigned(graph), rewritten.append(graph)))
    engine = cpu.load(tmp_path / "engine", 4, threads=1)
    assert len(rewritten) == len(engine.compiled)
    ends = [each for graph in rewritten for each in ends_before_linears(graph)]
    assert (0.0, 255.0) in ends and not any(map(is_signed, ends))
    assert relative_error(engine(*inputs), expected) < 1e-6
    # OpenVINO refuses padded integers there, which are for few pixels on x86
    assert "Pad" not in {
        node.get_rt_info()["layerType"].astype(str) for each in engine.compiled for node in nodes(each)
    }


@pytest.mark.parametrize(("scale", "greatest"), [(0.007, 127), (1 / 3, 127), (0.007, 126), (0.007, 255)])
def test_the_numbers_stay(scale: float, greatest: int) -> None:
    """Of a range that is signed when it ends at 127 steps; behind a reshape, and read twice."""
    ends = np.float32([(greatest - 255) * scale, greatest * scale])
    x = op.parameter([6, 4], np.float32)
    quantized = op.fake_quantize(x, *ends, *ends, 256)
    integers = np.arange(-12, 12, dtype=np.int8).reshape(6, 4)
    weight = op.multiply(op.convert(op.constant(integers), "f32"), np.full((6, 1), 0.25, np.float32))
    product = op.matmul(op.reshape(quantized, [2, 3, 4], special_zero=False), weight, False, True)
    graph = ov.Model([product, quantized], [x])
    values = torch.linspace(2 * ends[0], 2 * ends[1], 24).reshape(6, 4).numpy()
    before = cpu.compile_graph(ov.Core(), graph.clone(), "f32", threads=1)(values)
    keep_unsigned(graph)
    assert ends_before_linears(graph) == [(0.0, 255.0) if greatest == 127 else tuple(ends.tolist())]
    after = cpu.compile_graph(ov.Core(), graph, "f32", threads=1)(values)
    for found, wanted in zip(after.values(), before.values(), strict=True):
        assert relative_error(torch.from_numpy(found), torch.from_numpy(wanted)) < 1e-6
