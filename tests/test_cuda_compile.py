"""The kernels compile for the GPUs that they are meant for, to integer tensor-core instructions. This needs no GPU."""

import os
import subprocess
import sys

import pytest

ARCHITECTURES = (80, 86, 89, 90)
# the instruction for products of int8 tiles: whole warpgroups on Hopper, warps before it
INSTRUCTIONS = dict.fromkeys((80, 86, 89), "mma.sync.aligned.m16n8k32.row.col") | {90: "wgmma.mma_async.sync.aligned"}

COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from edadm.engines.cuda import attention, convolution, geglu, group_norm, layer_norm, linear, quantize

BYTES, HALF, FLOAT, WHOLE = "*i8", "*fp16", "*fp32", "*i32"
KINDS = {
    "x": HALF, "q": BYTES, "k": BYTES, "v": BYTES, "out": HALF, "weight": BYTES, "scale": FLOAT, "bias": FLOAT,
    "correction": WHOLE, "embedding": HALF, "residual": HALF, "out_grid": FLOAT, "grid": FLOAT, "grids": FLOAT,
    "gamma": FLOAT, "beta": FLOAT, "moments": FLOAT, "folded": FLOAT, "shift": FLOAT, "eps": "fp32", "factor": "fp32",
    "softmax_scale": "fp32", "out_scale": "fp32",
}
TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64, "PLANES": 1, "out_grid": None}
GEOMETRY = {"KH": 3, "KW": 3, "SH": 1, "SW": 1, "PH": 1, "PW": 1, "DH": 1, "DW": 1, "UP": 1}

def ptx(kernel, architecture, constants, **kinds):
    kernel = kernel if isinstance(kernel, triton.JITFunction) else kernel.fn
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else (KINDS | kinds).get(name, "i32") for name in names}
    pointers = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
    strides = ("width", "stride", "weight_width", "row_stride", "plane", "q_stride", "kv_stride", "channels")
    pointers |= {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in strides}
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=pointers)
    options = {"num_warps": 4, "num_stages": 3}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["ptx"]

def show(name, text):
    print(name, *[word for word in text.split() if word.startswith(("mma.", "wgmma.mma")) or "cp.async.cg" in word])

for architecture in map(int, sys.argv[1:]):
    show("convolution", ptx(convolution._convolution, architecture, TILE | GEOMETRY | {"PACKED": True}, x=BYTES))
for architecture in (80, 90):
    show("linear", ptx(linear._linear, architecture, TILE | {"PACKED": False}, x=BYTES))
for name, text in {
    "attention": ptx(attention._attention, 80, {"D": 40, "WIDTH": 64, "QUERIES": 64, "KEYS": 32}),
    "quantize": ptx(quantize._quantize, 80, {"PLANES": 2, "BLOCK": 1024}, out=BYTES),
    "geglu": ptx(geglu._geglu, 80, {"BLOCK": 1024}, out=BYTES),
    "moments": ptx(group_norm._moments, 80, {"ROWS": 64, "COLUMNS": 64}),
    "fold": ptx(group_norm._fold, 80, {"ROWS": 64, "FOLDED": 64, "SIZE": 32}),
    "apply": ptx(group_norm._apply, 80, {"SILU": True, "OUTPUTS": 1, "ROWS": 64, "COLUMNS": 64}, out=BYTES),
    "layer_norm": ptx(layer_norm._layer_norm, 80, {"OUTPUTS": 3, "ROWS": 2, "COLUMNS": 2048}, out=BYTES),
}.items():
    show(name, text)
"""


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    """The products and 16-byte copies of every kernel, in the order of compilation."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    command = [sys.executable, "-c", COMPILE, *map(str, ARCHITECTURES)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [line.split() for line in run.stdout.splitlines()]


def test_products_use_int8_tensor_cores(instructions):
    products = zip([*ARCHITECTURES, 80, 90], instructions, strict=False)
    for architecture, (name, *words) in products:
        expected = INSTRUCTIONS[architecture]
        used = [word for word in words if not word.startswith("cp.")]
        assert used and all(word.startswith(expected) and "s8.s8" in word for word in used), name
        assert "cp.async.cg.shared.global" in words, name  # 16 bytes at once, by the copy engine


def test_every_kernel_compiles(instructions):
    names = [name for name, *_ in instructions]
    rest = ["attention", "quantize", "geglu", "moments", "fold", "apply", "layer_norm"]
    assert names == ["convolution"] * len(ARCHITECTURES) + ["linear"] * 2 + rest
    assert any("s8.s8" in word for word in instructions[names.index("attention")])
