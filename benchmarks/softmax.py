"""Two ways to multiply a softmax by values in int8: how long they take on this CPU, and how far off they are.

    python benchmarks/softmax.py --out benchmarks/results/softmax.csv

The sizes are those of Stable Diffusion's attentions, the inputs normal; time is the median of interleaved calls.

- float: nothing is quantized, as OpenVINO computes it;
- static: the engine's way. The softmax's output has one scale, found by the search for ranges (MSE). OpenVINO fuses
  both products and the softmax between them, and the matrix of probabilities never leaves the cache;
- exponent: exp(x - max) has the scale 1/255, and the product is divided by the sum of its integers: no row is too small
  for the scale. OpenVINO has no fused form of it.
"""

import time
from pathlib import Path
from statistics import median

import click
import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op
from torch import Tensor

from edadm.engines import cpu
from edadm.engines.graph import of_byte, product_nodes
from edadm.files import as_csv, as_markdown, atomic_write
from edadm.quantization.layers import BINS
from edadm.quantization.quantizer import symmetric_range

SIZES = ((4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (4096, 77, 40))  # queries, keys, channels of a head
HEADS = 8
WAYS = ("float", "static", "exponent")
OPERAND = np.float32(4 / 127)  # the scale of normal q, k and v


def softmax_scale(p: Tensor) -> np.float32:
    """What the search for ranges makes the scale of probabilities."""
    largest = p.max().item()
    histogram = torch.histc(p, BINS, 0, largest).double()
    return np.float32(symmetric_range(histogram, 0, largest, 8, "mse", signed=False))


def graph(way: str, heads: int, queries: int, keys: int, channels: int, scale: np.float32) -> ov.Model:
    """Attention of q (heads, queries, channels), k and v (heads, keys, channels); ``scale`` is the softmax's."""
    q, k, v = (op.parameter([heads, rows, channels], np.float32) for rows in (queries, keys, keys))
    turned, damping = op.transpose(k, [0, 2, 1]), np.float32(channels**-0.5)
    scales = {"q": OPERAND, "k": OPERAND, "v": OPERAND, "softmax": scale}
    if way == "float":
        scores = op.multiply(op.matmul(q, turned, transpose_a=False, transpose_b=False), damping)
        y = op.matmul(op.softmax(scores, -1), v, transpose_a=False, transpose_b=False).output(0)
        return ov.Model([y], [q, k, v])
    scores = op.multiply(product_nodes(q.output(0), turned.output(0), "q", "q", "k", scales), damping)
    if way == "static":
        y = product_nodes(op.softmax(scores, -1).output(0), v.output(0), "softmax", "softmax", "v", scales)
        return ov.Model([y], [q, k, v])
    exponents = op.exp(op.subtract(scores, op.reduce_max(scores, [-1], keep_dims=True)))
    integers = op.fake_quantize(exponents, *np.float32([0, 1, 0, 255]), 256)
    least, greatest = np.float32(-128), np.float32(127)
    values = op.fake_quantize(v, OPERAND * least, OPERAND * greatest, least, greatest, 256)
    values = op.multiply(op.convert(op.convert(values, "i8"), "f32"), OPERAND)
    one = of_byte(op.convert(integers, "u8"), np.float32(0), np.float32(1))
    sums = op.matmul(one, values, transpose_a=False, transpose_b=False)
    sums.set_friendly_name("softmax")
    y = op.divide(sums, op.reduce_sum(integers, [-1], keep_dims=True))
    return ov.Model([y.output(0)], [q, k, v])


def measure(heads: int, sizes: tuple[int, int, int], rounds: int, threads: int) -> list[dict]:
    """A row for each body and way, of attentions of one size."""
    rng = np.random.default_rng(0)
    queries, keys, channels = sizes
    q, k, v = (rng.normal(size=(heads, rows, channels)).astype(np.float32) for rows in (queries, keys, keys))
    p = torch.softmax(torch.from_numpy(q) @ torch.from_numpy(k).mT * channels**-0.5, -1)
    exact, scale = (p @ torch.from_numpy(v)).numpy(), softmax_scale(p)
    requests, times = {}, {}
    for body in cpu.BODIES:
        for way in WAYS:
            compiled = cpu.compile_graph(ov.Core(), graph(way, heads, *sizes, scale), body, threads)
            if way != "float" and "softmax" not in cpu.int8_names(compiled):
                raise click.ClickException(f"{way}: the product does not run in int8 on this processor")
            requests[body, way], times[body, way] = compiled.create_infer_request(), []
    for _ in range(rounds + 1):  # the first is not timed
        for key, request in requests.items():
            start = time.perf_counter()
            request.infer([q, k, v])
            times[key].append(time.perf_counter() - start)
    described = dict(zip(("queries", "keys", "channels"), sizes, strict=True))
    return [
        described
        | {"body": body, "softmax": way, "median_ms": f"{1000 * median(times[body, way][1:]):.2f}"}
        | {"error": f"{np.linalg.norm(request.get_output_tensor(0).data - exact) / np.linalg.norm(exact):.4f}"}
        for (body, way), request in requests.items()
    ]


@click.command(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--heads", type=click.IntRange(1), default=HEADS, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A CSV file.")
def main(rounds: int, threads: int, heads: int, out: Path | None) -> None:  # noqa: D103
    rows = [row for sizes in SIZES for row in measure(heads, sizes, rounds, threads)]
    columns = list(rows[0])
    print(as_markdown(columns, ([str(row[column]) for column in columns] for row in rows)))
    if out:
        atomic_write(out, as_csv(columns, rows))


if __name__ == "__main__":
    main()
