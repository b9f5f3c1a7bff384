"""The project's params.yaml with less of the same: its checks take time, and tests need thousands of them."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
SYSTEM, PUBLISHED = "fashion-ddim", "cifar10-ddim"


def small() -> dict:
    """One of our own systems and one published one, with what is theirs."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    published = content["published"]
    others = {run["recipe"] for run in published["runs"].values() if run["system"] != PUBLISHED} - {"fp32"}
    for part, system in ((content, SYSTEM), (published, PUBLISHED)):
        part["systems"] = {system: part["systems"][system]}
        part["runs"] = {key: run for key, run in part["runs"].items() if run["system"] == system}
    content["pipeline"]["systems"] = [SYSTEM]
    content["variants"] = {key: recipe for key, recipe in content["variants"].items() if key not in others}
    return content
