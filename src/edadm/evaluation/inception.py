"""Inception-v3 of FID (Szegedy et al. 2015, TensorFlow's weights of December 2015) as the metrics here want it."""

import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from edadm.errors import InputError

CHUNK = 50  # images at a time: 299x299 features of more take gigabytes
SPATIAL_CHANNELS = 7  # of 192, as ADM's evaluator takes them


class FeatureExtractorInception(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception with the spatial features of sFID: uint8 (n, 1 or 3, H, W) in, float32 out.

    ``spatial`` (n, 2023) are the first 7 channels of ADM's ``mixed_6/conv``, here ``Mixed_6d.branch1x1``, 17x17 each,
    height, width, channel. ``feature_extractor_weights_path`` is torch-fidelity's or pytorch-fid's weights file.
    """

    WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
    KNOWS_LABELS = False  # its 1008 classes are in another order than ImageNet's

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | Path, **kwargs: object
    ) -> None:
        path = Path(feature_extractor_weights_path)
        try:
            torch.load(path, weights_only=True)  # refuses code, which torch-fidelity's own loading would run
            super().__init__(name, features_list, feature_extractor_weights_path=str(path), **kwargs)
        except FileNotFoundError as error:
            raise InputError(f"{name}: no weights at {path}") from error
        except (OSError, RuntimeError, pickle.UnpicklingError, AttributeError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{name}: {path} does not hold this extractor's weights ({reason[:200]})") from error
        self.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, _: object, __: object, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).to(torch.float32)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The requested features of uint8 images (n, 1 or 3, H, W), resized to 299x299 as TensorFlow 1 does."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        chunks = [self._of_chunk(chunk) for chunk in images.split(CHUNK)]
        return tuple(torch.cat([chunk[name] for chunk in chunks]) for name in self.features_list)

    def _of_chunk(self, images: Tensor) -> dict[str, Tensor]:
        asked = self.features_list
        self.features_list = [name for name in asked if name != "spatial"]
        try:
            found = dict(zip(self.features_list, super().forward(images), strict=True))
        finally:
            self.features_list = asked
        return found | {"spatial": self._spatial}

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names that can be asked for."""
        return (*FeatureExtractorInceptionV3.get_provided_features_list(), "spatial")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Which features a metric takes: isc, fid, kid, prc, and our sfid and classes."""
        if metric in ("sfid", "classes"):
            return {"sfid": "spatial", "classes": "logits"}[metric]
        return FeatureExtractorInceptionV3.get_default_feature_layer_for_metric(metric)

    @staticmethod
    def can_be_compiled() -> bool:
        """No: the hook keeps a tensor."""
        return False
