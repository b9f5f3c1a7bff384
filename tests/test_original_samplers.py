"""Our samplers with converted networks against whole trajectories of the original samplers."""

from collections.abc import Callable
from pathlib import Path

import originals
import published_project
import pytest
import torch
from torch import Tensor

from edadm.systems import samplers
from edadm.systems.originals import convert
from edadm.systems.system import load, load_unet

# of the recorded trajectories: the spacing of the timesteps, eta and guidance
SETTINGS = {
    "cifar10-ddim": ("quadratic", 0.0, 1.0),
    "bedroom-ldm4": ("leading", 1.0, 1.0),
    "church-ldm8": ("leading", 0.0, 1.0),
    "imagenet-ldm4": ("leading", 0.0, 3.0),
    "coco-sd14": ("leading", 0.0, 7.5),
}


def network(kind: str, folder: Path, golden: dict[str, Tensor], guidance: float) -> Callable[[Tensor, Tensor], Tensor]:
    unet = load_unet(folder)
    contexts = ()
    if "context" in golden:
        contexts = (golden["unconditional"][:1], golden["context"][:1])

    @torch.no_grad()
    def call(*inputs: Tensor) -> Tensor:
        return unet(*inputs, return_dict=False)[0]

    return samplers.conditioned(call, contexts, guidance)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_trajectory_is_the_original_one(kind: str, tmp_path: Path) -> None:
    spacing, eta, guidance = SETTINGS[kind]
    convert(kind, originals.write(kind, tmp_path), tmp_path / "out")
    if kind == "coco-sd14":
        published_project.add_text(tmp_path / "out")
    golden = originals.golden(kind)
    diffusion = load(tmp_path / "out").diffusion
    visited = samplers.timesteps(spacing, len(golden["steps"]), 1000, diffusion.offset)
    assert visited == golden["steps"].tolist()
    call = network(kind, tmp_path / "out", golden, guidance)
    if kind == "coco-sd14":
        found = list(samplers.plms(call, golden["noise"], diffusion, visited))
        assert [step for step, *_ in found] == [visited[0], visited[1], *visited[1:]]
        found = [found[1], *found[2:]]  # the first call's own step is made again with the second's output
    else:
        fresh = iter(golden.get("fresh", ()))
        found = list(samplers.ddim(call, golden["noise"], diffusion, visited, eta, lambda: next(fresh)))
        # the original draws noise at every step; here the last one may need none
        assert len(list(fresh)) <= 1
    path = [golden["noise"], *(after for *_, after in found)]
    expected = golden["trajectory"]
    assert len(path) == len(expected)
    for index, (ours, original) in enumerate(zip(path, expected, strict=True)):
        assert (ours - original).abs().max() <= 1e-4 * original.abs().max(), index


def test_the_quadratic_list_is_the_original_one() -> None:
    assert samplers.timesteps("quadratic", 100, 1000) == originals.golden("cifar10-ddim")["steps100"].tolist()
