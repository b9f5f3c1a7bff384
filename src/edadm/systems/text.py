"""The context of a text-conditional U-Net: what CLIP's text model makes of a prompt (method of Stable Diffusion v1).

A checkpoint folder holds the model in ``text_encoder/``, its byte-pair vocabulary in ``tokenizer/`` and the prompts of
the system's protocol in ``prompts/prompts.txt``, one a line: seed k shows prompt k modulo their number.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from edadm.errors import InputError
from edadm.files import atomic_write

TOKENS = 77  # CLIP's positions; longer prompts are cut
MODEL, TOKENIZER, PROMPTS = "text_encoder", "tokenizer", Path("prompts") / "prompts.txt"
SHUFFLE_SEED = 1234  # of the images' order, EDA-DM's seed


class TextEncoder:
    """A tokenizer, CLIP's text model and the protocol's prompts."""

    def __init__(self, tokenizer: CLIPTokenizer, model: CLIPTextModel, prompts: tuple[str, ...]) -> None:
        self.tokenizer, self.model, self.prompts = tokenizer, model, prompts

    def shown(self, seeds: range) -> list[str]:
        """The prompt of each seed."""
        return [self.prompts[seed % len(self.prompts)] for seed in seeds]

    def conditional(self, seeds: range) -> Tensor:
        """Contexts (n, 77, width) float32 of the seeds' prompts."""
        return self.encode(self.shown(seeds))

    def unconditional(self, count: int) -> Tensor:
        """``count`` times the context (77, width) of the empty prompt."""
        return self.encode([""]).expand(count, -1, -1)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Contexts (n, 77, width): the last layer's states, normalized, padding included as in training.

        One prompt at a time: a product's last bits depend on its batch, an image must not.
        """
        settings: dict[str, Any] = {"padding": "max_length", "max_length": TOKENS, "truncation": True}
        rows = [self.tokenizer([prompt], **settings, return_tensors="pt").input_ids for prompt in prompts]
        return torch.cat([self.model(input_ids=row).last_hidden_state for row in rows])

    def check_apart(self, one: range, other: range) -> None:
        """InputError when seeds of the two ranges show the same prompt."""
        count = len(self.prompts)
        shared = {seed % count for seed in one} & {seed % count for seed in other}
        if shared:
            raise InputError(
                f"calibration.seed, sampling.seed: {len(shared)} of the {count} prompts would be both in the "
                "calibration set and evaluated; move one of the seeds"
            )


def captions(path: Path) -> list[str]:
    """One caption per image of a COCO captions file (captions_val2014.json).

    Of an image's captions the one with the lowest id; images in the order of their ids, then shuffled by
    ``SHUFFLE_SEED``. White space is made single blanks. InputError when the file is of another kind.
    """
    try:
        annotations = json.loads(path.read_bytes())["annotations"]
        rows = sorted((each["image_id"], each["id"], " ".join(each["caption"].split())) for each in annotations)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a file of COCO captions ({type(error).__name__}: {error})") from error
    first = {image: caption for image, _, caption in reversed(rows)}  # the lowest id is written last
    if not first:
        raise InputError(f"{path}: holds no captions")
    ordered = [first[image] for image in sorted(first)]
    return [ordered[place] for place in np.random.default_rng(SHUFFLE_SEED).permutation(len(ordered))]


def write(folder: Path, vocabulary: Path, merges: Path, prompts: list[str]) -> None:
    """Put the tokenizer and the prompts into the checkpoint ``folder``; InputError when they do not work together."""
    (folder / TOKENIZER).mkdir()
    shutil.copyfile(vocabulary, folder / TOKENIZER / "vocab.json")
    shutil.copyfile(merges, folder / TOKENIZER / "merges.txt")
    atomic_write(folder / PROMPTS, "".join(f"{prompt}\n" for prompt in prompts))
    load(folder).encode(["a word"])


def load(folder: Path) -> TextEncoder:
    """What ``write`` and the converter put into the checkpoint ``folder``; InputError when it is missing or damaged."""
    parts = (f"{MODEL}/config.json", f"{MODEL}/model.safetensors", f"{TOKENIZER}/vocab.json", f"{TOKENIZER}/merges.txt")
    for part in (*parts, PROMPTS):
        if not (folder / part).is_file():
            raise InputError(f"{folder}: its text encoder has no {part}")
    prompts = tuple((folder / PROMPTS).read_text().splitlines())
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
        model = CLIPTextModel.from_pretrained(folder / MODEL, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: its text encoder cannot be loaded ({' '.join(str(error).split())[:300]})"
        ) from error
    known = model.config.vocab_size
    if len(tokenizer) > known or not prompts:
        raise InputError(f"{folder}: {len(tokenizer)} words for a text model of {known}, {len(prompts)} prompts")
    return TextEncoder(tokenizer, model.eval().requires_grad_(False), prompts)


def spell(folder: Path, prompts: int) -> None:
    """A tokenizer that knows only single bytes, and numbered prompts: for a checkpoint of random weights."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, printable), *(chr(256 + place) for place in range(256 - len(printable)))]  # CLIP's bytes
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary, merges = folder / "vocabulary.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({word: place for place, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    write(folder, vocabulary, merges, [f"prompt {number}" for number in range(prompts)])
    vocabulary.unlink()
    merges.unlink()
