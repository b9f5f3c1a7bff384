"""Odd and damaged params.yaml: it is taken, or refused in one line that names the file or the key."""

import copy
import json
from pathlib import Path
from typing import Any

from hostile import ODD, attempt, damaged, examples, holder, leaves, replaced
from hypothesis import given
from hypothesis import strategies as st
from small_params import small

from edadm import params

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "params.yaml").read_text()
CONTENT = small()
PLACES = list(leaves(CONTENT))


def test_odd_values(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"

    @examples(80)
    @given(st.sampled_from(PLACES), st.sampled_from(ODD))
    def check(place: tuple, odd: Any) -> None:
        path.write_text(json.dumps(replaced(CONTENT, place, odd)))
        attempt(params.load, path)

    check()


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"

    @examples(40)
    @given(st.sampled_from([place for place in PLACES if isinstance(place[-1], str)]), st.text(max_size=20))
    def check(place: tuple, name: str) -> None:
        changed = copy.deepcopy(CONTENT)
        settings = holder(changed, place)
        settings.pop(place[-1])
        settings[name] = None
        path.write_text(json.dumps(changed))
        attempt(params.load, path)

    check()


def test_damaged_bytes(tmp_path: Path) -> None:
    path, content = tmp_path / "params.yaml", TEXT.encode()

    @examples(80)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path.write_bytes(damaged(content, data))
        attempt(params.load, path)

    check()
