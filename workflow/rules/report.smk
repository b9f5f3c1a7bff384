# From numbers to tables and a page.


rule tables:
    input:
        stages.inputs("tables"),
    output:
        touch(".stamps/tables"),
    log:
        "logs/tables.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=500,
        runtime=10,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} tables 2>&1 | tee -i {log}"


rule tables_full:
    input:
        stages.inputs("tables-full"),
    output:
        touch(".stamps/tables-full"),
    log:
        "logs/tables-full.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=500,
        runtime=10,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} full/dvc.yaml:tables-full 2>&1 | tee -i {log}"


rule report:
    input:
        stages.inputs("report"),
    output:
        touch(".stamps/report"),
    log:
        "logs/report.log",
    conda:
        "../../env.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        repro=REPRO,
    shell:
        "{params.repro} report 2>&1 | tee -i {log}"
