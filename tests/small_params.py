"""The project's params.yaml with less of the same: its checks take time, and tests need thousands of them."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PUBLISHED = "cifar10-ddim"


def small() -> dict:
    """Everything but the published systems besides the first, and what is theirs alone."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    published = content["published"]
    published["systems"] = {PUBLISHED: published["systems"][PUBLISHED]}
    others = {run["recipe"] for run in published["runs"].values() if run["system"] != PUBLISHED} - {"fp32"}
    published["runs"] = {key: run for key, run in published["runs"].items() if run["system"] == PUBLISHED}
    content["variants"] = {key: recipe for key, recipe in content["variants"].items() if key not in others}
    return content
