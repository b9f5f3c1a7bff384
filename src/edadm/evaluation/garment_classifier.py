"""The feature extractor of the embedded systems: a small convolutional Fashion-MNIST classifier.

It takes Inception's place where Inception says little (32x32 grey images) and cannot ship. Features:
``pooled`` (n, 128) for FID, KID and precision/recall, ``spatial`` (n, 448) for sFID, in ADM's NHWC order,
``logits`` (n, 10) for IS and the class-wise numbers.
"""

from torch import Tensor, nn

SPATIAL_CHANNELS = 7  # as ADM's evaluator takes the first 7 channels of an early layer


class GarmentClassifier(nn.Module):
    """Six 3x3 convolutions in three levels, a 128-unit feature layer and 10 logits."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), features: int = 128, classes: int = 10) -> None:
        super().__init__()
        levels, previous = [], 1
        for width in widths:
            levels.append(
                nn.Sequential(
                    *(nn.Conv2d(previous, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
                    *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
                    nn.MaxPool2d(2),
                )
            )
            previous = width
        self.levels = nn.ModuleList(levels)
        self.features = nn.Sequential(nn.Linear(previous, features), nn.ReLU())
        self.dropout = nn.Dropout(0.3)
        self.classify = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features of images (n, 1, 32, 32), float in [-1, 1]."""
        x = images
        for index, level in enumerate(self.levels):
            x = level(x)
            if index == 1:
                spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        pooled = self.features(x.mean((2, 3)))
        return {"pooled": pooled, "spatial": spatial, "logits": self.classify(self.dropout(pooled))}


def to_float(images: Tensor) -> Tensor:
    """uint8 images to the float range [-1, 1] that the classifier was trained on."""
    return images.float() / 127.5 - 1
