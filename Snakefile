# When and where the stages of dvc.yaml run. What they run, read and write stands there.
import sys
from pathlib import Path

from snakemake.logging import logger

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))
from dvcdag import Stages
from edadm.params import EngineParams

if workflow.is_main_process:
    from edadm import params
    from edadm.errors import InputError

    try:
        params.load("params.yaml")
    except InputError as error:
        sys.exit(str(error))


configfile: "params.yaml"


stages = Stages()
if workflow.is_main_process:
    for line in stages.sync():
        logger.info(line)

REPRO = "python workflow/repro.py"
ENGINE = EngineParams(**config["engine"])
THREADS = ENGINE.threads
RECONSTRUCTION_THREADS = ENGINE.reconstruction_threads
EVALUATION_THREADS = ENGINE.evaluation_threads
# calibration and reconstruction, where params.yaml has them computed on a GPU
GPU = 1 if config.get("device") == "cuda" else 0
GPU_REPRO = f"python workflow/gpu.py {REPRO}" if GPU else REPRO


wildcard_constraints:
    key="[^/]+",


rule all:
    default_target: True
    input:
        stages.stamp("tables"),
        stages.stamp("report"),


rule full:
    input:
        stages.stamp("tables-full"),


for system in config["pipeline"]["systems"]:

    rule:
        name:
            system
        input:
            [stages.stamp(f"metrics@{key}") for key, run in config["runs"].items() if run["system"] == system],
            [stages.stamp(f"verification@{key}") for key, run in config["runs"].items() if run["system"] == system],
            [stages.stamp(f"layer-errors@{key}") for key, run in config["runs"].items() if run["system"] == system],
            [stages.stamp(f"latency@{system}-{device}") for device in config["pipeline"]["devices"]],


rule paper:
    input:
        stages.stamp("tables-published"),
        stages.stamp("report-published"),


for system in config["published"]["systems"]:

    rule:
        name:
            system
        input:
            [
                stages.stamp(f"{family}-published@{key}")
                for key, run in config["published"]["runs"].items()
                if run["system"] == system
                for family in ("metrics", "verification", "layer-errors")
            ],
            stages.stamp(f"latency-published@{system}"),


include: "workflow/rules/common.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/ablation.smk"
include: "workflow/rules/published.smk"
