"""Every command of these documents is executed, in a new folder, as a reader would; only with fewer of everything."""

import re
import shlex
import subprocess
import sys
import types
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_pipelines
import yaml
from command_line import call
from diffusers import DDIMPipeline, DDIMScheduler
from PIL import Image
from test_cuda_engine import small_unet
from workspace import Workspace

from edadm import cli, engines
from edadm.evaluation import samples

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
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


@pytest.fixture
def narrow_assets(reader: Path) -> Path:
    """The project's models in the reader's folder are tiny ones, for images of the same size."""
    (reader / "assets").unlink()
    DDIMPipeline(tiny.unet(size=32), DDIMScheduler()).save_pretrained(reader / "assets/fashion-ddim")
    tiny.latent_checkpoint(reader / "assets/fashion-ldm", classes=10)
    return reader


def run(line: str) -> None:
    """One line of a shell block."""
    words = shlex.split(line.partition(" > ")[0])
    if words[0] == "trtexec":
        return  # needs TensorRT and a GPU, as the text says
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
            for line in filter(None, text.replace("\\\n", "").splitlines()):
                run(line)
    return len(blocks)


def test_own_model(narrow_assets: Path) -> None:
    assert execute(ROOT / "docs" / "own-model.md") == 9
    sizes = {}
    for name in ("full-precision", "quantized", "sneaker", *(f"boats-{k}" for k in range(100, 104))):
        with Image.open(narrow_assets / f"{name}.png") as image:
            sizes[name] = image.size
    assert sizes["quantized"] == sizes["full-precision"] == sizes["sneaker"] == (32, 32)
    assert sizes["boats-100"] == sizes["boats-103"] == (16, 16)
    assert not list(narrow_assets.glob("*.scratch"))


def test_the_quick_start_runs_in_a_new_python(narrow_assets: Path) -> None:
    first = BLOCK.findall((ROOT / "docs" / "own-model.md").read_text())[0][1]
    here = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", first], env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (narrow_assets / "my-pipeline" / "model_index.json").is_file()


def test_concepts(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(ROOT / "docs" / "concepts.md") == 2
    printed = capsys.readouterr().out
    assert "metrics.json fid:" in printed and "kind: latencies" in printed


@pytest.fixture
def own_results(reader: Path) -> Path:
    """A reader who has run the demo; its quantized networks are tiny ones here."""
    (reader / "results").unlink()
    for variant, bits in (("w8a8", 8), ("w4a8", 4)):
        tiny.save(reader / "results/fashion-ddim" / variant / "quantized", small_unet(), bits=bits)
    source = reader / "results/fashion-ddim/checkpoint"
    small_unet().save_pretrained(source / "unet")
    DDIMScheduler().save_pretrained(source / "scheduler")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    system = params["systems"]["fashion-ddim"]
    system["sampler"]["steps"] = 2
    system["sampling"] |= {"batch": 2, "shard": 4, "images": {"demo": 4, "full": 4}}
    params["metrics"]["kid_subset_size"] = 4
    (reader / "params.yaml").unlink()
    (reader / "params.yaml").write_text(yaml.safe_dump(params))
    return reader


def test_export(own_results: Path) -> None:
    assert execute(ROOT / "docs" / "export.md") == 3
    assert (own_results / "exported/trt/model.onnx").is_file()
    run("edadm deploy --quantized results/fashion-ddim/w8a8/quantized --out engine")
    words = "--engine engine --checkpoint results/fashion-ddim/checkpoint --scratch scratch/cpu --out drawn"
    run(f"edadm sample fashion-ddim {words}")
    images = []
    for folder in ("exported/samples", "drawn"):
        found = samples.open_folder(own_results / folder, range(100000, 100004))
        assert found.shape == (8, 8, 1)
        images.append(np.concatenate(list(samples.batches(found, 4))).astype(int))
    assert np.abs(images[0] - images[1]).mean() < 1  # of 255


def test_add_an_engine(own_results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, module), (_, proof) = BLOCK.findall((ROOT / "docs" / "add-an-engine.md").read_text())
    made = types.ModuleType("edadm.engines.exact")
    exec(compile(module, "exact.py", "exec"), vars(made))  # noqa: S102
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(engines, "DEVICES", (*engines.DEVICES, "exact"))
    here = "torch.randn(2, 1, 32, 32)"
    assert here in proof
    exec(compile(proof.replace(here, "torch.randn(2, 1, 8, 8)"), "proof.py", "exec"), {})  # noqa: S102


@pytest.mark.parametrize("name", ["README.md", "docs/published-systems.md", "docs/remotes.md"])
def test_commands_of_the_pipeline(name: str, space: Workspace, reader: Path) -> None:
    """Snakemake and DVC run in a copy of the project with a stub for `edadm`; whole targets run in test_workflow.py."""
    tiny_pipelines.sd1(reader / "my-pipeline")
    space.call("git", "commit", "-q", "--allow-empty", "-m", "so that HEAD has a parent")
    elsewhere = {
        "make": lambda words: re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE),
        "python": lambda words: words[1] == "-m" or (ROOT / words[1]).is_file(),  # minutes, or as in test_remotes.py
        "git": lambda words: words[1] == "clone",
        # test_workflow.py runs whole targets, test_tools.py what shows results, test_remotes.py the rest
        "snakemake": lambda words: words[-1] in ("-n", "2", "full", "ablation", "paper") or "--report" in words,
        "dvc": lambda words: words[1] in ("repro", "metrics", "plots", "remote", "push", "pull") or words[2] == "show",
    }
    text = "".join(FENCED.findall((ROOT / name).read_text()))
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    for line in filter(None, dict.fromkeys(lines)):
        words = shlex.split(line)
        if words[0] in elsewhere and elsewhere[words[0]](words):
            continue
        if words[0] in ("snakemake", "dvc"):
            done = space.call(*words, *(["-n"] if words[0] == "snakemake" else []))
            assert "Traceback" not in done.stdout and "Usage" not in done.stdout, line
        else:
            run(line.replace("--out results/", "--out "))  # the project's own results are not for a test to change


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
    from edadm.params import document, schema, train
    from edadm.params.kinds import key_of

    rows = [line for line in document.text().splitlines() if line.startswith("| `")]
    assert all(line.count(" | ") == 3 and not line.endswith("|  |") for line in rows if "| as `" not in line)
    text = "\n".join(rows)
    for kind in (vars(schema) | vars(train)).values():
        for entry in fields(kind) if is_dataclass(kind) and kind is not schema.Params else ():
            assert re.search(rf"[`.]{key_of(entry)}[`.\[]", text), f"{kind.__name__}.{entry.name}"


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


@pytest.mark.parametrize("document", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert link.startswith("https://") or (document.parent / link).exists(), link


def test_every_field_that_the_differences_name_exists() -> None:
    from edadm.params import Recipe, Reconstruction

    known = {*Recipe.__dataclass_fields__, *Reconstruction.__dataclass_fields__}
    text = (ROOT / "docs" / "differences.md").read_text()
    named = {
        "eight_bit",
        "sixteen_bit_inputs",
        "bias_correction",
        "eight_bit_full_resolution",
        "split_shortcut",
        "tuning",
    }
    assert named <= known and all(f"`{name}`" in text for name in named)
