"""The autoencoder of a latent system, quantized beside its U-Net (the published sizes count it, method.md F.3)."""

from dataclasses import replace

from torch import Tensor, nn

from edadm.errors import InputError
from edadm.params import Recipe
from edadm.quantization.network import FINAL

FOLDER = "vae"  # in a quantized checkpoint and in an engine
ENDS = ("encoder.conv_in", "decoder.conv_out")  # the images' own convolutions: 8-bit weights, as in U-Nets


class RoundTrip(nn.Module):
    """From latents to images and back: one forward pass of the decoder's, then the encoder's layers."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Take latents (n, c, h, w), as the decoder takes them, to images (n, channels, H, W)."""
        images = self.autoencoder.decode(latents).sample
        self.autoencoder.encode(images)
        return images


def recipe(of_unet: Recipe) -> Recipe:
    """The recipe of the autoencoder: the U-Net's widths, ranges and reconstruction.

    What names or finds layers of a U-Net has no meaning here, and one latent's attention stays in float.
    """
    ends = tuple(f"autoencoder.{name}" for name in ENDS)
    unused = {"sixteen_bit_inputs": (), "split_shortcut": False, "eight_bit_full_resolution": 0.0, "attention": 32}
    return replace(of_unet, eight_bit=ends, **unused)


def latents(calibration: dict[str, Tensor], autoencoder: nn.Module | None) -> Tensor:
    """What the decoder is calibrated on: the final latents of a calibration set, as it takes them.

    InputError where there is no autoencoder, or the set has none.
    """
    if autoencoder is None:
        raise InputError("recipe.quantize: vae is not possible, the checkpoint has no autoencoder")
    if FINAL not in calibration:
        raise InputError("recipe.quantize: vae needs a calibration set with the final latents of trajectories")
    return calibration[FINAL] / autoencoder.config.scaling_factor


def decoding(name: str) -> bool:
    """Whether the layer ``name`` of an autoencoder takes part in decoding."""
    return not name.startswith(("encoder.", "quant_conv"))
