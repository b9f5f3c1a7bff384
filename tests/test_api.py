"""``import edadm``: cheap, complete, and its examples are true."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest
from new_python import printed

import edadm

ROOT = Path(__file__).parent.parent / "src"
WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0 and result.failed == 0


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) >= 4


def test_the_import_brings_no_heavy_package() -> None:
    code = (
        "import sys, edadm; print([m for m in ('diffusers', 'openvino', 'transformers', 'scipy') if m in sys.modules])"
    )
    assert printed(code) == "[]"


def test_openvino_reports_nothing() -> None:
    """It would else tell its maker of each import and conversion."""
    code = "import edadm; from openvino.tools.ovc import telemetry_utils; print(telemetry_utils.tm.__name__)"
    assert printed(code) == "openvino.tools.ovc.telemetry_stub"


def test_every_name_is_there_and_described() -> None:
    for name in edadm.__all__:
        found = getattr(edadm, name)
        assert found.__doc__ and name in dir(edadm)
        if inspect.isfunction(found):
            parameters = inspect.signature(found).parameters.values()
            assert all(parameter.annotation is not parameter.empty for parameter in parameters)
    with pytest.raises(AttributeError, match="nothing"):
        edadm.nothing  # noqa: B018
