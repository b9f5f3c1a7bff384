"""params.yaml as plain containers: refused when it is no YAML, or YAML that is much larger than its text."""

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from edadm.errors import InputError

# of the project's own file, twenty times as many values and ten times as deep
LARGEST = 50_000
DEEPEST = 100
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast; not every PyYAML has it


def text_of(path: Path) -> str:
    """The text of ``path``; InputError, one line, when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run from the project's folder or give --params") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def parse(text: str, path: Path) -> Any:
    """The content of ``text``, which is in ``path``, as OmegaConf reads it; InputError when it cannot be used."""
    try:
        _check_size(text)
        return OmegaConf.load(io.StringIO(text))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: {line}not valid YAML ({error.problem})") from error
    except (yaml.YAMLError, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        # OSError: no mapping; the last four: a date without such a day, a number without digits, and so on
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())[:200]})") from error


def _check_size(text: str) -> None:
    """YAMLError when the text stands for too many values, too deep ones, or what is somewhere else.

    An alias is a copy of what it refers to, so that a few lines can stand for more than any memory holds. What it
    would be is counted from the parser's events, which are few.
    """
    sizes: dict[str, int] = {}  # of what has an anchor
    counts, anchors = [0], [None]  # of each open collection, and of the file
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = counts.pop(), anchors.pop()
            counts[-1] += size
            if anchor:
                sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in anchors:
                raise yaml.YAMLError(f"line {event.start_mark.line + 1}: *{event.anchor} is within itself")
            counts[-1] += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            if "${" in event.value:  # OmegaConf would put another value or the environment's there, DVC would not
                raise yaml.YAMLError(f"line {event.start_mark.line + 1}: ${{…}} has no meaning here")
            counts[-1] += 1
        line = event.start_mark.line + 1
        if counts[-1] > LARGEST:
            raise yaml.YAMLError(f"line {line}: more than {LARGEST} values")
        if len(counts) > DEEPEST:
            raise yaml.YAMLError(f"line {line}: more than {DEEPEST} levels")
