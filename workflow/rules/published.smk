# The published systems; no other target asks for them: `snakemake --cores 4 paper`, or one of them by its name.
# Memory and time are of this kind of machine, two cores; nothing else depends on them.


rule checkpoint_published:
    input:
        lambda w: stages.inputs(f"checkpoint-published@{w.key}"),
    output:
        touch(".stamps/checkpoint-published@{key}"),
    log:
        "logs/checkpoint-published@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=16000,
        runtime=600,
        gpu=0,
    params:
        repro=REPRO,
        files=lambda w: downloads(config["published"]["systems"][w.key]["checkpoint"]["files"].values()),
    message:
        "checkpoint of {wildcards.key}, to download: {params.files}"
    shell:
        "{params.repro} published/dvc.yaml:checkpoint-published@{wildcards.key} 2>&1 | tee -i {log}"


rule reference_published:
    input:
        lambda w: stages.inputs(f"reference-published@{w.key}"),
    output:
        touch(".stamps/reference-published@{key}"),
    log:
        "logs/reference-published@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=8000,
        runtime=600,
        gpu=0,
    params:
        repro=REPRO,
        files=lambda w: downloads(reference_files(w.key)),
    message:
        "reference of {wildcards.key}, to download: {params.files}"
    shell:
        "{params.repro} published/dvc.yaml:reference-published@{wildcards.key} 2>&1 | tee -i {log}"


rule calibration_published:
    input:
        lambda w: stages.inputs(f"calibration-published@{w.key}"),
    output:
        touch(".stamps/calibration-published@{key}"),
    log:
        "logs/calibration-published@{key}.log",
    conda:
        "../../env.yaml"
    threads: THREADS
    resources:
        mem_mb=16000,
        runtime=1440,
        gpu=GPU,
    params:
        repro=GPU_REPRO,
    shell:
        "{params.repro} published/dvc.yaml:calibration-published@{wildcards.key} 2>&1 | tee -i {log}"


rule reconstruction_published:
    input:
        lambda w: stages.inputs(f"reconstruction-published@{w.key}"),
    output:
        touch(".stamps/reconstruction-published@{key}"),
    log:
        "logs/reconstruction-published@{key}.log",
    priority: 1  # as in quantize.smk
    conda:
        "../../env.yaml"
    threads: RECONSTRUCTION_THREADS
    resources:
        mem_mb=24000,
        runtime=4320,
        gpu=GPU,
    params:
        repro=GPU_REPRO,
    shell:
        "{params.repro} published/dvc.yaml:reconstruction-published@{wildcards.key} 2>&1 | tee -i {log}"


rule deployment_published:
    input:
        lambda w: stages.inputs(f"deployment-published@{w.key}"),
    output:
        touch(".stamps/deployment-published@{key}"),
    log:
        "logs/deployment-published@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=16000,
        runtime=60,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} published/dvc.yaml:deployment-published@{wildcards.key} 2>&1 | tee -i {log}"


# From an engine to numbers.


rule verification_published:
    input:
        lambda w: stages.inputs(f"verification-published@{w.key}"),
    output:
        touch(".stamps/verification-published@{key}"),
    log:
        "logs/verification-published@{key}.log",
    conda:
        "../../env.yaml"
    threads: EVALUATION_THREADS
    resources:
        mem_mb=24000,
        runtime=120,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} published/dvc.yaml:verification-published@{wildcards.key} 2>&1 | tee -i {log}"


rule layer_errors_published:
    input:
        lambda w: stages.inputs(f"layer-errors-published@{w.key}"),
    output:
        touch(".stamps/layer-errors-published@{key}"),
    log:
        "logs/layer-errors-published@{key}.log",
    conda:
        "../../env.yaml"
    threads: EVALUATION_THREADS
    resources:
        mem_mb=24000,
        runtime=120,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} published/dvc.yaml:layer-errors-published@{wildcards.key} 2>&1 | tee -i {log}"


rule samples_published:
    input:
        lambda w: stages.inputs(f"samples-published@{w.key}"),
        lambda w: published_shards(w.key),
    output:
        touch(".stamps/samples-published@{key}"),
    log:
        "logs/samples-published@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} published/dvc.yaml:samples-published@{wildcards.key} 2>&1 | tee -i {log}"


rule metrics_published:
    input:
        lambda w: stages.inputs(f"metrics-published@{w.key}"),
    output:
        touch(".stamps/metrics-published@{key}"),
    log:
        "logs/metrics-published@{key}.log",
    conda:
        "../../env.yaml"
    threads: EVALUATION_THREADS
    resources:
        mem_mb=16000,
        runtime=600,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} published/dvc.yaml:metrics-published@{wildcards.key} 2>&1 | tee -i {log}"


rule latency_published:
    input:
        lambda w: stages.inputs(f"latency-published@{w.key}"),
    output:
        touch(".stamps/latency-published@{key}"),
    log:
        "logs/latency-published@{key}.log",
    conda:
        "../../env.yaml"
    threads: all_cores
    resources:
        mem_mb=16000,
        runtime=240,
        gpu=0,
        slurm_extra="--exclusive",
    params:
        repro=REPRO,
    shell:
        "{params.repro} published/dvc.yaml:latency-published@{wildcards.key} 2>&1 | tee -i {log}"


# From numbers to tables and a page.


rule tables_published:
    input:
        stages.inputs("tables-published"),
    output:
        touch(".stamps/tables-published"),
    log:
        "logs/tables-published.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=500,
        runtime=10,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} published/dvc.yaml:tables-published 2>&1 | tee -i {log}"


rule report_published:
    input:
        stages.inputs("report-published"),
    output:
        touch(".stamps/report-published"),
    log:
        "logs/report-published.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} published/dvc.yaml:report-published 2>&1 | tee -i {log}"
