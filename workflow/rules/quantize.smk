# From a checkpoint to an engine.


rule checkpoint:
    input:
        lambda w: stages.inputs(f"checkpoint@{w.key}"),
    output:
        touch(".stamps/checkpoint@{key}"),
    log:
        "logs/checkpoint@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=1000,
        runtime=60,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} checkpoint@{wildcards.key} 2>&1 | tee -i {log}"


rule calibration:
    input:
        lambda w: stages.inputs(f"calibration@{w.key}"),
    output:
        touch(".stamps/calibration@{key}"),
    log:
        "logs/calibration@{key}.log",
    conda:
        "../../env.yaml"
    threads: THREADS
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=GPU,
    params:
        repro=GPU_REPRO,
    shell:
        "{params.repro} calibration@{wildcards.key} 2>&1 | tee -i {log}"


rule reconstruction:
    input:
        lambda w: stages.inputs(f"reconstruction@{w.key}"),
    output:
        touch(".stamps/reconstruction@{key}"),
    log:
        "logs/reconstruction@{key}.log",
    priority: 1  # the longest stage, and a run can do nothing before it: begun last, it would leave cores idle
    conda:
        "../../env.yaml"
    threads: RECONSTRUCTION_THREADS
    resources:
        mem_mb=6000,
        runtime=600,
        gpu=GPU,
    params:
        repro=GPU_REPRO,
    shell:
        "{params.repro} reconstruction@{wildcards.key} 2>&1 | tee -i {log}"


rule deployment:
    input:
        lambda w: stages.inputs(f"deployment@{w.key}"),
    output:
        touch(".stamps/deployment@{key}"),
    log:
        "logs/deployment@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} deployment@{wildcards.key} 2>&1 | tee -i {log}"
