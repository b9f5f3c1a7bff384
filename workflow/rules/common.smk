# What several rules share.


def shards(key, protocol):
    """The stamps of a run's shards; each shard is made by a job of its own, and the stage gathers them."""
    sampling = config["systems"][config["runs"][key]["system"]]["sampling"]
    n = -(-sampling["images"][protocol] // sampling["shard"])
    stage = {"demo": "samples", "full": "samples-full"}[protocol]
    return [f".stamps/shards/{stage}@{key}/{i}-of-{n}" for i in range(n)]
