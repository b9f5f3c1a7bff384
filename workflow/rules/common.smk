# What several rules share.


def all_cores(wildcards):
    """What a measurement of time takes: this machine; on a cluster, where it asks for a whole node, what it uses."""
    return workflow.cores if workflow.local_exec else THREADS


def shards(key, protocol):
    """The stamps of a run's shards; each shard is made by a job of its own, and the stage gathers them."""
    stage = {"demo": "samples", "full": "samples-full"}[protocol]
    return shards_of(f"{stage}@{key}", config["runs"][key]["system"], protocol)


def ablation_shards(key):
    """The stamps of the shards of one recipe at one seed of the ablation."""
    return shards_of(f"samples-ablation@{key}", config["ablation"]["system"], "full")


def shards_of(stage, system, protocol):
    """The stamps of the shards of a stage that samples so many images."""
    sampling = config["systems"][system]["sampling"]
    return shards_named(stage, sampling["images"][protocol], sampling["shard"])


def published_shards(key):
    """The stamps of the shards of a published run."""
    sampling = config["published"]["systems"][config["published"]["runs"][key]["system"]]["sampling"]
    return shards_named(f"samples-published@{key}", sampling["images"]["full"], sampling["shard"])


def shards_named(stage, images, shard):
    """The stamps of the shards of so many images."""
    n = -(-images // shard)
    return [f".stamps/shards/{stage}/{i}-of-{n}" for i in range(n)]


def downloads(files):
    """What a job downloads, unless it is there already: name, size and first source of each file."""
    described = []
    for file in files:
        size = f"{file['size'] / 1e6:,.1f} MB" if file.get("size") else "size not published"
        described.append(f"{file['name']} ({size}) from {file['sources'][0]}")
    return ", ".join(described)


def reference_files(system):
    """What the statistics of a published system's real images take, images of the user's own apart."""
    reference = config["published"]["systems"][system]["reference"]
    return [config["published"]["tools"]["inception"], *([reference["file"]] if "file" in reference else [])]
