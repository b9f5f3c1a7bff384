# What several rules share.


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
    n = -(-sampling["images"][protocol] // sampling["shard"])
    return [f".stamps/shards/{stage}/{i}-of-{n}" for i in range(n)]
