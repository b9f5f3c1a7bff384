# The models under assets/, from scratch; no other target asks for it: `snakemake .stamps/train@fashion-ddim`.


rule train:
    output:
        touch(".stamps/train@{key}"),
    log:
        "logs/train@{key}.log",
    conda:
        "../../env.yaml"
    threads: THREADS
    resources:
        mem_mb=4000,
        runtime=240,
        gpu=GPU,
    params:
        repro=GPU_REPRO,
    shell:
        "{params.repro} training/dvc.yaml:train@{wildcards.key} 2>&1 | tee -i {log}"
