"""The CUDA engine as a whole, in Triton's interpreter (or on a GPU): tiny networks against the exact reference."""

import tiny  # noqa: F401, I001  (first: it imports edadm)

import json
import os
import subprocess
import sys

import pytest
import torch
from diffusers import UNet2DModel
from test_attention import SCALES
from test_cli import call

from edadm import engines
from edadm.engines import cuda, reference
from edadm.engines.cuda import engine, fusion
from edadm.engines.verify import relative_error
from edadm.errors import InputError
from edadm.files import write_json
from edadm.quantization import checkpoint

DEVICE = engine.device()
SIZES = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 2}
SIZES |= {"add_attention": False}


def church_unet():
    """As LSUN-Church's: residual blocks that scale and shift, and that change the resolution themselves."""
    torch.manual_seed(0)
    kinds = {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    settings = {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}
    model = UNet2DModel(**SIZES, **kinds, **settings, block_out_channels=(8, 16), attention_head_dim=8)
    return model.eval().requires_grad_(False)


def padded_unet():
    """As CIFAR-10's: the downsampler pads on one side only."""
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = UNet2DModel(**SIZES, **kinds, block_out_channels=(8, 8), downsample_padding=0)
    return model.eval().requires_grad_(False)


def small_unet():
    """One resolution: the quickest to interpret."""
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DModel(**SIZES, **kinds, block_out_channels=(8,)).eval().requires_grad_(False)


NETWORKS = {"plain": tiny.unet, "conditional": tiny.conditional_unet, "church": church_unet, "padded": padded_unet}


def network_inputs(model, images=2):
    given = tiny.inputs(images, channels=model.config.in_channels)
    return given if isinstance(model, UNet2DModel) else (*given, tiny.context(images, 5))


def check(found, expected):
    """Within round-off: where a value lies on a rounding tie an integer may differ, which few images show."""
    errors = [relative_error(*pair) for pair in zip(found, expected, strict=True)]
    assert min(errors) < 1e-4 and max(errors) < 0.05


def network(folder, body=torch.float32, fused=True):
    return engine.build(checkpoint.load(folder), body, DEVICE, fused)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "fused"), [*((name, True) for name in NETWORKS), ("plain", False), ("conditional", False)]
)
def test_network_is_the_reference(tmp_path, name, fused):
    model = NETWORKS[name]()
    folder, given = tiny.save(tmp_path, model, 4 if fused else 8), network_inputs(model)
    built = network(folder, fused=fused)
    found = built(*(value.to(DEVICE) for value in given)).cpu()
    check(found, reference.load(folder)(*given))
    kinds = {type(module) for module in built.modules()}
    assert (fusion.ResidualBlock in kinds) == fused
    assert (fusion.TransformerBlock in kinds) == (fused and name == "conditional")
    assert (fusion.ImageAttention in kinds) == (fused and name in ("plain", "church"))
    assert (fusion.Downsampler in kinds) == (fused and name == "padded")
    assert (fusion.Upsampler in kinds) == (fused and name != "church")


@torch.no_grad()
@pytest.mark.parametrize("input_bits", [5, 16])
def test_network_with_inputs_of_other_widths(tmp_path, input_bits):
    folder, given = tiny.save(tmp_path, small_unet(), 8, input_bits), tiny.inputs(2)
    check(network(folder)(*(value.to(DEVICE) for value in given)).cpu(), reference.load(folder)(*given))


@torch.no_grad()
def test_network_with_quantized_attention(tmp_path):
    model = tiny.conditional_unet()
    tiny.save(tmp_path, model, scales=SCALES)
    given = network_inputs(model)
    found = network(tmp_path)(*(value.to(DEVICE) for value in given)).cpu()
    check(found, reference.load(tmp_path)(*given))
    with pytest.raises(AssertionError):  # and the operands matter
        check(found, network_without(tmp_path)(*given))


def network_without(folder):
    """The same network without quantized operands."""
    loaded = checkpoint.load(folder)
    checkpoint.save(folder / "float", loaded.config, loaded.layers, loaded.floats, {})
    return reference.load(folder / "float")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoint and engine folders of the network that is quickest here: w4a8 and full precision."""
    root = tmp_path_factory.mktemp("cuda")
    model = small_unet()
    checkpoint.save(root / "fp32", checkpoint.unet_config(model), {}, model.state_dict(), {})
    tiny.save(root / "w4a8", model)
    for name in ("w4a8", "fp32"):
        out = root / f"{name}-cuda"
        assert call("deploy", "--quantized", str(root / name), "--device", "cuda", "--out", str(out)) == 0
    return root


def test_engine_folder(folders):
    out = folders / "w4a8-cuda"
    for name in cuda.FILES:
        assert (out / name).read_bytes() == (folders / "w4a8" / name).read_bytes()
    description, size = (json.loads((out / name).read_text()) for name in ("engine.json", "size.json"))
    assert description["device"] == "cuda" and description["layers"] == list(checkpoint.load(out).layers)
    assert size["engine_bytes"] == sum((out / name).stat().st_size for name in cuda.FILES)
    assert size["quantized_file_bytes"] == (out / "model.safetensors").stat().st_size


def test_images_do_not_depend_on_their_neighbours(folders):
    x, t = tiny.inputs(3)
    loaded = engines.load(folders / "w4a8-cuda", 2)
    outputs = loaded(x, t)
    assert outputs.dtype == torch.float32 and outputs.device == x.device
    assert torch.equal(loaded(x[1:], t[1:]), outputs[1:])
    check(outputs, reference.load(folders / "w4a8")(x, t))


@pytest.mark.parametrize("body", ["f16", "bf16"])
def test_half_precision_body(folders, body):
    x, t = tiny.inputs(2)
    found = engines.load(folders / "w4a8-cuda", 2, body)(x, t)
    assert relative_error(found, reference.load(folders / "w4a8")(x, t)) < 0.1


@pytest.mark.parametrize(("body", "error"), [("f32", 1e-5), ("f16", 1e-2), ("bf16", 5e-2)])
def test_full_precision_engine(folders, body, error):
    x, t = tiny.inputs(1)
    assert relative_error(engines.load(folders / "fp32-cuda", 2, body)(x, t), small_unet()(x, t).sample) < error


def test_bad_engine_folders_are_refused(folders, tmp_path):
    with pytest.raises(InputError, match="'f8' is not one of f32, f16, bf16"):
        cuda.load(folders / "w4a8-cuda", 1, "f8")
    with pytest.raises(InputError, match="batch 0"):
        cuda.load(folders / "w4a8-cuda", 0)
    cuda.deploy(folders / "w4a8", tmp_path / "other")
    description = json.loads((tmp_path / "other" / "engine.json").read_text())
    write_json(tmp_path / "other" / "engine.json", description | {"format_version": 0})
    with pytest.raises(InputError, match="not a cuda engine of format"):
        cuda.load(tmp_path / "other", 1)
    write_json(tmp_path / "other" / "engine.json", description)
    tiny.save(tmp_path / "other", small_unet(), 8)  # its files are now another network's
    with pytest.raises(InputError, match="deploy it again"):
        cuda.load(tmp_path / "other", 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_gpu_and_interpreter_one_line_says_so(folders):
    lines = ["import sys", "from edadm import engines"]
    lines += ["try: engines.load(sys.argv[1], 1)", "except Exception as error: print([error])"]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", "\n".join(lines), str(folders / "w4a8-cuda")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.stdout.startswith("[InputError('the cuda engine needs an NVIDIA GPU")
    assert len(run.stdout.splitlines()) == 1


def test_without_triton_one_line_says_so(folders, monkeypatch):
    monkeypatch.setattr(cuda, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'edadm\[cuda\]'"):
        engines.load(folders / "w4a8-cuda", 1)
