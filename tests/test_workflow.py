"""The project's own Snakefile, dvc.yaml and params.yaml, with a stub for `edadm`: what runs again after what."""

import ast
import re
import shutil
from functools import cache
from pathlib import Path

import yaml
from workspace import EVERYTHING, GATHERED, PER_RUN, PUBLISHED, ROOT, RUNS, SYSTEM, Workspace, copied, families

AFTER_W4A8 = {f"{family}@{SYSTEM}-w4a8" for family in PER_RUN} | GATHERED
OUTPUTS = {"reconstruction": "quantized", "samples": "samples"}


def test_first_run_makes_everything_once(finished: Workspace) -> None:
    shards = [f"samples@{run} {index}/2" for run in RUNS for index in range(2)]
    assert sorted(finished.log.read_text().splitlines()) == sorted([*EVERYTHING, *shards])
    tracked = finished.call("git", "ls-files", "results").stdout.split()
    of_run = [
        f"results/{SYSTEM}/{run.removeprefix(SYSTEM)[1:]}/{name}"
        for run in RUNS
        for name in ("metrics.json", "verification.json", "layer-errors.csv")
    ]
    tables = [f"results/tables/{name}.csv" for name in ("exactness", "latency", "quality", "size")]
    of_system = [f"results/{SYSTEM}/{name}.json" for name in ("latency-cpu", "reference")]
    assert sorted(tracked) == sorted([*of_run, *of_system, *tables])
    assert (finished.folder / "results/report.html").exists()


def test_second_run_does_nothing(space: Workspace) -> None:
    assert "Nothing to be done" in space.snakemake().stdout
    assert "up to date" in space.call("dvc", "repro").stdout
    assert space.ran() == []


def test_what_the_rules_record_is_what_dvc_records(
    finished: Workspace, space: Workspace, bin_folder: Path, tmp_path: Path
) -> None:
    """A changed stage in the midst of dvc.lock, a stage that it lacks, and no dvc.lock: to the byte."""
    twin, name = copied(finished, tmp_path / "twin", bin_folder), f"metrics@{RUNS[0]}"
    records = {}
    for each, words in ((space, ["python", "workflow/repro.py"]), (twin, ["dvc", "repro", "--single-item"])):
        lock, source = each.folder / "dvc.lock", each.folder / "src/edadm/evaluation/metrics.py"
        records[each] = []
        for edit in ("changed", "lacking", "none"):
            source.write_text(f"{edit}\n")
            if edit == "lacking":
                head, block, rest = re.split(rf"(^  {name}:\n(?:    .*\n)+)", lock.read_text(), flags=re.MULTILINE)
                assert block and rest
                lock.write_text(head + rest)
            if edit == "none":
                lock.unlink()
            each.call(*words, name)
            records[each].append(lock.read_bytes())
        assert each.ran() == [name] * 3
    assert records[space] == records[twin] and len(set(records[space])) == 3


def test_recipe_edit_runs_that_run_and_what_follows(space: Workspace) -> None:
    space.edit("params.yaml", "iterations: 400", "iterations: 7")
    assert space.announced() == AFTER_W4A8
    space.snakemake()
    assert set(space.ran()) == AFTER_W4A8
    space.call("dvc", "repro")
    assert space.ran() == []
    # back to the old value: all of it is in DVC's run cache
    space.edit("params.yaml", "iterations: 7", "iterations: 400")
    space.call("dvc", "repro")
    assert space.ran() == []
    assert "Nothing to be done" in space.snakemake().stdout


def test_metrics_source_edit_runs_metrics_and_what_follows(space: Workspace) -> None:
    source = space.folder / "src/edadm/evaluation/metrics.py"
    metrics = {f"metrics@{run}" for run in RUNS}
    source.write_text(source.read_text() + "# a comment\n")
    assert space.announced() == metrics | {"tables", "report"}
    space.call("dvc", "repro")
    assert set(space.ran()) == metrics  # the same numbers: nothing after it
    source.write_text(source.read_text() + "changed = True\n")
    assert space.announced() == metrics | {"tables", "report"}
    space.snakemake()
    assert set(space.ran()) == metrics | {"tables", "report"}


def test_lost_and_damaged_outputs_come_back_without_running(space: Workspace) -> None:
    of_run = space.folder / "results" / SYSTEM / "w4a8"
    lost, damaged, edited = of_run / "quantized", of_run / "engine-cpu" / "data.bin", of_run / "metrics.json"
    wanted = {path: path.read_bytes() for path in (lost / "data.bin", damaged, edited)}
    shutil.rmtree(lost)
    damaged.unlink()  # it may be a link into the cache
    damaged.write_text("damaged")
    edited.unlink()
    edited.write_text('{"fid": 0}\n')
    (space.folder / "results/report.html").unlink()
    space.snakemake()
    assert space.ran() == []
    assert {path: path.read_bytes() for path in wanted} == wanted
    assert (space.folder / "results/report.html").exists()


def test_removed_run_goes_from_the_tables(space: Workspace) -> None:
    params = yaml.safe_load((space.folder / "params.yaml").read_text())
    del params["runs"][RUNS[1]]
    (space.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    space.call("dvc", "repro")
    assert set(space.ran()) == GATHERED
    assert "Nothing to be done" in space.snakemake().stdout
    assert not (space.folder / f"results/index/{SYSTEM}/metrics/w4a8").exists()


def test_a_system_is_added_by_its_block(space: Workspace) -> None:
    """That of docs/add-a-system.md; test_cli.py runs its commands."""
    block = yaml.safe_load((ROOT / "docs" / "add-a-system.md").read_text().split("```yaml")[1].split("```")[0])
    ((name, settings),) = block["systems"].items()
    model = space.folder / settings["checkpoint"]["source"] / "model.bin"
    model.parent.mkdir(parents=True)
    model.write_text("weights")
    params = yaml.safe_load((space.folder / "params.yaml").read_text())
    params["pipeline"]["systems"].append(name)
    for key in ("runs", "systems"):
        params[key] |= block[key]
    (space.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    of_system = {f"checkpoint@{name}", f"reference@{name}", f"calibration@{name}-tdac", f"latency@{name}-cpu"}
    of_runs = {f"{family}@{run}" for family in PER_RUN for run in block["runs"]}
    assert space.announced() == of_system | of_runs | GATHERED


def test_full_protocol_is_a_target_of_its_own(space: Workspace) -> None:
    full = {f"{family}@{run}" for family in ("samples-full", "metrics-full") for run in RUNS} | {"tables-full"}
    space.snakemake("full")
    assert set(space.ran()) == full
    assert "up to date" in space.call("dvc", "repro", "full/dvc.yaml").stdout
    # of a change one line a stage, without those that follow from it, and one for the target that nobody asked for
    source = "src/edadm/evaluation/metrics.py"
    space.edit(source, "\n", "\n# a comment\n")
    said = [line for line in space.snakemake("-n").stdout.splitlines() if line.startswith("changed: ")]
    assert said == [f"changed: metrics@{run}: {source} modified" for run in RUNS] + [
        f"changed: stages of full/dvc.yaml ({len(RUNS)}): see `dvc status full/dvc.yaml`"
    ]


def test_ablation_is_a_target_of_its_own(space: Workspace) -> None:
    calibrated = {f"calibration-ablation@{name}-0" for name in ("tdac", "uniform")}
    stages = ("reconstruction", "deployment", "samples", "metrics")
    measured = {f"{stage}-ablation@row{row}-0" for stage in stages for row in (0, 1)}
    space.edit("params.yaml", "- 0\n  - 1\n", "- 0\n")  # one repetition
    space.snakemake("ablation")
    assert set(space.ran()) == calibrated | measured | {"ablation"}
    assert "up to date" in space.call("dvc", "repro", "ablation/dvc.yaml").stdout
    assert "Nothing to be done" in space.snakemake("-n", "ablation").stdout
    # a row and a repetition taken away go from the table, and nothing else runs
    measured_once = space.folder / f"results/index-ablation/{SYSTEM}/metrics"
    (measured_once / "fp32-1").write_text("")
    params = yaml.safe_load((space.folder / "params.yaml").read_text())
    del params["ablation"]["rows"][1]
    (space.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    space.call("dvc", "repro", "ablation/dvc.yaml")
    assert space.ran() == ["ablation"]
    assert [path.name for path in measured_once.iterdir()] == ["fp32-0"]


def test_published_systems_are_a_target_of_their_own(space: Workspace) -> None:
    of_system = {f"{family}-published@{PUBLISHED}" for family in ("checkpoint", "reference", "calibration", "latency")}
    of_runs = {f"{family}-published@{PUBLISHED}-{variant}" for family in PER_RUN for variant in ("fp32", "w4a8")}
    stages = of_system | of_runs | {"tables-published", "report-published"}
    assert space.announced(PUBLISHED) == of_system | of_runs
    said = space.snakemake("-n", "paper").stdout
    assert space.stages_in(said) == stages
    assert "ema_diffusion_cifar10_model-790000.ckpt (size not published) from https://heibox" in said
    assert "cifar-10-binary.tar.gz (170.1 MB) from https://www.cs.toronto.edu" in said
    space.snakemake("paper")
    assert set(space.ran()) == stages
    assert "up to date" in space.call("dvc", "repro", "published/dvc.yaml").stdout
    # the recipe that the run names, not the label it bears
    params = yaml.safe_load((space.folder / "params.yaml").read_text())
    params["variants"]["cifar10-w4a8"]["reconstruction"]["rate_steps"] = 0.0006
    (space.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    after = {f"{family}-published@{PUBLISHED}-w4a8" for family in PER_RUN}
    gathered = {f"latency-published@{PUBLISHED}", "tables-published", "report-published"}
    # a system taken away goes from the tables
    (space.folder / "results/index-published/other/metrics").mkdir(parents=True)
    (space.folder / "results/index-published/other/metrics/fp32").write_text("")
    assert space.announced("paper") == after | gathered
    assert not (space.folder / "results/index-published/other/metrics/fp32").exists()


def test_wrong_params_are_one_line(space: Workspace) -> None:
    space.edit("params.yaml", "weights: 4", "weights: 9")
    stamps = set((space.folder / ".stamps").iterdir())
    done = space.snakemake(check=False)
    assert done.returncode != 0
    lines = [
        line for line in done.stdout.splitlines() if line and not line.startswith("Using workflow specific profile")
    ]
    assert lines == ["params.yaml: variants.w4a8.weights: 9 is not allowed; allowed: 2 to 8, or 32 (not quantized)"]
    assert space.ran() == [] and set((space.folder / ".stamps").iterdir()) == stamps


def test_dvc_lists_the_stages_of_every_file(space: Workspace) -> None:
    listed = space.call("dvc", "stage", "list", "--all", "--name-only").stdout.split()
    assert {name.rpartition(":")[2].partition("@")[0] for name in listed} == set(families())


def test_a_shard_that_fails_says_why_and_no_more(space: Workspace, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "edadm"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho 'edadm: no such image' >&2\nexit 2\n")
    command.chmod(0o755)
    space.environment["PATH"] = f"{command.parent}:{space.environment['PATH']}"
    shutil.rmtree(space.folder / ".dvc" / "cache" / "runs")
    space.edit("dvc.lock", f"  samples@{SYSTEM}-w4a8:", f"  former@{SYSTEM}-w4a8:")
    done = space.call("python", "workflow/shard.py", f"samples@{SYSTEM}-w4a8", "0/2", check=False)
    assert (done.returncode, done.stdout) == (2, "edadm: no such image\n")


def test_params_that_stages_name_are_there() -> None:
    """DVC runs no stage of which one is missing, though it has a default."""
    known = yaml.safe_load((ROOT / "params.yaml").read_text()).keys()
    for family, stage in families().items():
        assert {param.partition(".")[0] for param in stage.get("params", [])} <= known, family


def test_without_git_is_one_line(space: Workspace) -> None:
    shutil.rmtree(space.folder / ".git")
    done = space.snakemake("-n", check=False)
    line = done.stdout.splitlines()[-1]
    assert done.returncode != 0 and "is not a git repository" in line and "git init" in line
    assert "Traceback" not in done.stdout


def test_each_stage_family_has_a_rule() -> None:
    text = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    rules = {name.replace("_", "-") for name in re.findall(r"^rule (\w+):", text, re.MULTILINE)}
    assert rules - {"sample-shard"} == set(families())


def modules_read(path: Path, seen: set[Path]) -> set[Path]:
    """The modules of the project that the module at ``path`` imports, however indirectly, and itself."""
    if path not in seen:
        seen.add(path)
        for each in (*all_imported(parsed(path)), *LOADED_BY_NAME.get(path, ())):
            modules_read(each, seen)
    return seen


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def all_imported(tree: ast.AST) -> list[Path]:
    """The modules of the project that a piece of code imports by itself."""
    return [path for node in ast.walk(tree) for path in imported(node)]


def imported(node: ast.AST) -> list[Path]:
    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("edadm"):
        return []
    package = SOURCE.parent / Path(*node.module.split("."))
    named = [
        path for alias in node.names for path in (package / f"{alias.name}.py", package / alias.name / "__init__.py")
    ]
    return [path for path in (*named, package.with_suffix(".py"), package / "__init__.py") if path.exists()]


SOURCE = ROOT / "src" / "edadm"
LOADED_BY_NAME = {SOURCE / "engines" / "__init__.py": [SOURCE / "engines" / "cpu.py"]}
# what a command reads but its results do not depend on: plumbing, and modules of which it calls nothing that matters
PLUMBING = {SOURCE / name for name in ("__init__.py", "_torchvision.py", "errors.py", "files.py")}
PLUMBING |= set((SOURCE / "params").glob("*.py"))
UNUSED = {
    "train": {"evaluation/samples.py"},
    "checkpoint": {"systems/class_embedder.py", "systems/text.py", "unets.py"},
    "calibration": {"evaluation/shards.py"},
    "reconstruction": {
        "systems/class_embedder.py",
        "systems/samplers.py",
        "systems/text.py",
        "quantization/baselines.py",
        "quantization/tdac.py",
    },
    "deployment": {
        "engines/__init__.py",
        "engines/conditioning.py",
        "engines/moves.py",
        "engines/saturation.py",
        "engines/upsampling.py",
    },
    "samples": {"engines/reference.py", "quantization/quantizer.py"},
    "verification": {
        "engines/__init__.py",
        "quantization/baselines.py",
        "quantization/quantizer.py",
        "quantization/tdac.py",
    },
    "layer-errors": {
        "engines/__init__.py",
        "engines/batches.py",
        "engines/conditioning.py",
        "engines/cpu.py",
        "engines/graph.py",
        "engines/moves.py",
        "engines/processor.py",
        "engines/saturation.py",
        "engines/upsampling.py",
        "quantization/autoencoder.py",
        "quantization/baselines.py",
        "quantization/quantizer.py",
        "quantization/tdac.py",
        "systems/class_embedder.py",
        "systems/samplers.py",
        "systems/text.py",
    },
    "latency": {"engines/reference.py", "quantization/quantizer.py", "systems/samplers.py"},
}
# what only the published systems come from, are conditioned on or are measured with
OF_PUBLISHED = {SOURCE / "systems" / name for name in ("download.py", "published.py")}
OF_PUBLISHED |= {SOURCE / "evaluation" / name for name in ("clip_score.py", "inception.py", "real_images.py")}
OF_PUBLISHED |= {SOURCE / "report" / "published.py", *(SOURCE / "systems" / "originals").glob("*.py")}
COMMANDS = {
    "calibration": "calibrate",
    "reconstruction": "reconstruct",
    "deployment": "deploy",
    "samples": "sample",
    "verification": "verify",
    "layer-errors": "layer_errors",
}


def test_the_run_cache_takes_every_stage() -> None:
    """DVC keeps no run of a stage with a plain output outside its cache; metrics and plots may lie outside."""
    for name, stage in families().items():
        for out in stage.get("outs", []):
            assert isinstance(out, str) or all(settings.get("cache", True) for settings in out.values()), name


def test_stages_depend_on_the_sources_that_their_commands_import() -> None:
    """An edit of a module must not leave old results in place."""
    trees = [parsed(path) for path in (SOURCE / "cli").glob("*.py")]
    functions = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    for family, stage in families().items():
        name = re.sub("-(full|ablation|published)$", "", family)
        read: set[Path] = set()
        for path in all_imported(functions[COMMANDS.get(name, name)]):
            modules_read(path, read)
        read -= PLUMBING | {SOURCE / unused for unused in UNUSED.get(name, ())}
        if not family.endswith("-published"):
            read -= OF_PUBLISHED
        needed = {str(path.relative_to(ROOT)) for path in read if len(parsed(path).body) > 1}
        listed = {dep for dep in stage["deps"] if dep.startswith("src/")}
        assert needed <= listed, f"{family}: dvc.yaml lacks {sorted(needed - listed)}"
        assert all((ROOT / dep).exists() for dep in listed), f"{family}: {sorted(listed)}"
