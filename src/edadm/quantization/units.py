"""Turn a diffusers U-Net into its simulated-quantization form, and find its reconstruction units by tracing.

Nothing here goes by module names, so any U-Net built of diffusers' blocks works.
"""

from dataclasses import dataclass

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edadm.errors import InputError
from edadm.params import Recipe
from edadm.quantization import attention
from edadm.quantization.layers import SimulatedLayer, SimulatedOperand, SplitShortcut, simulated_layers
from edadm.quantization.network import forward

BLOCKS = (ResnetBlock2D, Attention, BasicTransformerBlock)
LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Unit:
    """What FBR learns at once: a block, or a single layer outside every block."""

    name: str
    module: nn.Module
    layers: tuple[str, ...]  # names of its simulated layers, in execution order

    @property
    def kind(self) -> str:
        """``layer`` or ``block``."""
        return "layer" if isinstance(self.module, SimulatedLayer) else "block"


class _Concatenations(TorchFunctionMode):
    """Remembers, for each result of ``torch.cat`` over channels, the channels of its first part."""

    def __init__(self) -> None:
        super().__init__()
        self.first_channels: dict[int, int] = {}
        self._alive: list[Tensor] = []  # an id is only unique while its tensor lives

    def __torch_function__(self, function, types, args=(), kwargs=None):  # noqa: D105, ANN001, ANN204
        result = function(*args, **(kwargs or {}))
        if function is torch.cat and len(args[0]) == 2 and args[0][0].dim() == 4:
            self.first_channels[id(result)] = args[0][0].shape[1]
            self._alive.append(result)
        return result


@torch.no_grad()
def skip_channels(unet: nn.Module, inputs: tuple) -> dict[str, int]:
    """For each 1x1 convolution whose input is a skip concatenation: the channels before the skip's."""
    found = {}
    with _Concatenations() as concatenations:

        def look(name: str):  # noqa: ANN202
            def hook(_: nn.Module, args: tuple) -> None:
                channels = concatenations.first_channels.get(id(args[0]))
                if channels is not None:
                    found[name] = channels

            return hook

        hooks = [
            module.register_forward_pre_hook(look(name))
            for name, module in unet.named_modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        ]
        forward(unet, inputs)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def full_resolution(unet: nn.Module, inputs: tuple) -> set[str]:
    """The convolutions whose output is as large as the network's input: few weights, but they touch every pixel."""
    found = set()

    def look(name: str):  # noqa: ANN202
        def hook(_: nn.Module, __: tuple, output: Tensor) -> None:
            if output.shape[2:] == inputs[0].shape[2:]:
                found.add(name)

        return hook

    convolutions = {name: module for name, module in unet.named_modules() if isinstance(module, nn.Conv2d)}
    hooks = [module.register_forward_hook(look(name)) for name, module in convolutions.items()]
    forward(unet, inputs)
    for hook in hooks:
        hook.remove()
    return found


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    root.get_submodule(parent).register_module(last, module)


def _problem(module: nn.Module) -> str | None:
    """What keeps a module from taking part in a quantized network, or None."""
    if isinstance(module, LAYERS):
        if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
            return f"convolutions with padding {module.padding!r} of mode {module.padding_mode!r} cannot be quantized"
        return None
    # a weight matrix that would stay in float, whatever the kind of layer; embeddings are looked up, not multiplied
    own = module._parameters.values()
    if not isinstance(module, nn.Embedding) and any(value is not None and value.dim() > 1 for value in own):
        return f"{type(module).__name__} layers cannot be quantized"
    return None


def _simulated_attention() -> nn.Module:
    operands = {name: SimulatedOperand(signed=least < 0) for name, (least, _) in attention.OPERANDS.items()}
    product = lambda one, a, other, b: operands[one](a) @ operands[other](b)  # noqa: E731
    return attention.QuantizedAttention(product, operands)


def simulate(unet: nn.Module, inputs: tuple, recipe: Recipe) -> nn.Module:
    """Replace, in place, every convolution and linear layer of ``unet``, and the recipe's attention, by a simulation.

    ``inputs`` are example arguments of one forward pass (to see which shortcuts read a skip concatenation). Raises
    InputError naming the layer that has no integer form here, or the module that has numbers which are not finite.
    """
    for name, module in unet.named_modules():
        problem = _problem(module)
        if problem:
            raise InputError(f"{name}: {problem}")
        for key, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if not torch.isfinite(value).all():
                raise InputError(f"{name}: its {key} holds NaN or infinity")
    named = {name: module for name, module in unet.named_modules() if isinstance(module, LAYERS)}
    for key in ("eight_bit", "sixteen_bit_inputs"):
        missing = [name for name in getattr(recipe, key) if name not in named]
        if missing:
            raise InputError(f"recipe.{key}: the model has no layer {', '.join(missing)}")
    splits = skip_channels(unet, inputs) if recipe.split_shortcut else {}
    eight_bit = set(recipe.eight_bit)
    if recipe.eight_bit_full_resolution:
        touching = full_resolution(unet, inputs)
        weights = {name: layer.weight.numel() for name, layer in named.items()}
        if sum(weights[name] for name in touching) <= recipe.eight_bit_full_resolution * sum(weights.values()):
            eight_bit |= touching
    for name, layer in named.items():
        bits = 8 if name in eight_bit else recipe.weights
        input_bits = 16 if name in recipe.sixteen_bit_inputs else recipe.activations
        if name in splits:
            _replace(unet, name, SplitShortcut(layer, splits[name], bits, input_bits))
        else:
            _replace(unet, name, SimulatedLayer(layer, bits, input_bits))
    if recipe.attention == 8:
        for name, attn in attention.attentions(unet).items():
            attention.check(name, attn)
            attn.set_processor(_simulated_attention())
    return unet.requires_grad_(False).eval()


@torch.no_grad()
def find_units(unet: nn.Module, inputs: tuple) -> list[Unit]:
    """The reconstruction units of a simulated U-Net in execution order, by tracing one forward pass.

    Every simulated layer belongs to exactly one unit; a block inside another block belongs to the outer one.
    """
    blocks: dict[str, nn.Module] = {}
    for name, module in unet.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in blocks)
        if isinstance(module, BLOCKS) and not inside:
            blocks[name] = module
    layers = simulated_layers(unet)
    owner = {name: next((block for block in blocks if name.startswith(f"{block}.")), name) for name in layers}
    order: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name, layer in layers.items()
    ]
    starts: list[str] = []
    hooks += [
        unet.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: starts.append(name))
        for name in dict.fromkeys(owner.values())
    ]
    forward(unet, inputs)
    for hook in hooks:
        hook.remove()
    repeated = next((name for name in order if order.count(name) > 1), None)
    if repeated:
        raise InputError(f"{repeated}: the layer runs more than once in a forward pass; that cannot be calibrated")
    idle = set(layers) - set(order)
    if idle:
        raise InputError(f"{sorted(idle)[0]}: the layer takes no part in a forward pass; it cannot be calibrated")
    return [
        Unit(name, unet.get_submodule(name), tuple(layer for layer in order if owner[layer] == name)) for name in starts
    ]
