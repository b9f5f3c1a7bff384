"""What the processor can do: oneDNN's int8 kernels are wrong, silently, without the right instructions."""

import os
import platform
from pathlib import Path

_INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
_ISA_WITHOUT = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}


def is_x86() -> bool:
    """Whether this is an x86-64 processor. On others OpenVINO runs some integer layers in float: right, not faster."""
    return platform.machine().lower() in ("x86_64", "amd64")


def has_int8_dot() -> bool:
    """Whether int8 products are added in 32 bits here: x86 needs VNNI or AMX, other processors are taken to do it.

    oneDNN's environment variables can forbid these instructions; they are heeded.
    """
    if not is_x86():
        return True
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if os.environ.get(variable, "").upper() in _ISA_WITHOUT:
            return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True  # not Linux: nothing to read
    return not _INT8_FLAGS.isdisjoint(flags)
