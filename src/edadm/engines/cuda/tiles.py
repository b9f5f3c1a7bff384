"""What the two products of tiles share: how tiles are chosen, walked over and finished."""

from functools import partial
from typing import Any

import triton
import triton.language as tl

from edadm.engines.cuda.quantize import to_byte

INTERPRETED = triton.knobs.runtime.interpret


def _config(rows: int, columns: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"BLOCK_M": rows, "BLOCK_N": columns}, num_warps=warps, num_stages=stages)


# wide tiles read every operand less often, small ones fill the chip when there are few rows
CONFIGS = [
    _config(128, 256, 8, 3),
    _config(128, 128, 8, 4),
    _config(128, 64, 4, 4),
    _config(64, 128, 4, 4),
    _config(64, 64, 4, 5),
    _config(32, 64, 4, 5),
]
# nothing is timed in the interpreter, where every program costs the same
TRIED = [_config(128, 64, 4, 1)] if INTERPRETED else CONFIGS


def _fitting(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    """The tiles that are not mostly empty for these sizes."""
    rows, columns = arguments["rows"], arguments["columns"]

    def fits(config: triton.Config) -> bool:
        height, width = config.kwargs["BLOCK_M"], config.kwargs["BLOCK_N"]
        return height < 2 * max(rows, 32) and width < 2 * max(columns, 64)

    return [config for config in configs if fits(config)] or configs[-1:]


def tuned(*key: str) -> Any:
    """Decorates a kernel with ``rows`` and ``columns``: tiles are timed once per key and kept in Triton's cache."""
    return triton.autotune(
        TRIED,
        key=["rows", "columns", *key],
        prune_configs_by={"early_config_prune": _fitting},
        do_bench=partial(triton.testing.do_bench, warmup=3, rep=10),  # milliseconds
        cache_results=True,
    )


def tile_count(rows: int, columns: int) -> Any:
    """The launch grid of a product with ``rows`` x ``columns`` outputs."""
    return lambda meta: (triton.cdiv(rows, meta["BLOCK_M"]) * triton.cdiv(columns, meta["BLOCK_N"]),)


@triton.jit
def tile(rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The rows (BLOCK_M,) and columns (BLOCK_N,) of this program.

    Programs go down 8 tiles before they go right: those that run together then share operands in the L2 cache.
    """
    GROUP: tl.constexpr = 8
    program = tl.program_id(0)
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    group = program // (GROUP * across)
    height = tl.minimum(down - group * GROUP, GROUP)
    within = program % (GROUP * across)
    m = (group * GROUP + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    return m, n


@triton.jit
def low_half(byte):
    """The signed integer in the low 4 bits of int8 bytes."""
    return (byte << 4) >> 4


@triton.jit
def finish(
    sums, m, n, rows, columns, out, out_stride, scale, bias, correction, embedding, image_rows, residual, out_grid
):
    """Write a tile of sums, int32 (BLOCK_M, BLOCK_N), to ``out``, row stride ``out_stride``.

    As int32: the exact sums. As floats: ``sum * scale + bias``, plus ``embedding`` (images, columns), of which every
    image of ``image_rows`` rows has one, plus ``residual`` (rows, columns). As int8: those quantized to ``out_grid``.
    """
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    sums += tl.load(correction + n, mask=n < columns, other=0)[None, :]
    place = out + m[:, None].to(tl.int64) * out_stride + n[None, :]
    if out.dtype.element_ty == tl.int32:
        tl.store(place, sums, mask=inside)
    else:
        y = sums.to(tl.float32) * tl.load(scale + n, mask=n < columns, other=0.0)[None, :]
        y += tl.load(bias + n, mask=n < columns, other=0.0)[None, :]
        if embedding is not None:
            of_image = (m // image_rows)[:, None] * columns + n[None, :]
            y += tl.load(embedding + of_image, mask=inside, other=0.0).to(tl.float32)
        if residual is not None:
            same = m[:, None].to(tl.int64) * columns + n[None, :]
            y += tl.load(residual + same, mask=inside, other=0.0).to(tl.float32)
        if out_grid is not None:
            tl.store(place, to_byte(y, out_grid), mask=inside)
        else:
            tl.store(place, y.to(out.dtype.element_ty), mask=inside)
