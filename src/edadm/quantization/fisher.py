"""How much the network's output depends on each element of an inner output: the diagonal of the Fisher information."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from tqdm import tqdm

from edadm.quantization.network import output

ROWS = 8  # samples per backward pass, whose activations are all kept


def sensitivities(
    unet: nn.Module, modules: Mapping[str, nn.Module], batches: list[tuple[Tensor, ...]], seed: int
) -> dict[str, Tensor]:
    """For every module the weights, with the shape of one sample's output and mean 1, for squared errors of its output.

    BRECQ (Li et al. 2021, section 3.2) weights them with the squared gradient of the task loss. The task loss of a
    denoiser f is 1/2 |f(x) - y|^2, that is -log p(y) of a normal distribution around f(x); its Fisher information takes
    y from that distribution. So y = f(x) + e with e of N(0, I), the gradient at the output is -e, and the weight of an
    element v of an inner output is the mean over the calibration samples of (e . df/dv)^2, everything in full
    precision: E_e[(e . df/dv)^2] = |df/dv|^2. (BRECQ itself takes the divergence of the quantized network's output from
    the full-precision one's as task loss. In full precision that has no gradient at all, and with the units before
    quantized, it would need a pass through the rest of the network for every unit.)

    ``unet`` must be in float mode; ``batches`` are its inputs. A module without any influence gets weights of 1.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}

    def watch(name: str):  # noqa: ANN202
        def add(gradient: Tensor) -> None:
            squares = gradient.detach().square().sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        def hook(_: nn.Module, __: tuple, found: Tensor) -> Tensor:
            if not found.requires_grad:  # nothing before it is learned, as in the time embedding
                found = found.detach().requires_grad_(True)
            found.register_hook(add)
            return found

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    with torch.enable_grad():
        for inputs in tqdm(batches, desc="sensitivities", unit="batch"):
            for rows in zip(*(value.split(ROWS) for value in inputs), strict=True):
                found = output(unet, rows)
                found.backward(torch.randn(found.shape, generator=generator).to(found.device))
    for hook in hooks:
        hook.remove()
    return {name: _normalised(total) for name, total in sums.items()}


def _normalised(total: Tensor) -> Tensor:
    mean = total.mean()
    return total / mean if mean > 0 else torch.ones_like(total)
