"""The published systems from narrow originals on a local server to images, and the project's settings for them."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import published_project
import pytest
import torch
import yaml
from command_line import call
from fileserver import FileServer, serving
from safetensors.torch import load_file
from torch import nn

from edadm import params
from edadm.errors import InputError
from edadm.evaluation import samples
from edadm.params.schema import FORMATS
from edadm.systems import download, estimates, originals, system, text
from edadm.systems.originals.architectures import Widths
from edadm.systems.published import COCO_IMAGES

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, server: FileServer) -> Path:
    folder = tmp_path_factory.mktemp("published")
    published_project.write(folder, server)
    return folder


@pytest.fixture
def project(home: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.setattr(download, "PAUSE", 0)
    monkeypatch.delenv(download.FOLDER, raising=False)
    server.asked.clear()
    return home


def recipe(kind: str, variant: str) -> str:
    return params.load("params.yaml").published.runs[f"{kind}-{variant}"].recipe


def to_images(kind: str, variant: str, of_system: Path) -> Path:
    """From the calibration set to a folder of images, which is returned."""
    folder = of_system / variant
    shared = ("--checkpoint", str(of_system / "checkpoint"), "--scratch", str(folder / "scratch"))
    calibration = ("--calibration", str(of_system / "tdac.safetensors"))
    quantized, engine, drawn = (str(folder / name) for name in ("quantized", "engine-cpu", "samples"))
    assert call("reconstruct", kind, recipe(kind, variant), *shared, *calibration, "--out", quantized) == 0
    assert call("deploy", "--quantized", quantized, "--out", engine) == 0
    if variant != "fp32":
        checked = ("--images", "2", "--out", str(folder / "verification.json"))
        assert call("verify", "--quantized", quantized, "--engine", engine, *calibration, *checked) == 0
        found = json.loads((folder / "verification.json").read_text())
        assert found["layers_in_int8"] == found["layers_in_graph"] and found["worst_layer_error"] <= 1e-6
    assert call("sample", kind, "--engine", engine, "--protocol", "full", *shared, "--out", drawn) == 0
    return Path(drawn)


def measured(kind: str, variant: str, of_system: Path) -> dict:
    """The metrics of a folder of images."""
    folder = of_system / variant
    compared = ("--fp32", str(of_system / "fp32" / "samples"), "--reference", str(of_system / "reference.npz"))
    told = ("--checkpoint", str(of_system / "checkpoint"), "--protocol", "full", "--out", str(folder / "metrics.json"))
    assert call("metrics", kind, variant, "--samples", str(folder / "samples"), *compared, *told) == 0
    return json.loads((folder / "metrics.json").read_text())


# the parts of the three latent ones that these two lack have tests of their own (test_autoencoder.py, test_cli.py,
# test_original_networks.py)
FIRST = ("cifar10-ddim", "coco-sd14")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k not in FIRST)) for k in FORMATS])
def test_from_a_url_to_tables(project: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Originals, real images and the metrics' networks in their true formats, narrow or with random weights.

    All but text to image end with images: what comes then takes all alike.
    """
    results = project / f"results-{kind}"
    of_system = results / kind
    assert call("checkpoint", kind, "--out", str(of_system / "checkpoint")) == 0
    calibration = of_system / "tdac.safetensors"
    made = ("--checkpoint", str(of_system / "checkpoint"), "--out", str(calibration))
    assert call("calibrate", kind, "tdac", *made) == 0
    settings = params.load("params.yaml").system(kind)
    calls = settings.sampler.steps + (settings.sampler.name == "plms")
    assert json.loads(calibration.with_suffix(".json").read_text())["steps"] == calls
    rows = 6 if settings.sampler.guidance == 1 else 12
    assert len(load_file(calibration)["x"]) == rows
    assert call("reference", kind, "--out", str(of_system / "reference.npz")) == 0
    assert len(np.load(of_system / "reference.npz")["features"]) == 10

    drawn = samples.open_folder(to_images(kind, "w4a8", of_system), range(10, 20))
    scale = {"cifar10-ddim": 1, "church-ldm8": 8, "coco-sd14": 8}.get(kind, 4)
    assert drawn.shape == (16 * scale, 16 * scale, 3)
    images = np.concatenate(list(samples.batches(drawn, 10)))
    assert all(image.std() > 1 for image in images) and not np.array_equal(images[0], images[1])
    assert (drawn.labels is not None) == (kind == "imagenet-ldm4")
    assert (drawn.captions is not None) == (kind == "coco-sd14")
    if drawn.captions is not None:
        assert drawn.captions.tolist() == system.load(of_system / "checkpoint").prompts(range(10, 20))
    if kind != "coco-sd14":
        return

    # an image is of its seed's prompt, and none of them may be one of those calibrated on, which other seeds have too
    content = yaml.safe_load(Path("params.yaml").read_text())
    prompts = len(system.load(of_system / "checkpoint").embedder.prompts)
    content["published"]["systems"][kind]["sampling"]["seed"] = settings.calibration.seed + prompts
    Path("overlapping.yaml").write_text(yaml.safe_dump(content))
    words = ("--engine", "none", "--checkpoint", str(of_system / "checkpoint"), "--scratch", "none")
    said = refused(capsys, "--params", "overlapping.yaml", "sample", kind, *words, "--out", "none")
    assert "prompts would be both" in said

    to_images(kind, "fp32", of_system)
    full_precision, quantized = (measured(kind, variant, of_system) for variant in ("fp32", "w4a8"))
    assert full_precision["psnr_fp32"] is None and 0 < quantized["psnr_fp32"] < 100
    for found in (full_precision, quantized):
        assert found["n"] == 10 and found["fid"] > 0 and found["extractor"] == "inception"
        assert found["extractor_sha256"] == params.load("params.yaml").published.tools["inception"].sha256
        assert "clip_score" in found

    timed = ("--checkpoint", str(of_system / "checkpoint"), "--results", str(results))
    assert call("latency", kind, *timed, "--out", str(of_system / "latency-cpu.json")) == 0
    gathered = ("--published", "--results", str(results), "--out")
    assert call("tables", *gathered, str(results / "tables")) == 0
    with (results / "tables" / "quality.csv").open(newline="") as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    assert set(table) == {f"{kind}-fp32", f"{kind}-w4a8"}
    assert float(table[f"{kind}-w4a8"]["fid_ratio"]) == pytest.approx(quantized["fid"] / full_precision["fid"], 1e-4)
    with (results / "tables" / "exactness.csv").open(newline="") as file:
        (exact,) = csv.DictReader(file)
    assert exact["layers_in_int8"] == exact["layers_in_graph"] and float(exact["worst_layer_error"]) <= 1e-6
    assert call("report", *gathered, str(results / "published.html")) == 0
    page = (results / "published.html").read_text()
    assert f"{quantized['fid']:.2f}" in page and "not run here" in page


def test_real_images_that_are_not_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = Path(params.load("params.yaml").system("bedroom-ldm4").reference.images)
    here.rename("moved")
    try:
        missing = refused(capsys, "reference", "bedroom-ldm4", "--out", str(project / "none.npz"))
    finally:
        Path("moved").rename(here)
    assert "no real images of bedroom-ldm4" in missing and "docs/published-systems.md" in missing


def test_formats_are_those_of_the_converters() -> None:
    assert FORMATS == originals.KINDS


def test_the_text_of_a_seed(project: Path) -> None:
    """One caption per image, the first by its id; each prompt encoded alone, so that no batch moves an image."""
    folder = project / "text"
    written = published_project.text_files(project / "written")
    captions = text.captions(written["captions"])
    content = published_project.captions()["annotations"]
    first = {row["image_id"]: row["caption"].strip() for row in sorted(content, key=lambda row: -row["id"])}
    assert sorted(captions) == sorted(first.values()) and captions != [first[image] for image in sorted(first)]
    originals.random_checkpoint("coco-sd14", folder, widths=Widths(4, 2, 0, 12, 0, 64))
    text.write(folder, written["vocabulary"], written["merges"], captions)
    loaded = system.load(folder)
    assert loaded.prompts(range(28, 32)) == [*captions[28:30], *captions[:2]]
    unconditional, conditional = loaded.contexts(range(4), 7.5)
    assert conditional.shape == unconditional.shape == (4, 77, 12)
    assert torch.equal(conditional[2:3], loaded.contexts(range(2, 3), 1.0)[0])
    assert torch.equal(unconditional[0], unconditional[3]) and not torch.equal(unconditional[0], conditional[0])
    with torch.no_grad():
        ids = [52, *(ord(letter) - ord("a") + 26 for letter in "a"), *[53] * 75]  # start, a</w>, end and padding
        reference = loaded.embedder.model(input_ids=torch.tensor([ids])).last_hidden_state
    assert torch.equal(loaded.embedder.encode(["A"]), reference)
    assert torch.equal(loaded.embedder.encode(["a " * 80]), loaded.embedder.encode(["a " * 200]))
    loaded.check_apart(range(0, 10), range(40, 60))
    with pytest.raises(InputError, match="5 of the 30 prompts would be both in the calibration set and evaluated"):
        loaded.check_apart(range(0, 10), range(65, 90))
    (folder / "prompts" / "prompts.txt").unlink()
    with pytest.raises(InputError, match="its text encoder has no prompts/prompts.txt"):
        system.load(folder)


def test_a_file_that_holds_no_captions(tmp_path: Path) -> None:
    for content in ("[]", '{"annotations": []}', '{"annotations": [{"id": 1}]}', "{"):
        (tmp_path / "captions").write_text(content)
        with pytest.raises(InputError, match="captions"):
            text.captions(tmp_path / "captions")


def test_the_protocols_are_the_published_ones() -> None:
    """method.md A.8, B.7 and D."""
    real = params.load(ROOT / "params.yaml").published
    protocols = {
        name: (
            (each.sampler.name, each.sampler.steps, each.sampler.spacing, each.sampler.eta, each.sampler.guidance),
            (each.calibration.samples, each.calibration.batch, each.calibration.diversity_weight),
            (each.calibration.radius, each.sampling.batch, each.sampling.images["full"]),
        )
        for name, each in real.systems.items()
    }
    assert protocols == {
        "cifar10-ddim": (("ddim", 100, "quadratic", 0.0, 1.0), (1024, 1024, 1.2), (3.0, 500, 50000)),
        "bedroom-ldm4": (("ddim", 200, "leading", 1.0, 1.0), (1024, 64, 1.0), (0.3, 50, 50000)),
        "church-ldm8": (("ddim", 500, "leading", 0.0, 1.0), (1024, 64, 1.0), (0.3, 100, 50000)),
        "imagenet-ldm4": (("ddim", 20, "leading", 0.0, 3.0), (1024, 64, 1.2), (3.0, 50, 50000)),
        "coco-sd14": (("plms", 50, "leading", 0.0, 7.5), (256, 8, 5.0), (0.3, 4, 10000)),
    }


def test_the_recipes_are_the_published_ones() -> None:
    real = params.load(ROOT / "params.yaml")
    learned = {name: real.recipe(run).reconstruction for name, run in real.published.runs.items()}
    rates = {name: (each.rate_rounding, each.rate_steps, each.layer_loss) for name, each in learned.items()}
    assert {name: rate for name, rate in rates.items() if not name.endswith("fp32")} == {
        "cifar10-ddim-w8a8": (0.05, 0.001, 0.8),
        "cifar10-ddim-w4a8": (0.5, 0.0005, 0.8),
        "bedroom-ldm4-w8a8": (0.0005, 0.0001, 1.0),
        "bedroom-ldm4-w4a8": (0.01, 0.005, 1.0),
        "church-ldm8-w8a8": (0.05, 0.0001, 1.0),
        "church-ldm8-w4a8": (0.05, 0.0001, 1.0),
        "imagenet-ldm4-w8a8": (0.0001, 0.001, 0.8),
        "imagenet-ldm4-w4a8": (0.5, 0.0001, 0.8),
        "coco-sd14-w8a8": (0.0005, 0.0001, 0.8),
        "coco-sd14-w4a8": (0.03, 0.0001, 0.8),
    }
    effort = {name: (each.iterations, each.batch) for name, each in learned.items()}
    assert effort["church-ldm8-w4a8"] == (5000, 32) and effort["imagenet-ldm4-w8a8"] == (1000, 32)
    assert effort["coco-sd14-w4a8"] == (1000, 2)


def test_no_prompt_is_both_calibrated_on_and_evaluated() -> None:
    each = params.load(ROOT / "params.yaml").system("coco-sd14")
    calibrated = range(each.calibration.seed, each.calibration.seed + each.calibration.samples)
    evaluated = range(each.sampling.seed, each.sampling.seed + each.sampling.images["full"])
    assert {s % COCO_IMAGES for s in calibrated}.isdisjoint(s % COCO_IMAGES for s in evaluated)
    assert len({s % COCO_IMAGES for s in evaluated}) == 10000


def test_systems_prints_what_method_md_states(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters of H.2, sizes of F.3, every source; and the threads of its rate are those that it had."""
    threads = params.load("params.yaml").engine.threads
    torch.set_num_threads(threads + 1)
    assert call("systems") == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    assert f"measured here with {threads} threads" in printed
    rows = {line.split()[0]: line.split() for line in printed.splitlines()[1:6]}
    assert {name: (row[1], *row[-2:]) for name, row in rows.items()} == {
        "cifar10-ddim": ("35,746,307", "35.91", "18.07"),
        "bedroom-ldm4": ("274,056,163", "274.61", "137.67"),
        "church-ldm8": ("294,966,916", "295.64", "148.27"),
        "imagenet-ldm4": ("400,920,579", "401.92", "201.63"),
        "coco-sd14": ("859,520,964", "860.85", "431.31"),
    }
    for settings in params.load("params.yaml").published.systems.values():
        for file in settings.checkpoint.files.values():
            assert file.name in printed and file.sources[0] in printed


def test_counted_products_are_those_of_a_closed_form() -> None:
    layer, x = nn.Conv2d(3, 8, 3, padding=1, device="meta"), torch.empty(2, 3, 10, 10, device="meta")
    assert estimates._macs(layer, x) == 2 * 100 * 8 * 3 * 9


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert call(*words) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("edadm: ")
    return message


def test_what_goes_wrong_is_one_line_and_a_later_run_goes_on(
    project: Path, server: FileServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(download.FOLDER, str(project / "fresh"))
    monkeypatch.setattr(download, "RECORDED", project / "fresh.sha256")
    settings = params.load("params.yaml").published.systems
    weights = {kind: each.checkpoint.files["weights"].name for kind, each in settings.items()}
    bedroom, cifar = weights["bedroom-ldm4"], weights["cifar10-ddim"]
    out = ("--out", str(project / "faulty"))
    good = dict(server.files)
    # the connection breaks, and again before anything more comes
    server.cuts = [2 * download.CHUNK, 0, 0, 0]
    assert "broke after" in refused(capsys, "checkpoint", "cifar10-ddim", *out)
    server.asked.clear()
    assert call("checkpoint", "cifar10-ddim", *out) == 0
    assert server.asked == [(cifar, f"bytes={2 * download.CHUNK}-")]
    shutil.rmtree(project / "faulty")
    # a zip without its end, then a zip of something else, then another system's checkpoint, then the right one
    server.files[bedroom] = good[bedroom][:-30]
    assert "not a whole zip file" in refused(capsys, "checkpoint", "bedroom-ldm4", *out)
    server.files[bedroom] = good[weights["church-ldm8"]]
    assert "not a bedroom-ldm4 checkpoint" in refused(capsys, "checkpoint", "bedroom-ldm4", *out)
    (project / "fresh" / bedroom).unlink()
    server.files[bedroom] = good[bedroom]
    assert "is not the file of the first download" in refused(capsys, "checkpoint", "bedroom-ldm4", *out)
    (project / "fresh.sha256").unlink()
    assert call("checkpoint", "bedroom-ldm4", *out) == 0
    shutil.rmtree(project / "faulty")
    # a log-in is asked for
    server.statuses[weights["coco-sd14"]] = 403
    assert "asks for a log-in or an accepted licence" in refused(capsys, "checkpoint", "coco-sd14", *out)
    server.statuses.clear()
    server.files.update(good)
    assert not (project / "faulty").exists() and not list((project / "fresh").glob("*.part*"))
    # `download` alone is enough for a machine without a network
    assert call("download", "coco-sd14") == 0
    server.asked.clear()
    assert call("checkpoint", "coco-sd14", *out) == 0 and server.asked == []
    assert "has no original files" in refused(capsys, "download", "fashion-ddim")
