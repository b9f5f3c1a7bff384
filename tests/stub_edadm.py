"""Stands in for `edadm` in a Workspace: writes small files that depend on what the stage reads, in no time.

Each call appends its stage to $STUB_LOG, or its stage and shard, unless that shard is there already. It waits then, for
as long as there is a file hold-STAGE or hold-STAGE.I-of-N beside $STUB_LOG, into which it writes its process id.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

import yaml

from edadm.processes import end_with_dvc

SOURCES = {"reconstruct": "quantization/fbr.py", "metrics": "evaluation/metrics.py"}
end_with_dvc()
command, *words = sys.argv[1:]
named = [word for word in words if not word.startswith("--")]
published = "--published" in words
words = [word for word in words if word != "--published"]
options = {word[2:]: Path(words[place + 1]) for place, word in enumerate(words) if word.startswith("--")}
out = options["out"]

read = []
for name, path in sorted(options.items()):
    if name not in ("out", "scratch", "results"):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        read += [file.read_bytes() for file in files if file.is_file()] or [str(path).encode()]
if command == "ablation":
    read += [path.read_bytes() for path in sorted(Path("results/index-ablation").glob("*/*/*"))]
if command in ("tables", "report", "latency"):
    gathered = "*/engine-cpu/*" if command == "latency" else "*/*/*"
    index = Path("results/index-published" if published else "results/index")
    read += [path.read_bytes() for path in sorted(index.glob(gathered))]
if command == "reconstruct":
    params = yaml.safe_load(Path("params.yaml").read_text())
    read.append(json.dumps(params["variants"][named[1]]).encode())
if command in SOURCES:
    lines = Path("src/edadm", SOURCES[command]).read_text().splitlines()
    read += [line.encode() for line in lines if not line.startswith("#")]
content = hashlib.sha256(b"\n".join([command.encode(), *read])).hexdigest()

stage = os.environ["DVC_STAGE"].rpartition(":")[2]
log = Path(os.environ["STUB_LOG"])
shard = str(options.get("shard", ""))
made = options["scratch"] / f"{shard.replace('/', '-of-')}.bin" if shard else None
if made and made.exists() and made.read_text() == content:
    sys.exit()
with log.open("a") as file:
    file.write(f"{stage} {shard}".rstrip() + "\n")
hold = log.with_name(f"hold-{stage}" + (f".{shard.replace('/', '-of-')}" if shard else ""))
if hold.exists():
    hold.write_text(str(os.getpid()))
while hold.exists():
    time.sleep(0.1)

(made or out).parent.mkdir(parents=True, exist_ok=True)
if made:
    made.write_text(content)
elif command == "calibrate":
    out.write_text(content)
    out.with_suffix(".json").write_text(json.dumps({"counts": content}))
elif command in ("metrics", "latency", "verify", "reference"):
    if command == "reference":
        out.write_text(content)
        out = out.with_suffix(".json")
    out.write_text(json.dumps({"fid": int(content[:6], 16)}) + "\n")
elif command in ("report", "ablation"):
    out.write_text(content)
elif command == "layer-errors":
    out.write_text(f"layer,index,sqnr_db\nconv_in,0,{int(content[:2], 16)}\nconv_out,1,{int(content[2:4], 16)}\n")
else:
    out.mkdir(exist_ok=True)
    full = options.get("protocol") == Path("full")
    tables = ["quality-full.csv"] if full else ["quality.csv", "size.csv", "exactness.csv", "latency.csv"]
    for name in tables if command == "tables" else ["data.bin"]:
        (out / name).write_text(f"run,fid\n{content},1\n")
if command == "sample" and not made:
    shutil.rmtree(options["scratch"], ignore_errors=True)
