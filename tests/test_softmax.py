"""benchmarks/softmax.py on small attentions: each way is near to float, exponents nearer than one scale for all."""

import platform

import pytest
import softmax

from edadm.engines.processor import has_int8_dot


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not has_int8_dot(), reason="OpenVINO multiplies in int8 with VNNI or AMX only"
)
def test_exponents_are_nearer_to_float() -> None:
    rows = softmax.measure(2, (64, 48, 40), rounds=1, threads=1)
    errors = {(row["body"], row["softmax"]): float(row["error"]) for row in rows}
    assert len(errors) == 6 and errors["f32", "float"] < 1e-4
    for body in ("f32", "bf16"):
        assert errors[body, "exponent"] < errors[body, "static"] < 0.1
