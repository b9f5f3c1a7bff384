"""The U-Net of a checkpoint on a CUDA device, one recorded step per batch size; or in Triton's interpreter."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edadm.engines.batches import in_batches
from edadm.engines.cuda.fusion import fuse
from edadm.engines.cuda.layers import make_layer
from edadm.engines.cuda.products import IntegerProduct
from edadm.engines.cuda.tiles import INTERPRETED
from edadm.engines.reference import Network
from edadm.errors import InputError
from edadm.quantization import checkpoint
from edadm.quantization.checkpoint import QuantizedCheckpoint

BODIES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
CAPABILITY = (8, 0)  # the first with asynchronous copies, which the kernels' pipelines need


def device() -> torch.device:
    """Where engines run: the GPU, or the CPU when Triton interprets; InputError when there is neither."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("the cuda engine needs an NVIDIA GPU and a CUDA build of PyTorch; here, use the cpu engine")
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        raise InputError(f"the cuda engine needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]}, not {found}")
    return torch.device("cuda")


def build(loaded: QuantizedCheckpoint, body: torch.dtype, where: torch.device, fused: bool = True) -> Network:
    """The network of a checkpoint with this package's layers, the rest in ``body``; see fusion.py for ``fused``.

    It takes float32 inputs, since a layer may quantize them to 16 bits, and gives float32.
    """
    unet = checkpoint.build_unet(loaded, lambda layer: make_layer(layer, where, body), IntegerProduct)
    nn.Module.to(unet, where, body, memory_format=torch.channels_last)  # diffusers' own ``to`` only adds a warning
    last = loaded.layers.get("conv_out")
    if last is not None:
        unet.conv_out.dtype = torch.float32
    for module in unet.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_pre_hook(_to_weight)
    return Network(fuse(unet) if fused else unet)


def _to_weight(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs[0].to(module.weight.dtype), *inputs[1:]


class CudaEngine:
    """A network for one batch size: ``engine(x, t) -> output``, or of (x, t, context), all tensors.

    On a GPU the step is recorded once as a CUDA graph for each shape of its inputs, and replayed.
    """

    def __init__(self, network: Network, batch: int, where: torch.device) -> None:
        self.network, self.batch, self.device = network, batch, where
        self._steps: dict[tuple[torch.Size, ...], Callable[..., Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run x float32 (n, c, h, w), t int64 (n,) and perhaps context float32 (n, tokens, width) for any n.

        Batches in turn, the last filled up with zeros. The output is float32, where x is.
        """
        return in_batches(self._run, self.batch, inputs)

    @torch.inference_mode()
    def _run(self, *inputs: Tensor) -> Tensor:
        moved = [value.to(self.device, non_blocking=True) for value in inputs]
        if self.device.type != "cuda":
            return self._step(*moved)
        shapes = tuple(value.shape for value in moved)
        if shapes not in self._steps:
            self._steps[shapes] = self._record(*moved)
        return self._steps[shapes](*moved).to(inputs[0].device)

    def _step(self, *inputs: Tensor) -> Tensor:
        x, *rest = inputs
        return self.network(x.contiguous(memory_format=torch.channels_last), *rest).float()

    def _record(self, *inputs: Tensor) -> Callable[..., Tensor]:
        """The step as a graph over memory of its own; the first calls tune the kernels, which cannot be recorded."""
        held = [value.clone() for value in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step(*held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._step(*held)

        def replay(*values: Tensor) -> Tensor:
            for own, value in zip(held, values, strict=True):
                own.copy_(value)
            graph.replay()
            return output

        return replay
