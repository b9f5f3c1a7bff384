"""Let torchvision's CUDA-linked wheel be imported beside a CPU-only torch.

Its extension cannot load there, and the fakes that it then registers for two operators nobody defined fail
the import, which takes diffusers and torch-fidelity down with it. Defining the two mends that. It is done when
torchvision is first looked for, since torch takes a second to import and much of the command line needs neither.
"""

import sys
from importlib.abc import MetaPathFinder


class _Mend(MetaPathFinder):
    """Finds nothing; defines the operators before those that come after it find torchvision."""

    def find_spec(self, name: str, *_: object) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        if torch.version.cuda is None:
            self.library = torch.library.Library("torchvision", "FRAGMENT")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_mend = _Mend()  # kept alive: the operators go with the library object
sys.meta_path.insert(0, _mend)
