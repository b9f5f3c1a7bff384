"""Let torchvision's CUDA-linked wheel be imported beside a CPU-only torch.

Its extension cannot load there, and the fakes that it then registers for two operators nobody defined fail
the import, which takes diffusers and torch-fidelity down with it. Defining the two mends that.
"""

import torch

if torch.version.cuda is None:
    # kept alive: the operators go with the library object
    _library = torch.library.Library("torchvision", "FRAGMENT")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
