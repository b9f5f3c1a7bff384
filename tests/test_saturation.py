"""Processors that saturate: layers in halves and attention in float are exact, also where a whole layer is not."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import tiny
import torch
from graphs import in_int8
from openvino import opset13 as op
from test_engines import CASES, grid_inputs, random_layer

from edadm.engines import cpu, reference
from edadm.engines.graph import executed, layer_nodes
from edadm.engines.reference import relative_error
from edadm.engines.saturation import LARGEST, avoid_saturation
from edadm.quantization.integer_layer import IntegerLayer

GROUPS = ((12, 2, 3, 3), (2, 8, 7, 7), {"padding": (1, 0), "groups": 4})


def graph_of(layer: IntegerLayer, shape: tuple[int, ...]) -> ov.Model:
    x = op.parameter(list(shape), np.float32)
    return ov.Model([layer_nodes(x.output(0), "layer", layer)], [x])


@pytest.mark.parametrize("input_bits", [8, 16])
@pytest.mark.parametrize("bits", [4, 7, 8])
@pytest.mark.parametrize("case", [*CASES, "groups"])
def test_a_layer_in_halves_is_exact(case: str, bits: int, input_bits: int) -> None:
    shape, input_shape, geometry = CASES.get(case, GROUPS)
    layer = random_layer(shape, geometry, 2**input_bits // 3, bits, input_bits, extreme=True)
    x, _ = grid_inputs(layer, input_shape, extreme=True)
    graph = graph_of(layer, input_shape)
    avoid_saturation(graph)
    weights = [node.data for node in graph.get_ordered_ops() if node.get_element_type() == ov.Type.i8]
    assert max(np.abs(weight.astype(int)).max() for weight in weights) <= LARGEST
    names = executed({"layer": layer})
    halves = [f"{name}.half" for name in names] if bits == 8 else []
    compiled = cpu.compile_graph(ov.Core(), graph, "f32", threads=1)
    assert in_int8(compiled, names={*names, *halves}, count=len(names + halves))
    found = torch.from_numpy(compiled([x.numpy()])[0])
    assert relative_error(found, reference.IntegerReference(layer)(x)) <= 1e-6


@pytest.mark.skipif(platform.machine() != "x86_64", reason="16-bit saturation is a matter of x86 without VNNI")
def test_processors_without_vnni_compute_the_same(tmp_path: Path) -> None:
    """In a process where oneDNN may use no VNNI; whole layers are wrong there.

    With no AVX-512 either, it would crash on processors that have it: OpenVINO's own kernels go on using that.
    """
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    halves, whole, *networks = map(float, run.stdout.split())
    assert halves <= 1e-6
    assert whole > 0.01
    assert len(networks) == 2 and max(networks) < 1e-5


def without_vnni(folder: Path) -> None:
    """Print the errors of a layer in halves and whole, and the median ones of two networks of 8 bits."""
    layer = random_layer(*CASES["3x3"][::2], extreme=True)
    x = torch.full(CASES["3x3"][1], 1e6)
    compiled = [cpu.compile_graph(ov.Core(), graph_of(layer, x.shape), "f32", threads=1)]
    compiled.append(cpu.compile_unchanged(ov.Core(), graph_of(layer, x.shape), "f32", threads=1))
    for each in compiled:
        print(relative_error(torch.from_numpy(each([x.numpy()])[0]), reference.IntegerReference(layer)(x)))
    scales = {"q": 0.03125, "k": 0.03125, "v": 0.03125, "softmax": 2.0**-8}
    for name, model, channels, rest in (
        ("image", tiny.unet(), 1, ()),
        ("context", tiny.conditional_unet(), 4, (tiny.context(16, 3),)),
    ):
        inputs = (*tiny.inputs(16, channels=channels), *rest)
        cpu.deploy(tiny.save(folder / name, model, 8, scales=scales), folder / f"{name}-cpu")
        with torch.no_grad():
            expected = reference.load(folder / name)(*inputs)
        found = cpu.load(folder / f"{name}-cpu", 16, threads=1)(*inputs)
        # an integer at a rounding tie may flip in some images, and moves these by more
        print(((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).median().item())


if __name__ == "__main__":
    without_vnni(Path(sys.argv[1]))
