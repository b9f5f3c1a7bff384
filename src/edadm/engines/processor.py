"""What the processor can do: oneDNN's int8 kernels are wrong, silently, without the right instructions."""

import os
import platform
from pathlib import Path

_INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
# which of them are left by oneDNN's limits; by those not listed, all
_LEFT = dict.fromkeys(("SSE41", "AVX", "AVX2", "AVX512_CORE"), frozenset())
_LEFT |= dict.fromkeys(("AVX2_VNNI", "AVX2_VNNI_2"), {"avx_vnni"})
_LEFT |= dict.fromkeys(("AVX512_CORE_VNNI", "AVX512_CORE_BF16"), {"avx512_vnni"})


def is_x86() -> bool:
    """Whether this is an x86-64 processor. On others OpenVINO runs some integer layers in float: right, not faster."""
    return platform.machine().lower() in ("x86_64", "amd64")


def has_int8_dot() -> bool:
    """Whether int8 products are added in 32 bits here: x86 needs VNNI or AMX, other processors are taken to do it.

    oneDNN's environment variables can forbid these instructions; they are heeded. Where the processor's cannot be read,
    as outside Linux, it is taken for one without: slower, and right on any.
    """
    if not is_x86():
        return True
    left = _INT8_FLAGS
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        left = left & _LEFT.get(os.environ.get(variable, "").upper(), _INT8_FLAGS)
    try:
        return not left.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
