# From an engine to numbers.


rule reference:
    input:
        lambda w: stages.inputs(f"reference@{w.key}"),
    output:
        touch(".stamps/reference@{key}"),
    log:
        "logs/reference@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} reference@{wildcards.key} 2>&1 | tee -i {log}"


rule verification:
    input:
        lambda w: stages.inputs(f"verification@{w.key}"),
    output:
        touch(".stamps/verification@{key}"),
    log:
        "logs/verification@{key}.log",
    conda:
        "../../env.yaml"
    threads: EVALUATION_THREADS
    resources:
        mem_mb=4000,
        runtime=30,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} verification@{wildcards.key} 2>&1 | tee -i {log}"


rule layer_errors:
    input:
        lambda w: stages.inputs(f"layer-errors@{w.key}"),
    output:
        touch(".stamps/layer-errors@{key}"),
    log:
        "logs/layer-errors@{key}.log",
    conda:
        "../../env.yaml"
    threads: EVALUATION_THREADS
    resources:
        mem_mb=2000,
        runtime=30,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} layer-errors@{wildcards.key} 2>&1 | tee -i {log}"


rule sample_shard:
    input:
        lambda w: stages.inputs(f"{w.stage}@{w.key}"),
    output:
        temp(touch(".stamps/shards/{stage}@{key}/{i}-of-{n}")),
    log:
        "logs/{stage}@{key}/{i}-of-{n}.log",
    conda:
        "../../env.yaml"
    threads: EVALUATION_THREADS
    resources:
        mem_mb=lambda w: 16000 if w.stage == "samples-published" else 4000,
        runtime=lambda w: 2880 if w.stage == "samples-published" else 240,
        gpu=0,
    params:
        stage=lambda w: stages.stages[f"{w.stage}@{w.key}"].addressing,
    shell:
        "python workflow/shard.py {params.stage} {wildcards.i}/{wildcards.n} 2>&1 | tee -i {log}"


rule samples:
    input:
        lambda w: stages.inputs(f"samples@{w.key}"),
        lambda w: shards(w.key, "demo"),
    output:
        touch(".stamps/samples@{key}"),
    log:
        "logs/samples@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} samples@{wildcards.key} 2>&1 | tee -i {log}"


rule samples_full:
    input:
        lambda w: stages.inputs(f"samples-full@{w.key}"),
        lambda w: shards(w.key, "full"),
    output:
        touch(".stamps/samples-full@{key}"),
    log:
        "logs/samples-full@{key}.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} full/dvc.yaml:samples-full@{wildcards.key} 2>&1 | tee -i {log}"


rule metrics:
    input:
        lambda w: stages.inputs(f"metrics@{w.key}"),
    output:
        touch(".stamps/metrics@{key}"),
    log:
        "logs/metrics@{key}.log",
    conda:
        "../../env.yaml"
    threads: EVALUATION_THREADS
    resources:
        mem_mb=3000,
        runtime=60,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} metrics@{wildcards.key} 2>&1 | tee -i {log}"


rule metrics_full:
    input:
        lambda w: stages.inputs(f"metrics-full@{w.key}"),
    output:
        touch(".stamps/metrics-full@{key}"),
    log:
        "logs/metrics-full@{key}.log",
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
        "{params.repro} full/dvc.yaml:metrics-full@{wildcards.key} 2>&1 | tee -i {log}"


rule latency:
    input:
        lambda w: stages.inputs(f"latency@{w.key}"),
    output:
        touch(".stamps/latency@{key}"),
    log:
        "logs/latency@{key}.log",
    conda:
        "../../env.yaml"
    threads: all_cores
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=0,
        slurm_extra="--exclusive",
    params:
        repro=REPRO,
    shell:
        "{params.repro} latency@{wildcards.key} 2>&1 | tee -i {log}"
