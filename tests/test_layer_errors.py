"""Each layer's noise, beside sums that the test takes itself from the networks' outputs."""

import tiny  # noqa: I001  (first: it imports edadm)

import csv
import math
from pathlib import Path

import pytest
import torch
from command_line import call
from safetensors.torch import save_file
from torch import Tensor

from edadm.engines import reference
from edadm.engines.layer_errors import COLUMNS, layer_errors, spread
from edadm.errors import InputError
from edadm.files import write_json
from edadm.quantization import checkpoint


def decibels(found: Tensor, expected: Tensor) -> float:
    return -10 * math.log10(((found - expected).double().norm() / expected.double().norm()) ** 2)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("quantized"))


def test_the_last_layer_is_the_network_and_each_alone_is_itself(quantized: Path) -> None:
    x, t = tiny.inputs(3)
    rows = {row["layer"]: row for row in layer_errors(tiny.unet(), quantized, (x, t))}
    layers = checkpoint.load(quantized).layers
    assert set(rows) == {name.partition(".parts.")[0] for name in layers}
    assert [row["index"] for row in rows.values()] == list(range(len(rows)))
    assert {name for name, row in rows.items() if row["bits"] == 8} == {"conv_in", "conv_out"}
    assert list(rows)[-1] == "conv_out" and list(rows).index("conv_in") < list(rows).index(
        "down_blocks.0.resnets.0.conv1"
    )

    whole = reference.load(quantized)(x, t)
    assert rows["conv_out"]["sqnr_db"] == pytest.approx(decibels(whole, tiny.unet()(x, t).sample), abs=1e-3)
    # conv_in sees the network's input, in float and in integers alike
    alone = decibels(reference.IntegerReference(layers["conv_in"])(x), tiny.unet().conv_in(x))
    assert rows["conv_in"]["alone_sqnr_db"] == pytest.approx(alone, abs=1e-3)
    assert rows["conv_in"]["sqnr_db"] == rows["conv_in"]["alone_sqnr_db"]
    # what reaches the last layer is noisy already
    assert rows["conv_out"]["sqnr_db"] < rows["conv_out"]["alone_sqnr_db"] - 3


def test_four_more_bits_are_some_24_decibels(tmp_path: Path, quantized: Path) -> None:
    fine = tiny.save(tmp_path / "w8", bits=8)
    few, many = (
        {row["layer"]: row["alone_sqnr_db"] for row in layer_errors(tiny.unet(), folder, tiny.inputs(2))}
        for folder in (quantized, fine)
    )
    gained = [many[name] - few[name] for name in few if name.endswith("conv1")]
    assert gained and all(10 < gain < 6.02 * 4 + 4 for gain in gained)  # the activations' 8 bits bound it


def test_a_conditional_network(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, tiny.conditional_unet())
    inputs = (*tiny.inputs(2, channels=4), tiny.context(2, 3))
    rows = layer_errors(tiny.conditional_unet(), folder, inputs)
    assert any(".attn2.to_k" in row["layer"] for row in rows)
    assert all(math.isfinite(row["sqnr_db"]) for row in rows)


def test_full_precision_has_no_quantized_layer(tmp_path: Path) -> None:
    assert layer_errors(tiny.unet(), tiny.save_float(tmp_path), tiny.inputs(1)) == []


def test_another_network_is_refused(quantized: Path) -> None:
    with pytest.raises(InputError, match="configurations differ"):
        layer_errors(tiny.conditional_unet(), quantized, tiny.inputs(1))


def test_rows_are_taken_from_all_over() -> None:
    values = torch.arange(10)
    assert spread((values, values + 1), 3)[0].tolist() == [0, 3, 6]
    assert spread((values,), 99)[0].tolist() == list(range(10))


def test_the_command(tmp_path: Path, quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    tiny.unet().save_pretrained(tmp_path / "checkpoint" / "unet")
    x, t = tiny.inputs(4)
    save_file({"x": x, "t": t}, tmp_path / "calibration.safetensors")
    write_json(tmp_path / "calibration.json", {})
    words = ["layer-errors", "--checkpoint", f"{tmp_path}/checkpoint", "--quantized", str(quantized)]
    words += ["--calibration", f"{tmp_path}/calibration.safetensors", "--images", "2"]
    assert call(*words, "--out", f"{tmp_path}/errors.csv") == 0
    with (tmp_path / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    expected = layer_errors(tiny.unet(), quantized, (x[::2], t[::2]))
    assert [float(row["sqnr_db"]) for row in rows] == pytest.approx([row["sqnr_db"] for row in expected], rel=1e-4)
