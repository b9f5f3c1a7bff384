"""The stages as jobs of a real Slurm: the same results as here, what each job asks for, and nothing left to do."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
import yaml
from workspace import SYSTEM, Workspace, copied, stub_in

PROFILE = ["snakemake", "--profile", "workflow/profiles/slurm"]
# The plugin looks after so many seconds, and then every ten seconds more: short jobs are to be over at the second look.
SOON = ["--slurm-init-seconds-before-status-checks", "2"]
RUN = f"{SYSTEM}-w4a8"
LOST = {f"samples@{RUN}", f"latency@{SYSTEM}-cpu"}
RESULTS = (f"{SYSTEM}/w4a8/samples", f"{SYSTEM}/latency-cpu.json")
ON_GPU = "calibration-ablation@uniform-0"  # it needs nothing of the others: a job beside them
TARGETS = [f".stamps/{stage}" for stage in (*sorted(LOST), ON_GPU)]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Cluster]:
    if lacking := slurm_cluster.missing():
        if shutil.which("apt-get") and os.geteuid() == 0:
            pytest.fail(f"not installed: {lacking}; run `make debian-packages`")
        pytest.skip(f"not installed, and not to be installed here: {lacking}")
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def on_cluster(finished: Workspace, cluster: slurm_cluster.Cluster, tmp_path: Path) -> Workspace:
    """A copy of the finished workspace whose commands are those of the test's own Slurm."""
    space = copied(finished, tmp_path / "project", stub_in(tmp_path / "bin"))
    space.environment["PATH"] = f"{cluster.clients}{os.pathsep}{space.environment['PATH']}"
    return space


def forget(space: Workspace) -> None:
    """Make the stages LOST ones that have never run here."""
    recorded = locked(space)
    kept = {name: stage for name, stage in recorded.items() if name not in LOST}
    (space.folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": kept}, sort_keys=False))
    shutil.rmtree(space.folder / ".dvc" / "cache" / "runs")
    for name in RESULTS:
        path = space.folder / "results" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def locked(space: Workspace) -> dict[str, dict]:
    """What dvc.lock says of each stage: with the hashes of what it read and wrote."""
    return yaml.safe_load((space.folder / "dvc.lock").read_text())["stages"]


def contents(space: Workspace) -> dict[str, bytes]:
    """The bytes of each file of RESULTS."""
    found = {}
    for name in RESULTS:
        top = space.folder / "results" / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            found[str(path.relative_to(space.folder))] = path.read_bytes()
    return found


def test_jobs_make_what_a_local_run_makes(
    finished: Workspace, on_cluster: Workspace, cluster: slurm_cluster.Cluster
) -> None:
    space = on_cluster
    forget(space)
    with (space.folder / "params.yaml").open("a") as file:
        file.write("device: cuda\n")  # not a parameter of any stage: results are to be the same
    space.call(*PROFILE, *SOON, *TARGETS)

    assert set(space.ran()) == LOST | {ON_GPU}
    assert contents(space) == contents(finished)
    assert locked(space) == locked(finished)
    assert "up to date" in space.call("dvc", "status", "dvc.yaml").stdout
    jobs = {job["Comment"]: job for job in cluster.jobs()}
    shards = {f"rule_sample_shard_wildcards_samples_{RUN}_{index}_2" for index in range(2)}
    gathered = {f"rule_{name.replace('@', '_wildcards_')}" for name in LOST}
    gpu, latency = "rule_calibration_ablation_wildcards_uniform-0", f"rule_latency_wildcards_{SYSTEM}-cpu"
    assert set(jobs) == shards | gathered | {gpu}
    assert {job["JobState"] for job in jobs.values()} == {"COMPLETED"}
    assert [name for name, job in jobs.items() if "gpu" in job.get("TresPerJob", "")] == [gpu]
    assert [name for name, job in jobs.items() if job["OverSubscribe"] == "NO"] == [latency]  # alone on its node
    samples = jobs[f"rule_samples_wildcards_{RUN}"]
    assert (samples["MinMemoryNode"], samples["TimeLimit"], samples["Partition"]) == ("2000M", "01:00:00", "main")

    assert "Nothing to be done" in space.call(*PROFILE, *TARGETS).stdout
    assert len(cluster.jobs()) == len(jobs) and space.ran() == []
