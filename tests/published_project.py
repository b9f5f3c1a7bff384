"""A project whose published systems are narrow originals on a local server: the same formats, few channels."""

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import originals
import torch
import yaml
from fileserver import FileServer
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import CLIPConfig, CLIPModel

from edadm.evaluation import real_images
from edadm.systems import text

ROOT = Path(__file__).parent.parent
WORDS = ["a", "an", "the", "cat", "dog", "sits", "on", "in", "red", "blue", "tree", "house", "car"]


def captions(images: int = 30) -> dict:
    """The content of a COCO captions file: two captions an image, not in order."""
    rows = [
        {"image_id": 900 - image, "id": 1000 * (2 - number) + image, "caption": f" {words} \n"}
        for image in range(images)
        for number in (0, 1)
        for words in [f"{WORDS[image % 13]} {WORDS[(image * 7 + number) % 13]} {WORDS[image // 13]}"]
    ]
    return {"info": {}, "images": [], "annotations": rows}


def text_files(folder: Path) -> dict[str, Path]:
    """A vocabulary of letters, which the narrow text model has words for, no merges, and captions."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    contents = {
        "vocabulary": json.dumps({word: place for place, word in enumerate(words)}),
        "merges": "#version: 0.2\n",
        "captions": json.dumps(captions()),
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    return {name: folder / name for name in contents}


def add_text(folder: Path) -> None:
    """Give a converted text-to-image checkpoint what comes in files of its own: a tokenizer and prompts."""
    files = text_files(folder / "files")
    text.write(folder, files["vocabulary"], files["merges"], text.captions(files["captions"]))
    shutil.rmtree(folder / "files")


class _Blank(FeatureExtractorInceptionV3):
    """Inception with torch's initial weights."""

    def load_state_dict(self, *_: object, **__: object) -> None:
        pass


def untrained_inception(path: Path) -> Path:
    """A file of Inception's weights in the true format, random, with features that spread."""
    torch.save({}, path)
    torch.manual_seed(0)
    state = _Blank("blank", ["2048"], feature_extractor_weights_path=str(path)).state_dict()
    state = {name: each * 2.5 if name.endswith("conv.weight") else each for name, each in state.items()}
    torch.save(state, path)
    return path


def cifar_archive(path: Path, images: np.ndarray) -> Path:
    """CIFAR-10's binary archive of images (5k, 32, 32, 3)."""
    with tarfile.open(path, "w:gz") as archive:
        for number, part in enumerate(np.split(images, 5), 1):
            rows = part.transpose(0, 3, 1, 2).reshape(len(part), -1)
            content = np.concatenate([np.full((len(part), 1), 7, np.uint8), rows], 1).tobytes()
            info = tarfile.TarInfo(real_images.CIFAR.format(number))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def narrow_clip(path: Path) -> CLIPModel:
    """A CLIP of few channels that knows the words of ``text_files``, its weights written to ``path``."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    words = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=sizes | words | {"projection_dim": 32},
        vision_config=sizes | {"patch_size": 8, "image_size": 32, "projection_dim": 32},
        projection_dim=32,
    )
    model = CLIPModel(config).eval()
    save_file(model.state_dict(), path)
    return model


def _real_images(folder: Path, settings: dict, images: np.ndarray, server: FileServer) -> None:
    """Put real images where a system's ``reference`` looks for them: CIFAR-10's archive, a zip, or a folder."""
    if settings.get("size"):
        settings["size"] = 64
    if "file" not in settings:
        (folder / settings["images"]).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / settings["images"] / f"{number}.png")
        return
    path = folder / "served" / settings["file"]["name"]
    if path.suffix != ".zip":
        cifar_archive(path, images)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for number, image in enumerate(images):
                content = io.BytesIO()
                Image.fromarray(image).save(content, "png")
                archive.writestr(f"val2014/{number:012d}.png", content.getvalue())
    _served(server, settings["file"], path)


def _served(server: FileServer, description: dict, path: Path) -> None:
    """Serve ``path`` in the place of a described file, zipped where that one is."""
    if description.get("member"):
        packed = path.with_suffix(".zip")
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(path, description["member"])
        path = packed
    content = path.read_bytes()
    server.files[description["name"]] = content
    description["sources"] = [server.url(description["name"])]
    for name in ("size", "sha256", "md5"):
        if name in description:
            description[name] = len(content) if name == "size" else hashlib.new(name, content).hexdigest()


def write(folder: Path, server: FileServer) -> dict:
    """Write params.yaml to ``folder``: the project's own, with narrow originals behind its URLs and short settings."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for kind, settings in params["published"]["systems"].items():
        files = settings["checkpoint"]["files"]
        paths = {"weights": originals.write(kind, folder / "served" / kind)}
        if len(files) > 1:
            paths |= text_files(folder / "served" / kind)
        for name, path in paths.items():
            _served(server, files[name], path)
        settings["checkpoint"]["side"] = 16
        settings["sampler"]["steps"] = 4
        settings["calibration"] |= {"samples": 6, "batch": 4}
        # ten images are the fewest that every measure takes
        settings["sampling"] |= {"seed": 10, "batch": 4, "shard": 4, "images": {"demo": 10, "full": 10}}
    tools = params["published"]["tools"]
    _served(server, tools["inception"], untrained_inception(folder / "served" / "inception.pth"))
    narrow_clip(folder / "served" / "clip.safetensors")
    _served(server, tools["clip"], folder / "served" / "clip.safetensors")
    for number, settings in enumerate(params["published"]["systems"].values()):
        images = np.random.default_rng(number).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
        _real_images(folder, settings["reference"], images, server)
    runs = params["published"]["runs"]
    params["published"]["runs"] = {name: run for name, run in runs.items() if run["variant"] != "w8a8"}
    for recipe in params["variants"].values():
        recipe.setdefault("reconstruction", {}).update({"iterations": 1, "batch": 2})
    params["engine"]["threads"] = 1
    params["latency"] = {"rounds": 1, "batches": [1]}
    params["metrics"] = {"kid_subsets": 2, "kid_subset_size": 3, "neighbours": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.rmtree(folder / "served")
    return params
