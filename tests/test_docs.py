"""Every command of these documents is executed, in a new folder, as a reader would; only with fewer of everything."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import tiny_pipelines
from command_line import call
from PIL import Image

from edadm import cli

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`edadm ([^`]+)`")
FEWER = "--samples 4 --batch 2 --iterations 2 --threads 1"
# what a reader waits for in the text's Python, and what a test does instead
SMALLER = {"samples=64, batch=16, steps=20": "samples=4, batch=4, steps=2", "iterations=200": "iterations=2"}
SMALLER |= {"num_inference_steps=20": "num_inference_steps=2"}


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the project's own, with what the texts take for granted: models and prompts of the reader's."""
    for name in ("assets", "results", "docs", "params.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    tiny_pipelines.sd1(tmp_path / "my-text-pipeline")
    (tmp_path / "prompts.txt").write_text("\n\n".join(tiny_pipelines.PROMPTS) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> None:
    """One line of a shell block."""
    words = shlex.split(line.partition(" > ")[0])
    if words[0] != "edadm":
        assert words[0] == "eval"
        here = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(["bash", "-ec", f"{line}\ncomplete -p edadm"], env=here, capture_output=True, text=True)
        assert done.returncode == 0 and "edadm" in done.stdout, done.stderr
        return
    if words[1] == "quantize":
        words += [*FEWER.split(), "--steps", "3"]
    if words[1] == "generate":
        words += ["--steps", "2", "--threads", "1"]
    assert call(*words[1:]) == 0, line


def execute(document: Path) -> int:
    """Everything in a document's blocks, in order; how many blocks there were."""
    names: dict = {}
    blocks = BLOCK.findall(document.read_text())
    for language, text in blocks:
        if language == "python":
            for given, instead in SMALLER.items():
                text = text.replace(given, instead)
            exec(compile(text, str(document), "exec"), names)  # noqa: S102
        else:
            for line in text.strip().splitlines():
                run(line)
    return len(blocks)


def test_own_model(reader: Path) -> None:
    assert execute(ROOT / "docs" / "own-model.md") == 9
    sizes = {}
    for name in ("full-precision", "quantized", "sneaker", *(f"boats-{k}" for k in range(100, 104))):
        with Image.open(reader / f"{name}.png") as image:
            sizes[name] = image.size
    assert sizes["quantized"] == sizes["full-precision"] == sizes["sneaker"] == (32, 32)
    assert sizes["boats-100"] == sizes["boats-103"] == (16, 16)
    assert not list(reader.glob("*.scratch"))


def test_the_quick_start_runs_in_a_new_python(reader: Path) -> None:
    first = BLOCK.findall((ROOT / "docs" / "own-model.md").read_text())[0][1]
    here = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", first], env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (reader / "my-pipeline" / "model_index.json").is_file()


def test_concepts(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(ROOT / "docs" / "concepts.md") == 2
    printed = capsys.readouterr().out
    assert "metrics.json fid:" in printed and "kind: latencies" in printed


def test_contributing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = (text.strip() for _, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()))
    assert make == "make test"  # which runs this
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    for command in ("ruff check .", "ruff format --check .", "snakefmt --check", "snakemake --lint", "pytest"):
        assert command in recipe
    monkeypatch.chdir(ROOT)
    for line in made.splitlines():  # the committed files are what the commands print
        run(line)
        assert capsys.readouterr().out == (ROOT / line.partition(" > ")[2]).read_text(), line


def test_every_key_of_params_is_documented() -> None:
    from edadm.params import document, schema

    rows = [line for line in document.text().splitlines() if line.startswith("| `")]
    assert all(line.count(" | ") == 3 and not line.endswith("|  |") for line in rows if "| as `" not in line)
    text = "\n".join(rows)
    for kind in vars(schema).values():
        for entry in fields(kind) if is_dataclass(kind) and kind is not schema.Params else ():
            assert re.search(rf"[`.]{entry.name}[`.]", text), f"{kind.__name__}.{entry.name}"


@pytest.mark.parametrize("name", ["own-model", "concepts", "differences"])
def test_commands_inside_sentences(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for command in INLINE.findall((ROOT / "docs" / f"{name}.md").read_text()):
        words = command.split()
        assert words[0] in cli.cli.commands
        if len(words) > 1:
            run(f"edadm {command}")
            assert capsys.readouterr().out


@pytest.mark.parametrize("name", ["docs/own-model.md", "docs/concepts.md", "docs/differences.md", "README.md"])
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert link.startswith("https://") or (document.parent / link).exists(), link


def test_every_field_that_the_differences_name_exists() -> None:
    from edadm.params import Recipe, Reconstruction

    known = {*Recipe.__dataclass_fields__, *Reconstruction.__dataclass_fields__}
    text = (ROOT / "docs" / "differences.md").read_text()
    named = {"eight_bit", "sixteen_bit_inputs", "bias_correction", "eight_bit_full_resolution", "split_shortcut"}
    assert named <= known and all(f"`{name}`" in text for name in named)
