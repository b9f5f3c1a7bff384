"""params.yaml as plain containers: refused when it is no YAML, or YAML that is much larger than its text."""

import re
from pathlib import Path
from typing import Any

import yaml

from edadm.errors import InputError

# of the project's own file, twenty times as many values and ten times as deep
LARGEST = 50_000
DEEPEST = 100
LIBYAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast; not every PyYAML has it
FLOAT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")


class Loader(LIBYAML):
    """PyYAML's, but for what would mislead: no key twice, and 1e-4 is a number, as for DVC; no dates."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
        for first, known in LIBYAML.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """PyYAML's own, but MarkedYAMLError where it would keep the last of several values."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                problem = f"{key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))


def text_of(path: Path) -> str:
    """The text of ``path``; InputError, one line, when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run from the project's folder or give --params") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def parse(text: str, path: Path) -> Any:
    """The content of ``text``, which is in ``path``; InputError when it cannot be used."""
    try:
        _check_size(text)
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: {line}not valid YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        # the last four: a number without digits, and so on
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())[:200]})") from error


def _check_size(text: str) -> None:
    """YAMLError when the text stands for too many values, too deep ones, or what is somewhere else.

    An alias is a copy of what it refers to, so that a few lines can stand for more than any memory holds. What it
    would be is counted from the parser's events, which are few.
    """
    sizes: dict[str, int] = {}  # of what has an anchor
    counts, anchors = [0], [None]  # of each open collection, and of the file
    for event in yaml.parse(text, Loader):
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
            if "${" in event.value:  # as in dvc.yaml, but nobody puts anything there
                raise yaml.YAMLError(f"line {event.start_mark.line + 1}: ${{…}} has no meaning here")
            counts[-1] += 1
        line = event.start_mark.line + 1
        if counts[-1] > LARGEST:
            raise yaml.YAMLError(f"line {line}: more than {LARGEST} values")
        if len(counts) > DEEPEST:
            raise yaml.YAMLError(f"line {line}: more than {DEEPEST} levels")
