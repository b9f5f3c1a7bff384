"""The tables and the page, from results made up here in the shapes that the stages write."""

import base64
import csv
import dataclasses
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edadm.errors import InputError
from edadm.params import CheckpointParams, Params, PipelineParams, Recipe, Reconstruction, Run, load
from edadm.report import full_size, page, plots, tables

ROOT = Path(__file__).parent.parent
VARIANTS = ("fp32", "w8a8", "w4a8", "w4a8-rtn")
FID = {"fp32": 8.0, "w8a8": 8.2, "w4a8": 9.0, "w4a8-rtn": 20.0}
FILE_BYTES = {"fp32": 6_400_000, "w8a8": 1_660_000, "w4a8": 890_000, "w4a8-rtn": 890_000}
UNITS = [
    "conv_in",
    *(f"down_blocks.{level}.resnets.0" for level in range(4)),
    "mid_block.resnets.0",
    "mid_block.attentions.0",
    "mid_block.resnets.1",
    *(f"up_blocks.{level}.resnets.{index}" for level in range(4) for index in range(2)),
    "conv_out",
]


def make_params(variants: tuple[str, ...] = VARIANTS) -> Params:
    """Parameters with one system and ``variants``, whose names say their bits."""

    def recipe(variant: str) -> Recipe:
        if variant == "fp32":
            return Recipe(weights=32, activations=32)
        learned = variant in ("w8a8", "w4a8")
        return Recipe(
            weights=int(variant[1]),
            activations=8,
            ranges="mse" if learned else "minmax",
            reconstruction=Reconstruction(method="fbr" if learned else "none"),
        )

    own, checkpoint = load(ROOT / "params.yaml"), CheckpointParams(source="assets/fashion-ddim", sha256="ab" * 32)
    return dataclasses.replace(
        own,
        pipeline=PipelineParams(systems=["fashion-ddim"], calibrators=["tdac"], devices=["cpu"]),
        runs={
            f"fashion-ddim-{variant}": Run(system="fashion-ddim", variant=variant, calibrator="tdac")
            for variant in variants
        },
        systems={"fashion-ddim": dataclasses.replace(own.systems["fashion-ddim"], checkpoint=checkpoint)},
        variants={variant: recipe(variant) for variant in variants},
    )


def make_metrics(variant: str, fid: float, n: int = 2000) -> dict:
    fp32 = variant == "fp32"
    return {
        "system": "fashion-ddim",
        "variant": variant,
        "protocol": "demo",
        "n": n,
        "seed": 100000,
        "fid": fid,
        "sfid": 2.5 * fid,
        "is_mean": 8.5 - fid / 20,
        "is_std": 0.11,
        "kid_mean": fid / 5000,
        "kid_std": 0.0004,
        "precision": 0.82 - fid / 200,
        "recall": 0.6 - fid / 100,
        "psnr_fp32": None if fp32 else 48 - 1.4 * fid,
        "ssim_fp32": 1.0 if fp32 else 1 - fid / 100,
        "feature_distance_fp32": 0.0 if fp32 else fid / 60,
        "confident_share": 0.93 - fid / 200,
        "class_shares": [0.1] * 10,
        "extractor": "garment-classifier",
        "extractor_sha256": "cd" * 32,
        "reference_sha256": "ef" * 32,
        "samples_fingerprint": variant.encode().hex().ljust(16, "0"),
        "versions": {"torch": "2.13.0", "openvino": "2026.4.1", "torch-fidelity": "0.4.0", "edadm": "0.1.0"},
    }


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_results(results: Path, images: np.ndarray | None = None, variants: tuple[str, ...] = VARIANTS) -> None:
    """Results of every stage; ``images`` (n, h, w, 1 or 3) uint8 stand for the fp32 samples."""
    rng = np.random.default_rng(0)
    if images is None:
        images = rng.integers(0, 256, (12, 32, 32, 1)).astype(np.uint8)
    system = results / "fashion-ddim"
    for variant in variants:
        fid = FID.get(variant, 10.0)
        write_json(system / variant / "metrics.json", make_metrics(variant, fid))
        size = FILE_BYTES.get(variant, 900_000)
        write_json(
            system / variant / "engine-cpu" / "size.json",
            {
                "fp32_bytes": 6_400_000,
                "quantized_file_bytes": size,
                "payload_bytes": size - 8000,
                "header_bytes": 8000,
                "arithmetic_bytes": size - 7000,
                "engine_bytes": 1_700_000,
                "layers": {"8": 2, "4": 41} if variant.startswith("w4") else {"8": 43} if variant == "w8a8" else {},
            },
        )
        write_json(
            system / variant / "verification.json",
            {
                "layers_in_graph": 43,
                "layers_in_int8": 43,
                "worst_layer_error": 0.0,
                "engine_to_reference": 0.0123,
                "floor": 0.0245,
                "images": 64,
            },
        )
        noise = {"fp32": 0, "w8a8": 4, "w4a8": 14}.get(variant, 45) * rng.standard_normal(images.shape)
        samples = system / variant / "samples" / "shard-0000.npz"
        samples.parent.mkdir(parents=True)
        seeds = 100000 + np.arange(len(images))
        # black stays black, as it mostly does in the real thing
        noisy = np.where(images > 0, images + noise, images).clip(0, 255).astype(np.uint8)
        np.savez(samples, arr_0=noisy, seeds=seeds, fingerprint=np.array("f" * 16))
        errors = ["layer,index,bits,sqnr_db,alone_sqnr_db"]
        if variant != "fp32":
            errors += [f"{unit},{index},4,{30 - index},{31 - index / 2}" for index, unit in enumerate(UNITS)]
            errors.append(f"silent,{len(UNITS)},4,,")
        (system / variant / "layer-errors.csv").write_text("\n".join(errors) + "\n")
        losses = system / variant / "quantized" / "losses.csv"
        losses.parent.mkdir(parents=True)
        rows = ["unit,index,kind,iteration,loss,error_before,error_after"]
        if variant in ("w8a8", "w4a8"):
            for index, unit in enumerate(UNITS):
                before = float(10 ** rng.uniform(-4, -2))
                gain = float(rng.uniform(1.2, 9))
                kind = "block" if "block" in unit else "layer"
                for step in range(0, 401, 40):
                    loss = before * (1 / gain + (1 - 1 / gain) * np.exp(-step / 60))
                    rows.append(f"{unit},{index},{kind},{step},{loss},{before},{before / gain}")
        losses.write_text("\n".join(rows) + "\n")
    floor = make_metrics("real", 3.1, 10000)
    write_json(system / "reference.json", floor)
    steps = np.arange(20)
    density = 0.2 + 0.6 * np.exp(-(((steps - 15) / 5) ** 2))
    diversity = 0.1 + 0.5 * np.exp(-(((steps - 9) / 4) ** 2))
    counts = np.round(512 * (density + 1.2 * diversity) / (density + 1.2 * diversity).sum()).astype(int)
    counts[-1] += 512 - counts.sum()
    write_json(
        system / "calibration-tdac.json",
        {
            "calibrator": "tdac",
            "samples": 512,
            "steps": 20,
            "timesteps": [999 - 50 * int(step) for step in steps],
            "density": density.tolist(),
            "diversity": diversity.tolist(),
            "counts": counts.tolist(),
            "radius": 3.2187,
            "diversity_weight": 1.2,
            "seed": 1,
            "checkpoint_sha256": "ab" * 32,
        },
    )
    times = {
        "pytorch-fp32-eager": (24.0, 600.0),
        "openvino-fp32": (12.0, 330.0),
        "openvino-bf16": (9.0, 240.0),
        "edadm-fp32": (12.0, 331.0),
        "edadm-w8a8": (6.0, 160.0),
        "edadm-w4a8": (6.4, 162.0),
        "edadm-w4a8-rtn": (6.4, 162.0),
    }
    rows = [
        {
            "system": "fashion-ddim",
            "configuration": configuration,
            "batch": batch,
            "threads": 2,
            "median_ms": median,
            "min_ms": 0.95 * median,
            "rounds": 15,
        }
        for index, batch in enumerate((1, 32))
        for configuration, median in ((name, values[index]) for name, values in times.items())
    ]
    machine = "Intel Xeon (AVX512-VNNI, BF16)"
    write_json(system / "latency-cpu.json", {"device": machine, "threads": 2, "rows": rows})


VOID = {"meta", "img", "br", "link", "input", "hr", "source", "col"}  # tags that have no end


class Tree(HTMLParser):
    """Fails on a tag that is closed out of order, and collects what the tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Complete results, which no test may change."""
    folder = tmp_path_factory.mktemp("report") / "results"
    make_results(folder)
    return folder


@pytest.fixture(scope="module")
def html(results: Path) -> str:
    page.write(make_params(), results, results.parent / "report.html")
    return (results.parent / "report.html").read_text()


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_the_numbers_and_their_ratios(results: Path, tmp_path: Path) -> None:
    tables.write(make_params(), results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "exactness.csv",
        "latency.csv",
        "quality.csv",
        "size.csv",
    ]

    quality = {row["variant"]: row for row in read_table(tmp_path / "quality.csv")}
    assert list(quality) == list(VARIANTS)
    assert quality["w4a8"]["run"] == "fashion-ddim-w4a8"
    assert float(quality["w4a8"]["fid"]) == 9.0
    assert {name: float(row["fid_ratio"]) for name, row in quality.items()} == {
        "fp32": 1.0,
        "w8a8": 1.025,
        "w4a8": 1.125,
        "w4a8-rtn": 2.5,
    }
    assert quality["fp32"]["psnr_fp32"] == ""
    assert float(quality["w8a8"]["psnr_fp32"]) == pytest.approx(36.52)

    size = {row["variant"]: row for row in read_table(tmp_path / "size.csv")}
    assert int(size["w4a8"]["arithmetic_bytes"]) == 883_000
    assert float(size["w4a8"]["ratio_to_fp32"]) == 0.139063  # of 0.1390625, to six digits

    exactness = {row["variant"]: row for row in read_table(tmp_path / "exactness.csv")}
    assert list(exactness) == ["w8a8", "w4a8", "w4a8-rtn"]  # there is nothing to be exact about in fp32
    assert {row["network"] for row in exactness.values()} == {"unet"}
    assert exactness["w4a8"]["layers_in_int8"] == "43" and exactness["w4a8"]["floor"] == "0.0245"

    latency = {(row["configuration"], row["batch"]): row for row in read_table(tmp_path / "latency.csv")}
    assert len(latency) == 14
    assert float(latency["edadm-w8a8", "1"]["speedup_vs_eager"]) == 4.0
    assert float(latency["edadm-w8a8", "1"]["speedup_vs_openvino_bf16"]) == 1.5
    assert float(latency["edadm-w8a8", "32"]["speedup_vs_eager"]) == 3.75
    assert float(latency["pytorch-fp32-eager", "32"]["speedup_vs_openvino_bf16"]) == 0.4


def test_a_quantized_autoencoder_is_counted_and_verified(tmp_path: Path) -> None:
    make_results(tmp_path / "results")
    folder = tmp_path / "results/fashion-ddim/w8a8"
    sizes = json.loads((folder / "engine-cpu/size.json").read_text())
    write_json(folder / "engine-cpu/vae/size.json", sizes | {"fp32_bytes": 800_000, "quantized_file_bytes": 200_000})
    checked = json.loads((folder / "verification.json").read_text())
    write_json(folder / "verification.json", checked | {"vae": checked | {"layers_in_graph": 7}})
    tables.write(make_params(), tmp_path / "results", tmp_path)
    size = {row["variant"]: row for row in read_table(tmp_path / "size.csv")}
    expected = (sizes["quantized_file_bytes"] + 200_000) / (sizes["fp32_bytes"] + 800_000)
    assert float(size["w8a8"]["ratio_with_vae"]) == pytest.approx(expected, rel=1e-5)
    assert size["w4a8"]["ratio_with_vae"] == size["w4a8"]["vae_file_bytes"] == ""
    exactness = [row for row in read_table(tmp_path / "exactness.csv") if row["variant"] == "w8a8"]
    assert [(row["network"], row["layers_in_graph"]) for row in exactness] == [("unet", "43"), ("vae", "7")]


def test_full_protocol_is_a_table_of_its_own(tmp_path: Path) -> None:
    make_results(tmp_path / "results")
    for variant in VARIANTS:
        write_json(tmp_path / "results/fashion-ddim" / variant / "metrics-full.json", make_metrics(variant, 5.0, 10000))
    tables.write(make_params(), tmp_path / "results", tmp_path / "tables", "full")
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["quality-full.csv"]
    assert {row["n"] for row in read_table(tmp_path / "tables/quality-full.csv")} == {"10000"}
    with pytest.raises(InputError, match="protocol"):
        tables.write(make_params(), tmp_path / "results", tmp_path / "tables", "half")


def test_without_fp32_there_is_no_ratio(results: Path, tmp_path: Path) -> None:
    params = make_params(("w8a8",))
    tables.write(params, results, tmp_path)
    assert [row["fid_ratio"] for row in read_table(tmp_path / "quality.csv")] == [""]
    page.write(params, results, tmp_path / "report.html")


def test_class_accuracy_of_a_conditional_system(results: Path, html: str, tmp_path: Path) -> None:
    assert "Right class" not in html
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    for number, variant in enumerate(VARIANTS):
        path = copy / "fashion-ddim" / variant / "metrics.json"
        write_json(path, json.loads(path.read_text()) | {"class_accuracy": 0.875 - number / 10})
    tables.write(make_params(), copy, tmp_path / "tables")
    with (tmp_path / "tables" / "quality.csv").open() as file:
        assert [row["class_accuracy"] for row in csv.DictReader(file)][:2] == ["0.875", "0.775"]
    page.write(make_params(), copy, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Right class" in text and "<td>87.5<span" in text


def test_same_inputs_give_the_same_bytes(results: Path, html: str, tmp_path: Path) -> None:
    page.write(make_params(), results, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == html
    for name in ("a", "b"):
        tables.write(make_params(), results, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_page_is_well_formed_and_complete(html: str) -> None:
    tree = Tree(html)
    assert html.startswith("<!doctype html>")
    assert len(tree.all("main")) == len(tree.all("h1")) == 1
    for variant in VARIANTS:
        assert variant in tree.text
    for figure in ("9.00", "1.12", "7.19", "4.00", "held-out real images", "2.13.0", "ab" * 32, "400 of 32"):
        assert figure in tree.text
    # three of TDAC, two of each of the two reconstructed variants, one of each quantized one's layers
    assert len(tree.all("svg")) == 10
    assert f"least in conv_out, {30 - len(UNITS) + 1}.0 dB" in tree.text
    assert "None" not in tree.text
    assert not re.search(r"\bnan\b", tree.text)
    assert len(html) < 5_000_000


def test_page_needs_nothing_from_outside(html: str) -> None:
    tree = Tree(html)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert not tree.all("link") and not tree.all("iframe")
    for _, attributes in tree.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert all("src" not in attributes for attributes in tree.all("script"))


def test_ids_are_unique_and_links_arrive(html: str) -> None:
    tree = Tree(html)
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a.get("href") or a.get("xlink:href") for _, a in tree.tags if "href" in a or "xlink:href" in a]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)
    labels = [attributes["aria-labelledby"] for _, attributes in tree.tags if "aria-labelledby" in attributes]
    assert labels and set(labels) <= set(ids)


def test_images_decode_and_are_described(results: Path, html: str) -> None:
    images = Tree(html).all("img")
    assert len(images) == 10 * (4 + 3)  # ten seeds of four variants, and three differences to fp32
    decoded = {}
    for image in images:
        raw = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        decoded[image["alt"]] = np.asarray(Image.open(io.BytesIO(raw)))
    assert len(decoded) == len(images)  # so no description is empty or used twice
    with np.load(results / "fashion-ddim/w4a8/samples/shard-0000.npz") as shard:
        quantized = shard["arr_0"][3, ..., 0]
    with np.load(results / "fashion-ddim/fp32/samples/shard-0000.npz") as shard:
        fp32 = shard["arr_0"][3, ..., 0]
    assert np.array_equal(decoded["w4a8, seed 100003"], quantized)
    difference = decoded["w4a8 minus fp32, seed 100003"]
    change = quantized.astype(int) - fp32
    assert np.array_equal(difference[..., 3], np.minimum(4 * np.abs(change), 255))
    assert (difference[change > 0][:, 0] > 200).all() and (difference[change < 0][:, 2] > 200).all()


def test_colour_samples(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    make_results(tmp_path, images)
    page.write(make_params(), tmp_path, tmp_path / "report.html")
    source = next(i for i in Tree((tmp_path / "report.html").read_text()).all("img") if i["alt"] == "fp32, seed 100002")
    picture = Image.open(io.BytesIO(base64.b64decode(source["src"].partition(",")[2])))
    assert np.array_equal(np.asarray(picture), images[2])


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    # no slash in it, since a variant names a folder
    name = "w4<script>alert(1)"
    variants = ("fp32", name)
    make_results(tmp_path, variants=variants)
    (tmp_path / "fashion-ddim" / name / "quantized" / "losses.csv").write_text(
        "unit,index,kind,iteration,loss,error_before,error_after\n"
        "$a<script>b$,0,block,0,1,1,1\n$a<script>b$,0,block,9,0.5,1,0.5\n"
    )
    params = make_params(variants)
    params.variants[name] = Recipe(weights=4, activations=8, reconstruction=Reconstruction(method="fbr"))
    page.write(params, tmp_path, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    tree = Tree(html)
    assert len(tree.all("script")) == 1
    assert "alert(1)" in html and "<script>alert" not in html and "<script>b" not in html
    assert "$a<script>b$" in tree.text


def test_missing_metrics_are_one_line(results: Path, tmp_path: Path) -> None:
    params = make_params((*VARIANTS, "w6a8"))
    for write in (tables.write, page.write):
        with pytest.raises(InputError, match=r"w6a8.metrics\.json") as error:
            write(params, results, tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ['{"fid": 1.0}', "[]", "{"])
def test_broken_metrics_are_one_line(tmp_path: Path, broken: str) -> None:
    make_results(tmp_path)
    (tmp_path / "fashion-ddim/w8a8/metrics.json").write_text(broken)
    with pytest.raises(InputError, match=r"w8a8.metrics\.json") as error:
        page.write(make_params(), tmp_path, tmp_path / "report.html")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "file",
    [
        "w4a8/samples/shard-0000.npz",
        "w4a8/quantized/losses.csv",
        "w4a8/layer-errors.csv",
        "calibration-tdac.json",
        "latency-cpu.json",
    ],
)
def test_other_broken_files_are_named(tmp_path: Path, file: str) -> None:
    make_results(tmp_path)
    (tmp_path / "fashion-ddim" / file).write_text("unit,loss\nx,1\n")
    with pytest.raises(InputError, match=re.escape(file)):
        page.write(make_params(), tmp_path, tmp_path / "report.html")


MEASURED = {
    ("cifar10-ddim", 1): {
        "pytorch-fp32-eager": 120.0,
        "openvino-fp32": 60.0,
        "openvino-bf16": 90.0,
        "edadm-w8a8": 30.0,
    },
    ("cifar10-ddim", 8): {"edadm-w8a8": 400.0},
}


def benchmark(path: Path) -> Path:
    """A file of benchmarks/latency.py with the medians ``MEASURED``."""
    rest = {"threads": 2, "min_ms": 1.0, "rounds": 9, "load_s": 2.0, "peak_mib": 700.0, "file_mb": None}
    rows = [
        {"system": system, "batch": batch, "configuration": name, "median_ms": ms, **rest}
        for (system, batch), medians in MEASURED.items()
        for name, ms in medians.items()
    ]
    ran = {"device": "An example", "instructions": ["avx512_vnni"], "versions": {"openvino": "2026"}}
    ran |= {"command": "python benchmarks/latency.py", "commit": "1234567", "int8_gops": 800.0}
    own = {"gmac": 6.0, "runs": {"1": ran, "8": ran | {"int8_gops": 400.0}}}
    write_json(path, {"systems": {"cifar10-ddim": own}, "rows": rows})
    return path


def test_networks_at_full_size_are_compared_with_the_best_float(tmp_path: Path) -> None:
    one, eight = full_size.charts(benchmark(tmp_path / "rows.json"))
    ratios = {row["configuration"]: (row["vs_eager"], row["vs_float"]) for row in one["rows"]}
    assert ratios["edadm-w8a8"] == (4.0, 2.0) and ratios["openvino-bf16"] == pytest.approx((4 / 3, 2 / 3))
    assert list(ratios) == ["pytorch-fp32-eager", "openvino-bf16", "openvino-fp32", "edadm-w8a8"]
    assert one["share"] == pytest.approx(0.5)  # 12 GOP in 30 ms are 400 GOP/s
    assert [(row["vs_eager"], row["vs_float"]) for row in eight["rows"]] == [(None, None)]
    assert eight["share"] == pytest.approx(0.6)


def test_networks_at_full_size_are_on_the_page(results: Path, html: str, tmp_path: Path) -> None:
    page.write(make_params(), results, tmp_path / "report.html", benchmark=benchmark(tmp_path / "rows.json"))
    text = Tree((tmp_path / "report.html").read_text()).text
    assert "Networks at full size" in text and "cifar10-ddim, batch 8" in text and "50.0" in text
    assert "Networks at full size" not in html
    (tmp_path / "rows.json").write_text('{"systems": {}, "rows": [{"system": "x"}]}')
    with pytest.raises(InputError, match=r"rows\.json: has no configuration"):
        page.write(make_params(), results, tmp_path / "again.html", benchmark=tmp_path / "rows.json")
    assert not (tmp_path / "again.html").exists()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    make_results(tmp_path)
    for variant in VARIANTS:
        folder = tmp_path / "fashion-ddim" / variant
        for file in ("samples/shard-0000.npz", "engine-cpu/size.json", "quantized/losses.csv", "layer-errors.csv"):
            (folder / file).unlink()
    for file in ("latency-cpu.json", "calibration-tdac.json", "reference.json"):
        (tmp_path / "fashion-ddim" / file).unlink()
    page.write(make_params(), tmp_path, tmp_path / "report.html")
    tree = Tree((tmp_path / "report.html").read_text())
    assert sum("missing" in (a.get("class") or "") for a in tree.all("p")) == 8
    for stage in ("samples", "reference", "deployment", "latency", "calibration", "reconstruction", "layer-errors"):
        assert f"Stage: {stage}." in tree.text
    assert not tree.all("img") and not tree.all("svg")
    tables.write(make_params(), tmp_path, tmp_path / "tables")
    assert read_table(tmp_path / "tables/latency.csv") == []


def test_a_variant_without_samples_is_left_out_of_the_gallery(tmp_path: Path) -> None:
    make_results(tmp_path)
    (tmp_path / "fashion-ddim/fp32/samples/shard-0000.npz").unlink()
    page.write(make_params(), tmp_path, tmp_path / "report.html")
    tree = Tree((tmp_path / "report.html").read_text())
    assert "No samples yet of fp32." in tree.text
    assert len(tree.all("img")) == 30


def test_a_unit_that_falls_far_does_not_flatten_the_others() -> None:
    usual = [plots.Unit(f"u{k}", "block", 1.0, 0.9, [0, 10], [1.0, 0.9]) for k in range(20)]
    far = plots.Unit("far", "layer", 1.0, 1e-6, [0, 10], [1.0, 1e-6])
    assert "10⁻" in plots.loss_curves("a", "w8a8", [*usual[:9], far])  # too few to leave one out
    assert "10⁻" not in plots.loss_curves("b", "w8a8", [*usual, far])


def test_the_blocks_of_a_network_are_labelled_where_there_is_room() -> None:
    names = ["conv_in", *(f"down_blocks.0.resnets.{k}.conv1" for k in range(40)), "mid_block.resnets.0.conv1"]
    names += ["up_blocks.0.resnets.0.conv1", *(f"up_blocks.1.resnets.{k}.conv1" for k in range(9)), "conv_out"]
    layers = [plots.Layer(name, index, 20.0 + index, 21.0) for index, name in enumerate(names)]
    svg = plots.layer_errors("a", "w4a8", layers, (0, 80))
    assert [label in svg for label in ("↓0", "mid", "↑0", "↑1")] == [True, True, False, False]


def test_plots_take_flat_and_zero_values() -> None:
    exact = plots.Unit("conv_in", "layer", 0.0, 0.0, [0, 10], [0.0, 0.0])
    assert exact.gain == 1.0
    for svg in (
        plots.per_step("a", "Density", [0.0], None),
        plots.per_step("b", "Samples taken", [0, 0, 0], 0.0),
        plots.unit_errors("c", "w8a8", [exact]),
        plots.loss_curves("d", "w8a8", [exact]),
        plots.layer_errors("e", "w8a8", [plots.Layer("conv_in", 0, 20.0, 20.0)], (20, 20.5)),
    ):
        tree = Tree(svg)
        assert tree.tags[0][0] == "svg"
        assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", svg)  # every stand-in colour was replaced
