"""Prompts to calibrate a text-to-image model with."""

from pathlib import Path

from edadm.errors import InputError

# what is drawn when the user gives none: people, animals, things, places and styles, in plain words
DEFAULT = (
    "a photo of a dog running on a beach",
    "a cat asleep on a red sofa",
    "two horses in a green field",
    "an elephant drinking from a river",
    "a bird on a snowy branch",
    "a bowl of fruit on a wooden table",
    "a slice of pizza on a white plate",
    "a cup of coffee beside a book",
    "a birthday cake with candles",
    "a city street at night in the rain",
    "a small village in the mountains",
    "a lighthouse above a stormy sea",
    "a wooden bridge over a stream in autumn",
    "a desert under a starry sky",
    "an old castle on a hill",
    "the inside of a modern kitchen",
    "a tidy bedroom with a large window",
    "an empty train station",
    "a red bus in front of a clock tower",
    "a bicycle leaning against a brick wall",
    "a sailing boat at sunset",
    "an aeroplane above the clouds",
    "a man in a blue coat reading a newspaper",
    "a girl with a yellow umbrella",
    "a group of people playing football",
    "a portrait of an old woman, oil painting",
    "a child's drawing of a house and a sun",
    "a pencil sketch of a pair of hands",
    "a robot watering plants, digital art",
    "a watercolour of a bunch of tulips",
    "a macro photo of a drop of water on a leaf",
    "a black and white photo of a staircase",
)


def read(path: Path) -> list[str]:
    """The lines of a text file, without empty ones; InputError when there are none."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if not any(lines):
        raise InputError(f"{path}: holds no prompt; write one a line")
    return [line for line in lines if line]
