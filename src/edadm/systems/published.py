"""A published system's checkpoint folder: from its original files, or with random weights."""

from contextlib import ExitStack
from pathlib import Path

from edadm.errors import InputError
from edadm.files import atomic_folder
from edadm.params import OriginalParams
from edadm.params.schema import TEXT_FILES
from edadm.systems import download, originals

COCO_IMAGES = 40504  # of val2014, and so the prompts of its protocol
_MADE = "made"


def _flatten(folder: Path) -> None:
    """Bring what lies in ``folder``/made into ``folder``."""
    for part in (folder / _MADE).iterdir():
        part.rename(folder / part.name)
    (folder / _MADE).rmdir()


def build(params: OriginalParams, out: Path) -> None:
    """Download what is missing of the original files, check them and convert them to the checkpoint folder ``out``.

    InputError when a file cannot be had, is not the published one or not of its format; nothing is written then.
    """
    with ExitStack() as lent, atomic_folder(out) as folder:
        files = {name: lent.enter_context(download.original(file)) for name, file in params.files.items()}
        originals.convert(params.format, files["weights"], folder / _MADE, params.side)
        _flatten(folder)
        if set(TEXT_FILES) <= files.keys():
            from edadm.systems import text

            text.write(folder, files["vocabulary"], files["merges"], text.captions(files["captions"]))


def build_random(params: OriginalParams, out: Path, seed: int = 0) -> None:
    """The same folder in full size with random weights, from no file: for timing and testing every later stage."""
    with atomic_folder(out) as folder:
        originals.random_checkpoint(params.format, folder / _MADE, seed, side=params.side)
        _flatten(folder)
        if set(TEXT_FILES) <= set(params.files):
            from edadm.systems import text

            text.spell(folder, COCO_IMAGES)


def fetch_all(params: OriginalParams) -> list[Path]:
    """Download what is missing of the original files and check them."""
    return [download.fetch(file) for file in params.files.values()]


def require(params: object) -> OriginalParams:
    """``params`` if it is a published checkpoint's; InputError for another system's."""
    if not isinstance(params, OriginalParams):
        raise InputError("this system has no original files: it is not among the published ones of params.yaml")
    return params
