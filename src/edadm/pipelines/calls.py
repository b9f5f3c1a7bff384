"""Look at a U-Net's calls while somebody else's code samples with it."""

from collections.abc import Callable, Iterator

from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from edadm.quantization import checkpoint, network


def unet_calls(unet: nn.Module, draw: Callable[[], object]) -> Iterator[dict[str, Tensor]]:
    """The inputs, by name, of every call of ``unet`` while ``draw()`` runs, each once the call is done.

    ``draw`` pauses between them, and ends when the iterator is closed: one that needs the first calls only does not
    pay for the rest. InputError for a U-Net, or a call of it, that cannot be quantized.
    """
    config, original, reader = checkpoint.unet_config(unet), unet.forward, getcurrent()
    before = unet.__dict__.get("forward")  # compiled, or an offloading hook's

    def forward(*args: object, **kwargs: object) -> object:
        output = original(*args, **kwargs)
        inputs = {key: value for key, value in kwargs.items() if key != "return_dict"}
        # copies, for what a sampler calls with may be changed in place before its next call
        reader.switch({name: value.clone() for name, value in network.bind(config, *args, **inputs).items()})
        return output

    drawing = greenlet(draw)
    unet.forward = forward
    try:
        inputs = drawing.switch()
        while not drawing.dead:
            yield inputs
            inputs = drawing.switch()
    finally:
        if not drawing.dead:
            drawing.throw()  # GreenletExit: what draw has open is closed
        del unet.forward
        if before is not None:
            unet.forward = before
