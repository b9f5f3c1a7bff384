"""Plots as inline SVG whose text and colours come from the page, so that they follow its font and dark mode."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# matplotlib cannot write a CSS variable, so it draws with stand-ins that are replaced in its output
INK, MUTED, LINE, ACCENT, BASE = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", BASE: "--base"}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of layers are text, never formulas
    "font.size": 8,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
# above the axis at the right, since titles stand at the left
_LEGEND = {
    "loc": "lower right",
    "bbox_to_anchor": (1, 1),
    "borderaxespad": 0.3,
    "borderpad": 0,
    "handletextpad": 0.4,
    "columnspacing": 1.2,
    "frameon": False,
    "labelcolor": MUTED,
}
_SMALLEST = 1e-12  # what an error of exactly 0 becomes on a logarithmic axis


@dataclass
class Unit:
    """One reconstruction unit: its output error (MSE against fp32) before and after, and its curve of the loss."""

    name: str
    kind: str  # "block", "layer", or "network" when all of it is tuned
    before: float
    after: float
    iterations: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def gain(self) -> float:
        """How many times smaller the error became."""
        return max(self.before, _SMALLEST) / max(self.after, _SMALLEST)


@dataclass
class Layer:
    """One layer's signal-to-quantization-noise ratios in dB: within the quantized network, and alone."""

    name: str
    index: int  # place in execution order
    sqnr: float
    alone: float


def _svg(name: str, width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """What ``draw`` does on an axis of width x height inches, as one ``<svg>``; ``name`` is unique on the page."""
    text = io.StringIO()
    # a fixed salt makes the ids in the file the same each time; the plot's name keeps two plots' ids apart
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)  # HTML knows them
    referred = set(re.findall(r"#([\w-]+)", svg))
    # the others are figure_1 and the like, the same in every plot
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referred else "", svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # the figure's caption says what is shown; what a screen reader would read out here are tick labels
    opening = r'<svg \1 aria-hidden="true" focusable="false">'
    return re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", opening, svg, count=1)


def _tick(value: float, _position: int | None = None) -> str:
    """0.002 as it is, 0.0002 as 2·10⁻⁴, without formula fonts."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _logarithmic(axis: Axis, values: list[float]) -> None:
    """Ticks at powers of ten, or at 1, 2 and 5 times them where the values span little."""
    narrow = max(values) < 30 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=7))
    axis.set_major_formatter(FuncFormatter(_tick))
    axis.set_minor_formatter(NullFormatter())


def per_step(name: str, title: str, values: list[float], uniform: float | None = None) -> str:
    """``values`` (T) against the sampling step 1..T: a line, or bars beside a dashed level ``uniform``."""

    def draw(axis: Axes) -> None:
        steps = range(1, len(values) + 1)
        if uniform is None:
            axis.plot(steps, values, color=ACCENT, linewidth=1.6, marker="o", markersize=2.6)
            axis.set_ylim(bottom=min(0, *values))
        else:
            axis.bar(steps, values, color=ACCENT, width=0.72)
            axis.axhline(uniform, color=INK, linewidth=0.9, linestyle=(0, (3, 3)), label="uniform")
            axis.legend(**_LEGEND)
        axis.set_title(title)
        axis.set_xlabel("sampling step (noise → image)")
        axis.set_xlim(0.3, len(values) + 0.7)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axis.yaxis.set_major_locator(MaxNLocator(5))

    return _svg(name, 3.7, 2.3, draw)


def unit_errors(name: str, title: str, units: list[Unit]) -> str:
    """Each unit's error before (hollow) and after (filled) reconstruction, in execution order from the top."""

    def draw(axis: Axes) -> None:
        rows = range(len(units))
        before = [max(unit.before, _SMALLEST) for unit in units]
        after = [max(unit.after, _SMALLEST) for unit in units]
        axis.hlines(rows, before, after, color=BASE, linewidth=1.4)
        axis.plot(before, rows, "o", markersize=4.2, markerfacecolor="none", markeredgecolor=MUTED, label="nearest")
        axis.plot(after, rows, "o", markersize=4.8, color=ACCENT, markeredgewidth=0, label="learned")
        axis.set_xscale("log")
        _logarithmic(axis.xaxis, before + after)
        axis.grid(True, axis="x")
        axis.grid(False, axis="y")
        axis.set_yticks(list(rows), [unit.name for unit in units], fontsize=7)
        axis.set_ylim(len(units) - 0.4, -0.6)
        axis.spines["left"].set_visible(False)
        axis.set_title(title)
        axis.set_xlabel("error of the unit's output (MSE against fp32)")
        axis.legend(ncols=2, **_LEGEND)

    return _svg(name, 4.4, 0.95 + 0.185 * len(units), draw)


def loss_curves(name: str, title: str, units: list[Unit]) -> str:
    """Every unit's loss divided by its first value, thin, and the median of all, thick."""

    def draw(axis: Axes) -> None:
        at: dict[int, list[float]] = {}
        for unit in units:
            start = max(unit.losses[0], _SMALLEST)
            curve = [max(loss, _SMALLEST) / start for loss in unit.losses]
            axis.plot(unit.iterations, curve, color=BASE, linewidth=0.7)
            for iteration, value in zip(unit.iterations, curve, strict=True):
                at.setdefault(iteration, []).append(value)
        middle = sorted((iteration, median(values)) for iteration, values in at.items())
        axis.plot(*zip(*middle, strict=True), color=ACCENT, linewidth=2)
        axis.set_yscale("log")
        # a unit that falls by orders of magnitude would flatten all others: the lowest twentieth may leave the axis
        lows = sorted(min(unit.losses) / max(unit.losses[0], _SMALLEST) for unit in units)
        least = max(lows[len(lows) // 20], _SMALLEST)
        highest = max(value for values in at.values() for value in values)
        axis.set_ylim(least / 1.1, 1.1 * highest)
        _logarithmic(axis.yaxis, [least, highest])
        axis.set_title(title)
        axis.set_xlabel("iteration")

    return _svg(name, 4.4, 2.6, draw)


def _part(layer: str) -> str:
    """The block of a U-Net that a layer is in, in short; nothing outside the blocks.

    >>> _part("up_blocks.1.resnets.0.conv1"), _part("mid_block.attentions.0.to_q"), _part("conv_in")
    ('↑1', 'mid', '')
    """
    first, _, rest = layer.partition(".")
    arrow = {"down_blocks": "↓", "up_blocks": "↑"}.get(first)
    return f"{arrow}{rest.partition('.')[0]}" if arrow else "mid" if first == "mid_block" else ""


def layer_errors(name: str, title: str, layers: list[Layer], limits: tuple[float, float]) -> str:
    """Each layer's ratio in the network (line) and alone (hollow), in execution order; ``limits`` of the dB axis."""

    def draw(axis: Axes) -> None:
        order = [layer.index for layer in layers]
        alone, within = [layer.alone for layer in layers], [layer.sqnr for layer in layers]
        axis.plot(order, alone, "o", markersize=3, markerfacecolor="none", markeredgecolor=MUTED, label="alone")
        axis.plot(order, within, color=ACCENT, linewidth=1.3, marker="o", markersize=2.4, label="in the network")
        parts = [_part(layer.name) for layer in layers]
        starts: dict[str, int] = {}
        for part, place in zip(parts, order, strict=True):
            starts.setdefault(part, place)
        ticks: dict[str, int] = {}  # each block's first layer, unless its label would run into the one before
        for part, place in starts.items():
            if part and (not ticks or place - max(ticks.values()) > len(order) / 25):
                ticks[part] = place
        axis.set_xticks(list(ticks.values()), list(ticks), fontsize=7)
        axis.grid(True, axis="x")
        for label in axis.get_xticklabels():
            label.set_horizontalalignment("left")
        axis.set_ylim(*limits)
        axis.set_xlim(min(order) - 1, max(order) + 1)
        axis.set_title(title)
        axis.set_ylabel("dB")
        axis.legend(ncols=2, **_LEGEND)

    return _svg(name, 4.4, 2.4, draw)
