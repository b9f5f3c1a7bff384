"""params.yaml: what stands in it is right, and whatever is wrong with it is one line."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import parse_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_params import small

from edadm import params
from edadm.errors import InputError
from edadm.params.reading import parse

ROOT = Path(__file__).parent.parent
REAL = yaml.safe_load((ROOT / "params.yaml").read_text())
SMALL = json.dumps(small())  # in which recipes that share lines in the file share no more
SYSTEM = "systems.fashion-ddim"
QUICK = settings(deadline=None, max_examples=25)
RUN = "runs.fashion-ddim-w4a8"
PUBLISHED = "published.systems.cifar10-ddim"
PUBLISHED_RUN = "published.runs.cifar10-ddim-w4a8"
RUN_CALLED_CHECKPOINT = REAL["published"]["runs"]["cifar10-ddim-w4a8"] | {"variant": "checkpoint"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("params") / "params.yaml"


def problem(file: Path, key: str, value: object) -> str:
    """The message about a file like the real one with ``value`` put at ``key``."""
    content = json.loads(SMALL)
    *folders, last = key.split(".")
    place = content
    for folder in folders:
        place = place[folder]
    place[last] = value
    file.write_text(yaml.dump(content, Dumper=yaml.CSafeDumper))
    with pytest.raises(InputError) as caught:
        params.load(file)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def test_the_real_file() -> None:
    loaded = params.load(ROOT / "params.yaml")
    assert set(loaded.runs) == set(REAL["runs"])
    recipe = loaded.variant("w4a8")
    assert (recipe.weights, recipe.activations, recipe.eight_bit) == (4, 8, ("conv_in", "conv_out"))
    assert recipe.reconstruction.iterations == REAL["variants"]["w4a8"]["reconstruction"]["iterations"]
    assert loaded.variant("fp32").reconstruction.method == "none"
    assert loaded.system("fashion-ddim").sampling.images["full"] == 10000
    assert loaded.latency.batches == tuple(REAL["latency"]["batches"])
    assert loaded.train.fashion_ldm.unet == REAL["train"]["fashion-ldm"]["unet"]


def test_settings_are_read_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.load(ROOT / "params.yaml").variant("w4a8").weights = 8


@pytest.mark.parametrize("key", ["weights", "reconstruction.iterations"])
def test_dvc_sets_a_key_of_one_variant_alone(tmp_path: Path, key: str) -> None:
    """`dvc exp run -S` writes one value for all names of a mapping that YAML shares, or none: they share lines only."""
    (block,) = re.findall(r"^variants:\n(?:  .*\n|\n)*", (ROOT / "params.yaml").read_text(), re.MULTILINE)
    file, variants = tmp_path / "params.yaml", REAL["variants"]
    for name, recipe in variants.items():
        if "iterations" in recipe.get("reconstruction", {}):
            file.write_text(block)
            apply_overrides(file, [f"variants.{name}.{key}=7"])
            written = yaml.load(file.read_text(), yaml.CSafeLoader)["variants"]
            assert [other for other in variants if written[other] != variants[other]] == [name]


def test_a_recipe_can_be_made_in_code() -> None:
    recipe = params.Recipe(weights=4, activations=8)
    changed = dataclasses.replace(recipe, eight_bit=["conv_in"], reconstruction=params.Reconstruction(method="fbr"))
    assert changed.eight_bit == ("conv_in",) and recipe.eight_bit == ("conv_in", "conv_out")


def test_trainings_of_equal_cycles_and_other_networks(file: Path) -> None:
    content = json.loads(SMALL)
    content["train"]["fashion-ddim"] |= {"cycles": [600, 600], "unet": {}}
    file.write_text(yaml.dump(content))
    assert params.load(file).train.fashion_ddim.cycles == (600, 600)


@pytest.mark.parametrize("accessor", ["system", "variant"])
def test_unknown_names(accessor: str) -> None:
    with pytest.raises(InputError, match=rf"^unknown {accessor} 'nope'; params.yaml has \S"):
        getattr(params.load(ROOT / "params.yaml"), accessor)("nope")


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("variants.w4a8.wieghts", 4, ["unknown key", "weights"]),
        ("variants.w4a8.attention", 16, ["16", "8, or 32"]),
        ("surprise", 1, ["unknown key", "pipeline"]),
        (f"{SYSTEM}.sampler.guidance", 0.5, ["0.5", "at least 1"]),
        (f"{SYSTEM}.sampler.name", "euler", ["'euler'", "ddim, plms"]),
        (f"{SYSTEM}.sampler", {"name": "plms", "steps": 20, "spacing": "leading", "eta": 1.0}, ["eta", "plms adds no"]),
        ("variants.w4a8.weights", "four", ["'four'", "whole number", "2 to 8"]),
        ("variants.w4a8.weights", 9, ["9", "2 to 8, or 32"]),
        ("variants.w4a8.weights", 1, ["1", "2 to 8, or 32"]),
        ("variants.w4a8.weights", 4.5, ["4.5", "whole number"]),
        ("variants.w4a8.activations", 32, ["both"]),
        ("variants.w4a8.ranges", "max", ["'max'", "mse, minmax"]),
        ("variants.w4a8.reconstruction.method", "sgd", ["'sgd'", "fbr, none"]),
        ("variants.w4a8.reconstruction.iterations", 0, ["0", "at least 1"]),
        ("variants.w4a8.reconstruction", 5, ["variants.w4a8.reconstruction"]),
        ("variants.w4a8.eight_bit", "conv_in", ["variants.w4a8.eight_bit"]),
        ("variants.fp32", {"weights": 8, "activations": 8}, ["variants.fp32.weights", "32"]),
        ("variants.W4", {"weights": 4, "activations": 8}, ["lower-case"]),
        (f"{SYSTEM}.calibration.radius_quantile", 1, ["1.0", "between 0 and 1"]),
        (f"{SYSTEM}.calibration.radius_quantile", math.nan, ["nan"]),
        (f"{SYSTEM}.calibration.radius_quantile", None, ["neither is given", "exactly one"]),
        (f"{SYSTEM}.calibration.radius", 0.3, ["both are given", "exactly one"]),
        (f"{SYSTEM}.calibration.radius", 0, ["0.0", "above 0, below 2^31, or null"]),
        (f"{SYSTEM}.calibration.radius", "wide", ["wide", "above 0, below 2^31, or null"]),
        (f"{SYSTEM}.calibration.diversity_weight", math.inf, ["inf", "at least 0"]),
        (f"{SYSTEM}.checkpoint.sha256", "abc", ["'abc'", "64 hexadecimal"]),
        (f"{SYSTEM}.sampler.name", "euler", ["'euler'", "ddim"]),
        (f"{SYSTEM}.sampler.spacing", "linear", ["'linear'", "leading, trailing, quadratic"]),
        (f"{SYSTEM}.sampler", {"name": "ddim", "spacing": "leading"}, ["sampler.steps", "missing"]),
        (f"{SYSTEM}.sampling.images", {"demo": 5}, ["images", "full"]),
        (f"{SYSTEM}.sampling.shard", -3, ["-3", "at least 1"]),
        (f"{SYSTEM}.reference.extractor", "vgg", ["'vgg'", "garment-classifier"]),
        ("engine.body", "f64", ["'f64'", "f32, bf16"]),
        ("latency.batches", [1, 0], ["[1, 0]", "at least 1"]),
        ("latency.batches", [], ["[]", "at least 1"]),
        ("pipeline.systems", ["nope"], ["'nope'", "fashion-ddim"]),
        ("pipeline.devices", ["tpu"], ["'tpu'", "cpu"]),
        ("pipeline.calibrators", [], ["tdac"]),
        ("ablation.system", "nope", ["'nope'", "fashion-ddim"]),
        ("ablation.repeats", [], ["[]", "at least 0"]),
        ("ablation.repeats", [1, 1], ["[1, 1]", "at least 0"]),
        ("ablation.calibrators", ["tdac"], ["rows[6].calibrator", "'uniform'", "allowed: tdac (ablation.calibrators)"]),
        ("ablation.rows", [{"variant": "w2a2", "calibrator": "tdac"}], ["rows[0].variant", "'w2a2'", "w4a8-tdac"]),
        ("ablation.rows", [{"variant": "fp32", "calibrator": "best"}], ["rows[0].calibrator", "'best'", "uniform"]),
        ("ablation.rows", [{"variant": "fp32", "steps": 1}], ["rows[0].steps", "unknown key", "calibrator"]),
        ("ablation.rows", [{"variant": "fp32"}], ["rows[0].calibrator", "missing"]),
        ("ablation.rows", ["fp32"], ["rows[0]", "'fp32'", "a mapping with the keys variant, calibrator"]),
        ("ablation.rows", REAL["ablation"]["rows"][:1] * 2, ["fp32 is there twice"]),
        ("ablation.rows", REAL["ablation"]["rows"][1:], ["fp32 is missing"]),
        (f"{RUN}.recipe", "w8a8", ["'w8a8'", "allowed: none"]),
        ("pipeline.systems", ["fashion-ddim", "fashion-ddim"], ["fashion-ddim is there twice"]),
        (f"{SYSTEM}.checkpoint.source", "", ["''", "a folder"]),
        ("systems.paper", REAL["systems"]["fashion-ddim"], ["paper", "any but ablation, all"]),
        ("systems.mine", REAL["systems"]["fashion-ddim"], ["not among pipeline.systems"]),
        ("variants.checkpoint", REAL["variants"]["w8a8"], ["any but ablation, checkpoint"]),
        (f"{PUBLISHED}.checkpoint.format", "ddpm", ["'ddpm'", "cifar10-ddim"]),
        (f"{PUBLISHED}.checkpoint.files", {}, ["needs weights"]),
        (f"{PUBLISHED}.checkpoint.files.weights.sources", [], ["one or more"]),
        (f"{PUBLISHED}.checkpoint.files.weights.name", "../x", ["'../x'", "plain file name"]),
        (f"{PUBLISHED}.checkpoint.files.weights.md5", "abc", ["'abc'", "32 hexadecimal"]),
        (f"{PUBLISHED}.checkpoint.files.captions", {"name": "a", "sources": ["b"]}, ["captions"]),
        (f"{PUBLISHED}.reference.images", "somewhere", ["exactly one"]),
        (f"{PUBLISHED}.reference.file.sources", [[]], ["[]", "a text"]),
        (f"{PUBLISHED}.reference.extractor", "garment-classifier", ["inception"]),
        ("published.systems.fashion-ddim", REAL["published"]["systems"]["cifar10-ddim"], ["in systems too"]),
        ("published.tools", {}, ["inception is missing"]),
        ("published.device", "tpu", ["'tpu'", "cpu"]),
        (f"{PUBLISHED_RUN}.recipe", None, ["is missing"]),
        (f"{PUBLISHED_RUN}.recipe", "nope", ["'nope'"]),
        (f"{PUBLISHED_RUN}.system", "fashion-ddim", ["'fashion-ddim'", "cifar10-ddim"]),
        (f"{PUBLISHED_RUN}.calibrator", "uniform", ["'uniform'", "tdac"]),
        ("published.runs.cifar10-ddim-checkpoint", RUN_CALLED_CHECKPOINT, ["checkpoint means something else"]),
        ("published.runs.cifar10-ddim-fp32.recipe", "cifar10-w8a8", ["is quantized"]),
        (f"{SYSTEM}.sampling.seed", 10**30, [str(10**30), "at least 0, below 2^31"]),
        (f"{SYSTEM}.sampling.images", {"demo": 2000, "full": 10**12}, ["1000000000000", "below 2^31"]),
        (
            f"{SYSTEM}.calibration.seed",
            109_999,
            ["109999", "512 seeds are none of the images', 100000 to 109999"],
        ),
        (f"{SYSTEM}.calibration.samples", 100_000, ["calibration.seed: 1 is", "100000 seeds"]),
        (f"{PUBLISHED}.calibration.seed", 98_977, ["98977", "1024 seeds", "100000 to 149999"]),
        ("engine.threads", 10**12, ["1000000000000", "from 1 to 1024"]),
        ("engine.evaluation_threads", 0, ["0", "from 1 to 1024"]),
        ("metrics.kid_subset_size", 10_001, ["10001", "from 2 to 10000"]),
        ("latency.rounds", 10**12, ["1000000000000", "at least 1, below 2^31"]),
        ("variants.w4a8.reconstruction.rate_steps", 1e300, ["1e+300", "above 0, below 2^31"]),
        ("variants.w4a8.reconstruction.seed", 2**31, ["2147483648", "below 2^31"]),
        ("train.fashion-ddim.cycles", [600, 10**30], [str(10**30), "below 2^31"]),
        ("train.fashion-dddm", {}, ["unknown key", "garment-classifier, fashion-ddim, fashion-ldm"]),
        ("train.garment-classifier.epoch", 1, ["unknown key", "epochs, batch"]),
        ("train.garment-classifier", {"epochs": 1}, ["batch", "missing"]),
        ("train.garment-classifier.batch", 60_001, ["60001", "from 1 to 60000"]),
        ("train.garment-classifier.learning_rate", "fast", ["'fast'", "a number, above 0"]),
        ("train.fashion-ddim.cycles", 5, ["5", "a list"]),
        ("train.fashion-ddim.cycles", [], ["[]", "one or more"]),
        ("train.fashion-ddim.cycles", [512, 511], ["[512, 511]", "each at least 512, a batch"]),
        ("train.fashion-ddim.unet", [], ["[]", "a mapping"]),
        ("train.fashion-ddim.scheduler", {1: 2}, ["1", "names"]),
        ("train.fashion-ddim.label_drop", 0.1, ["unknown key"]),
        ("train.fashion-ldm.ema_decay", 1.1, ["1.1", "from 0 to 1"]),
        ("train.fashion-ldm.label_drop", -1, ["-1.0", "from 0 to 1"]),
        ("train.fashion-ldm.autoencoder.seen", 63, ["63", "at least 64, a batch"]),
        ("train.fashion-ldm.autoencoder.model", None, ["None", "a mapping"]),
        ("latency.rounds", True, ["True", "a whole number"]),
        (f"{SYSTEM}.sampler.eta", 10**400, ["a number"]),
        (f"{SYSTEM}.checkpoint.source", 5, ["5", "a text, a folder"]),
        (f"{SYSTEM}.reference.statistics", "", ["'' is not allowed", "a file"]),
        ("variants.w4a8.split_shortcut", 1, ["1", "true or false"]),
        ("variants", {8: REAL["variants"]["w8a8"]}, ["8", "names"]),
        ("runs", {}, ["empty"]),
        (f"{RUN}.system", "nope", ["'nope'", "fashion-ddim"]),
        (f"{RUN}.variant", "nope", ["'nope'", "w8a8"]),
        (f"{RUN}.variant", "w8a8", ["fashion-ddim-w8a8"]),
        (f"{RUN}.calibrator", "nope", ["'nope'", "tdac"]),
        (f"{RUN}.calibrator", None, ["None"]),
        ("runs", {"fashion-ddim-w4a8": REAL["runs"]["fashion-ddim-w4a8"]}, ["fashion-ddim-fp32"]),
    ],
)
def test_what_is_wrong_is_one_line(file: Path, key: str, value: object, parts: list[str]) -> None:
    message = problem(file, key, value)
    folder = key.rpartition(".")[0]
    assert message.startswith((key, folder or key))
    assert all(part in message for part in parts), message


def test_a_repetition_that_would_be_calibrated_on_its_images(file: Path) -> None:
    content = json.loads(SMALL)  # the third repetition's images begin at 120,000
    content["systems"]["fashion-ddim"]["calibration"]["seed"] = 119_999
    file.write_text(yaml.dump(content))
    with pytest.raises(InputError, match=r": ablation\.repeats: 2 is not allowed; allowed: repetitions whose"):
        params.load(file)


@pytest.mark.parametrize(
    ("part", "system", "protocol"), [("", "fashion-ddim", "demo"), ("published.", "cifar10-ddim", "full")]
)
def test_images_that_are_too_few_for_the_metrics(file: Path, part: str, system: str, protocol: str) -> None:
    content = json.loads(SMALL)
    sampling = (content["published"] if part else content)["systems"][system]["sampling"]
    sampling["images"][protocol] = content["metrics"]["kid_subset_size"]
    file.write_text(yaml.dump(content))
    params.load(file)
    sampling["images"][protocol] = 999
    file.write_text(yaml.dump(content))
    place = f"{part}systems.{system}.sampling.images.{protocol}"
    with pytest.raises(InputError) as caught:
        params.load(file)
    said = f"metrics.kid_subset_size: 1000 is not allowed; allowed: at most 999, as {place} says"
    assert str(caught.value) == f"{file}: {said}"


@QUICK
@given(value=st.one_of(st.integers(max_value=1), st.integers(9, 31), st.integers(min_value=33), st.text(), st.none()))
def test_no_other_width_is_taken(file: Path, value: object) -> None:
    if isinstance(value, str) and value.strip().isdigit():
        return
    assert problem(file, "variants.w8a8.weights", value).startswith("variants.w8a8.weights: ")


@QUICK
@given(value=st.one_of(st.floats().filter(lambda x: not 0 < x < 1), st.lists(st.integers()), st.booleans()))
def test_no_other_quantile_is_taken(file: Path, value: object) -> None:
    key = f"{SYSTEM}.calibration.radius_quantile"
    assert problem(file, key, value).startswith(f"{key}: ")


@QUICK
@given(key=st.text(st.characters(categories=("Lu", "Ll", "Nd")), min_size=1))
def test_no_unknown_key_is_taken(file: Path, key: str) -> None:
    if key not in {field.name for field in dataclasses.fields(params.MetricsParams)}:
        assert "unknown key" in problem(file, f"metrics.{key}", 1)


@QUICK
@given(content=st.one_of(st.text(), st.binary()))
def test_any_content_is_one_line(file: Path, content: str | bytes) -> None:
    file.write_bytes(content.encode(errors="ignore") if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        params.load(file)
    assert "\n" not in str(caught.value)


def test_dvc_reads_the_same() -> None:
    """Its hashes are of what it reads; PyYAML alone takes 1e-4 for a text, and a date for no text."""
    for text in ((ROOT / "params.yaml").read_text(), "a: 1e-4\nb: -2.5E+3\nc: .5e1\nd: 1e4x\ne: 0.1\nf: 7\ng: true\n"):
        assert parse(text, ROOT) == parse_yaml(text, "params.yaml")
    assert parse("day: 2026-11-29", ROOT) == {"day": "2026-11-29"}


@QUICK
@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_dvc_reads_the_same_numbers(number: float) -> None:
    assert parse(f"a: {number!r}", ROOT) == parse_yaml(f"a: {number!r}", "params.yaml") == {"a": number}


def test_a_key_that_is_there_twice(file: Path) -> None:
    file.write_text("pipeline:\n  systems: []\n  systems: [a]\n")
    with pytest.raises(InputError, match=r"line 3: not valid YAML \('systems' is there twice\)"):
        params.load(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"params\.yaml: no such file"):
        params.load(tmp_path / "params.yaml")
