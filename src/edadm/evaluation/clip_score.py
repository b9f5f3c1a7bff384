"""CLIP score: how well images fit their captions (Hessel et al. 2021), 100 times the cosine of CLIP's embeddings.

The network is CLIP as transformers has it; its sizes are read off the weights (heads are 64 wide in every published
CLIP), so that one safetensors file is all it takes.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from edadm.errors import InputError

HEAD = 64
TOKENS = 77
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def _config(state: dict[str, Tensor]) -> CLIPConfig:
    """The sizes of the network whose weights these are."""

    def part(name: str) -> dict[str, int]:
        first = state[f"{name}.encoder.layers.0.mlp.fc1.weight"]
        layers = {key.split(".")[3] for key in state if key.startswith(f"{name}.encoder.layers.")}
        return {
            "hidden_size": first.shape[1],
            "intermediate_size": first.shape[0],
            "num_hidden_layers": len(layers),
            "num_attention_heads": first.shape[1] // HEAD,
        }

    projection = len(state["visual_projection.weight"])
    patches = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    side = round((len(state["vision_model.embeddings.position_embedding.weight"]) - 1) ** 0.5)
    vision = part("vision_model") | {"patch_size": patches, "image_size": side * patches, "projection_dim": projection}
    words = len(state["text_model.embeddings.token_embedding.weight"])
    end = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    text = part("text_model") | {"vocab_size": words, "projection_dim": projection, **end}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)


class ClipScore:
    """CLIP with its tokenizer: ``scorer(images, captions)`` gives a score per image."""

    def __init__(self, weights: Path, tokenizer: Path) -> None:
        try:
            state = {name: each.float() for name, each in load_file(weights).items() if "position_ids" not in name}
            with torch.device("meta"):
                self.model = CLIPModel(_config(state))
            self.model.load_state_dict(state, strict=False, assign=True)
            lacking = [name for name, each in self.model.named_parameters() if each.is_meta]
            if lacking:
                raise KeyError(lacking[0])
            # what is no parameter stays on the meta device otherwise: the numbers of the positions
            for part in (self.model.text_model.embeddings, self.model.vision_model.embeddings):
                part.position_ids = torch.arange(part.position_ids.shape[-1])[None]
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"{weights}: does not hold CLIP's weights ({' '.join(str(error).split())[:200]})"
            ) from error
        if not (tokenizer / "vocab.json").is_file():
            raise InputError(f"{tokenizer}: holds no tokenizer of CLIP's; give the checkpoint folder of the system")
        self.tokenizer = CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
        self.model.eval().requires_grad_(False)

    def _pixels(self, images: np.ndarray) -> Tensor:
        """(n, H, W, 3) uint8 to (n, 3, side, side) float32: the short side resized (bicubic), the middle cut out."""
        side = self.model.config.vision_config.image_size
        rows = []
        for image in images:
            picture = Image.fromarray(image.squeeze()).convert("RGB")
            scale = side / min(picture.size)
            picture = picture.resize(
                (max(side, round(picture.width * scale)), max(side, round(picture.height * scale))),
                Image.Resampling.BICUBIC,
            )
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            rows.append(np.asarray(picture.crop((left, top, left + side, top + side))))
        pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 255
        return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, captions: list[str]) -> Tensor:
        """Scores (n,) float64 of images (n, H, W, 3) uint8; captions longer than 77 tokens are cut."""
        settings = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(captions, **settings)
        text = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        vision = self.model.vision_model(pixel_values=self._pixels(images)).pooler_output
        image = self.model.visual_projection(vision)
        return 100 * F.cosine_similarity(text.double(), image.double())
