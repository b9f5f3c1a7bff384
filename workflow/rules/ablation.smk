# The comparison of recipes; no other target asks for it: `snakemake --cores 2 ablation`.


rule calibration_ablation:
    input:
        lambda w: stages.inputs(f"calibration-ablation@{w.key}"),
    output:
        touch(".stamps/calibration-ablation@{key}"),
    log:
        "logs/calibration-ablation@{key}.log",
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
        "{params.repro} ablation/dvc.yaml:calibration-ablation@{wildcards.key} 2>&1 | tee -i {log}"


rule reconstruction_ablation:
    input:
        lambda w: stages.inputs(f"reconstruction-ablation@{w.key}"),
    output:
        touch(".stamps/reconstruction-ablation@{key}"),
    log:
        "logs/reconstruction-ablation@{key}.log",
    priority: 1  # as in quantize.smk
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
        "{params.repro} ablation/dvc.yaml:reconstruction-ablation@{wildcards.key} 2>&1 | tee -i {log}"


rule deployment_ablation:
    input:
        lambda w: stages.inputs(f"deployment-ablation@{w.key}"),
    output:
        touch(".stamps/deployment-ablation@{key}"),
    log:
        "logs/deployment-ablation@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=2000,
        runtime=30,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} ablation/dvc.yaml:deployment-ablation@{wildcards.key} 2>&1 | tee -i {log}"


rule samples_ablation:
    input:
        lambda w: stages.inputs(f"samples-ablation@{w.key}"),
        lambda w: ablation_shards(w.key),
    output:
        touch(".stamps/samples-ablation@{key}"),
    log:
        "logs/samples-ablation@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} ablation/dvc.yaml:samples-ablation@{wildcards.key} 2>&1 | tee -i {log}"


rule metrics_ablation:
    input:
        lambda w: stages.inputs(f"metrics-ablation@{w.key}"),
    output:
        touch(".stamps/metrics-ablation@{key}"),
    log:
        "logs/metrics-ablation@{key}.log",
    conda:
        "../../env.yaml"
    threads: EVALUATION_THREADS
    resources:
        mem_mb=6000,
        runtime=120,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} ablation/dvc.yaml:metrics-ablation@{wildcards.key} 2>&1 | tee -i {log}"


rule ablation:
    input:
        stages.inputs("ablation"),
    output:
        touch(".stamps/ablation"),
    log:
        "logs/ablation.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=500,
        runtime=10,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} ablation/dvc.yaml:ablation 2>&1 | tee -i {log}"
