"""Pipelines of the user's own: calibrated by their own scheduler, quantized whole, drawn from."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_pipelines
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DModel
from safetensors.torch import load_file

import edadm
from edadm import params as parameters
from edadm.errors import InputError
from edadm.files import read_json
from edadm.params import CalibrationParams
from edadm.pipelines import calls, folder, generate, quantize
from edadm.pipelines.classes import ClassPipeline
from edadm.quantization import fbr, reconstruction

ROOT = Path(__file__).parent.parent
SETTINGS = {"samples": 5, "batch": 3, "diversity_weight": 1.2, "radius_quantile": 0.3, "seed": 10}
RECIPE = edadm.recipe("w4a8", iterations=2, batch=4)


def quantized(source: Path, out: Path, recipe: object = RECIPE, **call: object) -> Path:
    """Quantize with few of everything; what there is to draw from is found out."""
    prompts = tiny_pipelines.PROMPTS if folder.takes_text(source) else None
    labels = call.pop("labels", None)
    scratch = out.with_name(f"{out.name}.scratch")
    settings = CalibrationParams(**SETTINGS)
    quantize.run(source, out, recipe, settings, "tdac", prompts, labels, scratch, steps=4, **call)
    assert not scratch.exists()
    return out


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("sources")

    def source(name: str) -> Path:
        if not (root / name).exists():
            getattr(tiny_pipelines, name)(root / name)
        return root / name

    return source


@pytest.mark.parametrize("name", ["sd1", "sdxl", "ddim"])
def test_the_calibration_set_is_what_the_unet_is_called_with(name: str, sources: Callable[[str], Path]) -> None:
    pipeline = folder.open_pipeline(sources(name))
    prompts = None if name == "ddim" else tiny_pipelines.PROMPTS
    call = {} if prompts is None else {"guidance_scale": 3.0}
    data = edadm.calibrate(pipeline, prompts, samples=5, batch=3, steps=6, seed=10, **call)
    blocks = 1 if prompts is None else 2
    assert {len(value) for value in data.values()} == {5 * blocks}
    # independently: each image alone, through the pipeline as a user calls it
    for row in range(5):
        words = {} if prompts is None else {"prompt": prompts[row], "output_type": "latent"} | call
        seen = []
        hook = pipeline.unet.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append((args, kwargs)), with_kwargs=True
        )
        generator = torch.Generator().manual_seed(10 + row)
        pipeline(**words, generator=generator, num_inference_steps=6)
        hook.remove()
        matching = [(args, kwargs) for args, kwargs in seen if torch.as_tensor(args[1]).item() == data["t"][row]]
        close = [c for c in matching if torch.allclose(c[0][0][0], data["x"][row], atol=1e-4)]
        assert close, f"row {row} is no input of its trajectory"
        kwargs = close[0][1]
        for block in range(blocks):
            at = row + 5 * block
            assert torch.equal(data["x"][at], data["x"][row]) and data["t"][at] == data["t"][row]
            if prompts is not None:
                assert torch.allclose(data["context"][at], kwargs["encoder_hidden_states"][block], atol=1e-5)
            if name == "sdxl":
                for key in ("text_embeds", "time_ids"):
                    assert torch.allclose(data[key][at], kwargs["added_cond_kwargs"][key][block], atol=1e-5)
    if name == "sdxl":
        assert data["t"].dtype == torch.float32  # Euler's steps have fractions


def test_no_more_calls_than_needed(sources: Callable[[str], Path]) -> None:
    pipeline = folder.open_pipeline(sources("ddim"))
    count, closed = [], []

    def draw() -> None:
        try:
            pipeline(num_inference_steps=9)
        finally:
            closed.append(True)

    hook = pipeline.unet.register_forward_pre_hook(lambda *_: count.append(1))
    for number, _ in enumerate(calls.unet_calls(pipeline.unet, draw)):
        if number == 3:
            break
    hook.remove()
    assert len(count) == 4 and closed == [True]
    assert "forward" not in vars(pipeline.unet)


@pytest.mark.parametrize(
    ("name", "words", "call"),
    [
        ("sd2", ("a boat", None), {"guidance_scale": 1.0}),
        ("sdxl", ("a boat", None), {"guidance_scale": 3.0}),
        ("labelled", (None, 1), {}),
    ],
)
def test_every_layout_is_quantized_and_drawn_from(
    name: str, words: tuple, call: dict, sources: Callable[[str], Path], tmp_path: Path
) -> None:
    """DDIM, Stable Diffusion 1 and systems of this project are in docs/own-model.md, which test_docs.py does."""
    labels = None if words[1] is None else [0, 1, 2]
    out = quantized(sources(name), tmp_path / "out", labels=labels, **call)
    original = {path.relative_to(sources(name)).as_posix() for path in sources(name).rglob("*") if path.is_file()}
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {path for path in original if not path.startswith("unet/")} == {
        path for path in written if not path.startswith("unet/")
    }
    config = json.loads((out / "unet" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "eda-dm"
    assert (out / "unet" / "losses.csv").is_file() and (out / "unet" / "calibration.json").is_file()

    def first_image(pipeline: object, seeds: range) -> np.ndarray:
        pipeline.set_progress_bar_config(disable=True)
        drawn = generate.images(pipeline, *words, seeds, steps=2, **call)
        return np.asarray(next(drawn)).astype(int)

    exact = first_image(folder.open_pipeline(out, device="reference"), range(3, 4))
    full = first_image(folder.open_pipeline(sources(name)), range(3, 4))
    assert exact.shape == full.shape and 0 < np.abs(full - exact).mean() < 40
    if name != "sd2":  # for the engine it is sd1
        pipeline = folder.open_pipeline(out, threads=1)
        found = first_image(pipeline, range(3, 5))
        assert pipeline.unet.engine == "cpu"  # not the slow way
        assert np.abs(found - exact).mean() <= max(4, np.abs(full - exact).mean())


def test_diffusers_opens_what_is_written(sources: Callable[[str], Path], tmp_path: Path) -> None:
    out = quantized(sources("sd1"), tmp_path / "out")
    pipeline = StableDiffusionPipeline.from_pretrained(out, low_cpu_mem_usage=False)
    assert isinstance(pipeline.unet, edadm.QuantizedUNet)
    float_pipeline = DiffusionPipeline.from_pretrained(sources("sd1"), low_cpu_mem_usage=False)
    float_pipeline.unet = edadm.load(out, device="reference")
    pipeline.unet = float_pipeline.unet
    images = [
        p("water", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
        for p in (pipeline, float_pipeline)
    ]
    assert np.array_equal(*images)


def test_a_killed_run_goes_on(sources: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantized(sources("ddim"), tmp_path / "whole")
    learn, units = fbr.Learner.learn, []

    def dies(self: fbr.Learner, *args: object) -> object:
        units.append(self.unit.name)
        if len(units) == 4:
            raise KeyboardInterrupt
        return learn(self, *args)

    monkeypatch.setattr(fbr.Learner, "learn", dies)
    with pytest.raises(KeyboardInterrupt):
        quantized(sources("ddim"), tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.scratch").is_dir()
    calibrated = (tmp_path / "out.scratch" / "calibration.safetensors").stat().st_mtime_ns

    def later(self: fbr.Learner, *args: object) -> object:
        assert (tmp_path / "out.scratch" / "calibration.safetensors").stat().st_mtime_ns == calibrated
        assert self.unit.name not in units[:3]
        return learn(self, *args)

    monkeypatch.setattr(fbr.Learner, "learn", later)
    again = quantized(sources("ddim"), tmp_path / "out")
    for name in ("model.safetensors", "config.json", "losses.csv", "calibration.json"):
        assert (again / "unet" / name).read_bytes() == (whole / "unet" / name).read_bytes()
    monkeypatch.undo()
    # with other settings nothing of an old run is used
    other = quantized(sources("ddim"), tmp_path / "out", edadm.recipe("w8a8", iterations=2, batch=4))
    assert edadm.load(other).quantized.recipe["weights"] == 8


def test_in_memory_and_from_a_folder_are_the_same(sources: Callable[[str], Path], tmp_path: Path) -> None:
    out = quantized(sources("sdxl"), tmp_path / "out", guidance_scale=3.0)
    pipeline = folder.open_pipeline(sources("sdxl"))
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    data = edadm.calibrate(pipeline, tiny_pipelines.PROMPTS, samples=5, batch=3, seed=10, steps=4, guidance_scale=3.0)
    edadm.quantize(pipeline.unet, data, RECIPE, scratch=tmp_path / "units").save_pretrained(tmp_path / "unet")
    assert len(list((tmp_path / "units").glob("unit-*.safetensors"))) > 10
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "unet" / name).read_bytes() == (out / "unet" / name).read_bytes()
    after = pipeline.unet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"


def test_a_sampler_of_ones_own_calibrates(tmp_path: Path) -> None:
    unet = tiny.unet()
    seen: list[int] = []

    def draw(seeds: range) -> None:
        x = torch.stack([torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        seen.extend(seeds)
        for step in (800, 400, 0):
            x = x - 0.1 * unet(x, step).sample

    made = edadm.quantize(unet, draw, edadm.recipe("w8a8", method="none"))
    assert sorted(set(seen)) == list(range(128))
    assert set(made.quantized.layers) and made.quantized.recipe["weights"] == 8


def test_samplers_that_do_not_calibrate_are_refused() -> None:
    unet, context = tiny.conditional_unet(), tiny.context(128, 3)
    calls = []

    def twice(seeds: range) -> None:
        """Guidance in two calls: the condition of the second would be lost."""
        buffer = torch.empty_like(context[: len(seeds)])
        for given in (torch.zeros_like(context), context):
            buffer.copy_(given[: len(seeds)])
            unet(torch.zeros(len(seeds), 4, 8, 8), 500, buffer)

    def fewer(seeds: range) -> None:
        calls.append(seeds)
        for step in range(900, 0, -300 if len(calls) < 2 else -900):
            unet(torch.zeros(len(seeds), 4, 8, 8), step, context[: len(seeds)])

    compiled = unet.forward = lambda *args, **kwargs: type(unet).forward(unet, *args, **kwargs)
    for draw, named in (
        (twice, "changes from call to call"),
        (lambda seeds: None, "no call of this U-Net"),
        (fewer, "fewer calls"),
    ):
        with pytest.raises(InputError, match=named):
            edadm.quantize(unet, draw, edadm.recipe("w8a8", method="none"))
        assert unet.forward is compiled


def test_what_is_quantized_is_the_network_as_it_was(tmp_path: Path) -> None:
    """Neither what becomes of the U-Net afterwards reaches it, nor units of the same weights in another network."""
    unet = tiny.unet()
    x, t = tiny.inputs(16)
    recipe = edadm.recipe("w4a8", iterations=1, tuning=0)
    quantized = edadm.quantize(unet, {"x": x, "t": t}, recipe, scratch=tmp_path)
    before = {name: value.clone() for name, value in quantized.quantized.floats.items()}
    with torch.no_grad():
        for value in unet.parameters():
            value.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in quantized.quantized.floats.items())
    others = [UNet2DModel.from_config(tiny.unet().config, norm_eps=0.1) for _ in range(2)]
    made = []
    for other, scratch in zip(others, (tmp_path, tmp_path / "empty"), strict=True):
        other.load_state_dict(tiny.unet().state_dict())
        made.append(edadm.quantize(other.eval(), {"x": x, "t": t}, recipe, scratch=scratch).quantized.layers)
    assert all(made[0][name].input_scale == layer.input_scale for name, layer in made[1].items())


def test_units_are_those_of_this_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, (x, t) = tiny.unet(), tiny.inputs(2)
    recipe, data = edadm.recipe("w4a8", iterations=1, tuning=0), {"x": x, "t": t}
    made = []
    for code in ("one", "one", "other"):
        monkeypatch.setattr(reconstruction, "code", lambda code=code: code)
        edadm.quantize(unet, data, recipe, scratch=tmp_path)
        made.append((tmp_path / "unit-0000.safetensors").stat().st_mtime_ns)
    assert made[0] == made[1] != made[2]


def test_data_that_do_not_fit_are_refused() -> None:
    unet = tiny.conditional_unet()
    x, t = tiny.inputs(2, channels=4)
    good = {"x": x, "t": t, "context": tiny.context(2, 3)}
    for data, named in (
        ({"x": x, "t": t}, "takes x, t, context"),
        (good | {"noise": x}, "a calibration set has"),
        (good | {"context": torch.zeros(2, 3, 5)}, "refuses"),
        (good | {"t": t[:1]}, "of one length"),
        (5, "neither tensors"),
    ):
        with pytest.raises(InputError, match=named):
            edadm.quantize(unet, data)
    for name, named in (("w9a9", "weights"), ("4bit", "of the form"), ("w32a32", "of the form")):
        with pytest.raises(InputError, match=named):
            edadm.quantize(unet, good, name)
    with pytest.raises(InputError, match="no field 'iteration'"):
        edadm.recipe("w4a8", iteration=3)
    with pytest.raises(InputError, match="rate_rounding"):
        edadm.recipe("w4a8", rate_rounding=-1.0)
    with pytest.raises(InputError, match="iterations: 'many' is not allowed; allowed: a whole number"):
        edadm.recipe("w4a8", iterations="many")


def test_recipes_are_those_of_the_pipeline() -> None:
    params = parameters.load(ROOT / "params.yaml")
    for name in ("w8a8", "w4a8"):
        assert edadm.recipe(name) == params.variant(name)
    assert edadm.recipe("w4a8", iterations=10).reconstruction.tuning == 5
    assert edadm.recipe("w4a8", tuning=0).reconstruction.tuning == 0


def test_a_text_is_one_prompt(sources: Callable[[str], Path]) -> None:
    made = [
        edadm.calibrate(folder.open_pipeline(sources("sd1")), prompts, samples=2, batch=2, steps=2)["context"]
        for prompts in ("a boat", ["a boat"])
    ]
    assert torch.equal(*made)


def test_pipelines_that_cannot_be_used(sources: Callable[[str], Path]) -> None:
    text, plain = folder.open_pipeline(sources("sd1")), folder.open_pipeline(sources("ddim"))
    for pipeline, given, named in (
        (text, {}, "draws from prompts"),
        (text, {"prompts": []}, "none is given"),
        (plain, {"prompts": ["a"]}, "takes no prompt"),
        (plain, {"guidance_scale": 3.0}, "takes no guidance_scale"),
        (plain, {"samples": 0}, "calibration.samples"),
        (plain, {"steps": 0}, "steps: 0"),
        (plain, {"steps": 2000}, "DDIMPipeline: .*num_inference_steps"),
        (text, {"prompts": "a boat", "guidance_scale": math.nan}, "guidance_scale: nan"),
        (plain, {"calibrator": "random"}, "random"),
        (folder.open_pipeline(sources("labelled")), {}, "class labels"),
        (folder.open_pipeline(sources("labelled")), {"class_labels": [7]}, "not in 0 to 2"),
        (ClassPipeline(tiny.unet(), DDIMScheduler()), {"class_labels": [0, 1]}, "takes no class labels"),
    ):
        with pytest.raises(InputError, match=named):
            edadm.calibrate(pipeline, **{"samples": 2, "batch": 2, "steps": 2} | given)


def test_folders_that_are_refused(sources: Callable[[str], Path], tmp_path: Path) -> None:
    def changed(name: str, change: Callable[[Path], object]) -> Path:
        copy = shutil.copytree(sources("sd1"), tmp_path / name)
        change(copy)
        return copy

    def index(folder: Path, **entries: object) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    pickled = changed(
        "pickled", lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").rename(f / "unet" / "model.bin")
    )
    for source, named in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path, "not a pipeline"),
        (pickled, r"only \.bin weights"),
        (changed("foreign", lambda f: index(f, unet=["evil.module", "UNet"])), "comes from evil.module"),
        (changed("other", lambda f: (f / "unet" / "config.json").write_text('{"_class_name": "DiT"}')), "DiT"),
        (changed("outside", lambda f: index(f, **{"../evil": ["diffusers", "DDIMScheduler"]})), "'../evil'"),
        (changed("short", lambda f: index(f, scheduler=["diffusers"])), "'scheduler'"),
        (changed("broken", lambda f: (f / "vae" / "config.json").unlink()), "cannot load it"),
    ):
        with pytest.raises(InputError, match=named) as error:
            quantized(source, tmp_path / "out")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    for out in (precious, sources("ddim"), sources("ddim") / "inside", precious / "thesis.txt"):
        with pytest.raises(InputError):
            quantized(sources("ddim"), out)
    assert (precious / "thesis.txt").read_text() == "years of work"


def first_weight(pipeline: DiffusionPipeline) -> torch.Tensor:
    return next(pipeline.text_encoder.parameters()).half()


def test_half_precision_and_sharded_weights_are_read(sources: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = folder.open_pipeline(sources("sd1"))
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert folder.open_pipeline(tmp_path / "half").unet.dtype == torch.float32
    folder.open_pipeline(sources("sd1")).to(torch.float16).save_pretrained(
        tmp_path / "halves", variant="fp16", max_shard_size="40KB"
    )
    for name in ("half", "halves"):
        (tmp_path / name / "out").mkdir()
        quantized_unet = folder.open_pipeline(sources("sd1")).unet  # any will do: the other parts are looked at
        quantized_unet.save_pretrained(tmp_path / name / "unet-of-out")
        folder.assemble(tmp_path / name, tmp_path / name / "unet-of-out", tmp_path / name / "out")
        again = read_json(tmp_path / name / "out" / "model_index.json") | {
            "unet": ["diffusers", "UNet2DConditionModel"]
        }
        (tmp_path / name / "out" / "model_index.json").write_text(json.dumps(again))
        assert torch.equal(*map(first_weight, (folder.open_pipeline(tmp_path / name / "out"), pipeline)))
    folder.open_pipeline(sources("sd1")).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(folder.weights(tmp_path / "shards")) > 1
    state = folder.open_pipeline(tmp_path / "shards").unet.state_dict()
    expected = load_file(sources("sd1") / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    quantized(tmp_path / "shards", tmp_path / "out", edadm.recipe("w8a8", method="none"))


def test_the_image_of_a_seed_depends_on_nothing_else(sources: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = folder.open_pipeline(sources("sd1"))
    pipeline.set_progress_bar_config(disable=True)
    several = list(generate.images(pipeline, "water", None, range(4, 7), steps=2))
    alone = next(generate.images(pipeline, "water", None, range(5, 6), steps=2))
    assert np.array_equal(several[1], alone) and not np.array_equal(several[0], alone)
    assert generate.paths(tmp_path / "a.png", range(4, 6)) == [tmp_path / "a-4.png", tmp_path / "a-5.png"]
