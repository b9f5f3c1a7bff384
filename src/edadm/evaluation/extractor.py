"""Feature extractors, registered in torch-fidelity so that its own entry points and ours see the same features.

``EXTRACTORS`` is the one registry. An entry is a torch-fidelity ``FeatureExtractorBase`` that also names
its weights file (``WEIGHTS``) and answers two more questions in ``get_default_feature_layer_for_metric``:
``sfid`` (the spatial features) and ``classes`` (the logits whose largest is the class); ``KNOWS_LABELS`` says whether
those classes are the labels that samples bear.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.utils import create_feature_extractor

from edadm import files
from edadm.errors import InputError
from edadm.evaluation.garment_classifier import GarmentClassifier, to_float
from edadm.evaluation.inception import FeatureExtractorInception


class FeatureExtractorGarments(FeatureExtractorBase):
    """The garment classifier as torch-fidelity wants it: uint8 (n, 1 or 3, 32, 32) in, a tuple of float32 features out.

    ``feature_extractor_weights_path`` is the folder that holds ``model.safetensors``.
    """

    WEIGHTS = "model.safetensors"
    KNOWS_LABELS = True

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | Path | None = None, **_: object
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise InputError(f"{name}: give the folder of its weights (feature_extractor_weights_path)")
        path = Path(feature_extractor_weights_path) / self.WEIGHTS
        self.model = GarmentClassifier()
        try:
            self.model.load_state_dict(load_file(path))
        except FileNotFoundError as error:
            raise InputError(f"{name}: no weights at {path}; `edadm train {name}` makes them") from error
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{name}: {path} does not hold this extractor's weights ({reason[:200]})") from error
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The requested features of uint8 images (n, 1, 32, 32), or (n, 3, 32, 32) with equal channels (a PNG's)."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] not in ((1, 32, 32), (3, 32, 32)):
            raise InputError(
                f"{self.name}: needs uint8 images (n, 1, 32, 32), got {images.dtype} {tuple(images.shape)}"
            )
        grey = images[:, :1]
        if not torch.equal(images, grey.expand_as(images)):
            raise InputError(f"{self.name}: needs grey images, got coloured ones")
        found = self.model(to_float(grey))
        # torch-fidelity's name for the logits without their bias
        found["logits_unbiased"] = found["pooled"] @ self.model.classify.weight.T
        return tuple(found[feature] for feature in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names that can be asked for."""
        return "pooled", "spatial", "logits_unbiased", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Which features a metric takes: isc, fid, kid, prc, and our sfid and classes."""
        # IS takes the true logits: leaving the bias out is a quirk of the published Inception graph
        layers = {"isc": "logits", "fid": "pooled", "kid": "pooled", "prc": "pooled"}
        return (layers | {"sfid": "spatial", "classes": "logits"})[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """No: it is fast enough, and compiling moves the last bits."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Any valid input."""
        return torch.zeros(1, 1, 32, 32, dtype=torch.uint8)


EXTRACTORS: dict[str, type[FeatureExtractorBase]] = {
    "garment-classifier": FeatureExtractorGarments,
    "inception": FeatureExtractorInception,
}

for _name, _class in EXTRACTORS.items():
    register_feature_extractor(_name, _class)


def _known(name: str) -> type[FeatureExtractorBase]:
    if name not in EXTRACTORS:
        raise InputError(f"unknown extractor {name!r}; known: {', '.join(sorted(EXTRACTORS))}")
    return EXTRACTORS[name]


def create(name: str, folder: Path) -> FeatureExtractorBase:
    """Extractor ``name`` on the CPU with the weights in ``folder`` (or that file), giving all that the metrics need.

    Raises InputError for an unknown name and for missing or wrong weights.
    """
    chosen = _known(name)
    metrics = ("isc", "fid", "sfid", "classes")
    layers = sorted({chosen.get_default_feature_layer_for_metric(metric) for metric in metrics})
    weights = str(folder)
    return create_feature_extractor(name, layers, cuda=False, feature_extractor_weights_path=weights, verbose=False)


def weights_sha256(name: str, folder: Path) -> str:
    """SHA-256 of the weights file that ``create(name, folder)`` loads."""
    path = Path(folder) if Path(folder).is_file() else Path(folder) / _known(name).WEIGHTS
    if not path.is_file():
        raise InputError(f"{name}: no weights at {path}; `edadm train {name}` makes them")
    return files.sha256(path)
