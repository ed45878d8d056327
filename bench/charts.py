"""Pictures of results, as SVG: the same file for the same figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from bench.measures import shown

_COLOURS = ("#2f6690", "#d1495b", "#3a7d44", "#edae49", "#6d597a", "#8d99ae", "#00798c", "#b56576", "#556b2f", "#444444")
_STYLE: Any = {
    "svg.hashsalt": "bench",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
}
_WIDTH_IN, _HEIGHT_IN = 7.4, 3.3
_FEW = 6

Row = Mapping[str, Any]


def draw(chart: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    """Draw a chart of a result.

    Args:
        chart: as in the result's JSON, see :class:`bench.measures.Chart`.
        found: the result, as in its JSON.
        path: of the picture; its ending says the format.
    """
    rows: Sequence[Row] = chart["rows"] or found["rows"]
    bars = chart["kind"] == "bars"
    with mpl.rc_context(_STYLE):
        height_in = 0.9 + 0.36 * len(rows) * (0.6 + 0.4 * len(chart["y"])) if bars else _HEIGHT_IN
        figure, axes = plt.subplots(figsize=(_WIDTH_IN, height_in), layout="constrained")
        axes.set_prop_cycle(cycler(linestyle=("-", "--")) * cycler(color=_COLOURS))
        (_bars if bars else _lines)(axes, chart, rows, found["columns"])
        axes.set_title(found["title"], loc="left", fontsize=10, fontweight="bold")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
        plt.close(figure)


def _bars(axes: Axes, chart: Mapping[str, Any], rows: Sequence[Row], names: Mapping[str, str]) -> None:
    thick = 0.8 / len(chart["y"])
    label = names.get(chart["x"], "")
    for number, column in enumerate(chart["y"]):
        places = [at + number * thick - 0.4 + thick / 2 for at in range(len(rows))]
        drawn = axes.barh(
            places, [row[column] for row in rows], height=thick * 0.92, label=names.get(column, column) if len(chart["y"]) > 1 else ""
        )
        axes.bar_label(drawn, labels=[shown(row[column]) for row in rows], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [shown(row[chart["x"]]) for row in rows])
    axes.set_ylabel(label)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(chart["label"])
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(_THOUSANDS)
    if chart["line"] is not None:
        axes.axvline(chart["line"], color="#444444", linestyle="--", linewidth=1, label=chart["line_label"])
    if len(chart["y"]) > 1 or chart["line"] is not None:
        axes.legend(fontsize=8, frameon=False, loc="lower right")


def _lines(axes: Axes, chart: Mapping[str, Any], rows: Sequence[Row], names: Mapping[str, str]) -> None:
    drawn = list(_series(chart, rows, names))
    for label, points in drawn:
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3.5, linewidth=1.5, label=label)
    for scale, set_scale in (("x", axes.set_xscale), ("y", axes.set_yscale)):
        if scale in chart["log"]:
            set_scale("log")
    if "y" in chart["log"]:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a range of less than a decade shows its values, too
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(_THOUSANDS)
    axes.yaxis.set_major_formatter(_THOUSANDS)
    axes.set_xlabel(names.get(chart["x"], chart["x"]))
    axes.set_ylabel(chart["label"])
    places = sorted({row[chart["x"]] for row in rows})
    if len(places) <= _FEW:
        axes.set_xticks(places)
        axes.minorticks_off()
    if chart["line"] is not None:
        axes.axhline(chart["line"], color="#444444", linestyle="--", linewidth=1, label=chart["line_label"])
    if len(drawn) > 1 or chart["line"] is not None:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _series(chart: Mapping[str, Any], rows: Sequence[Row], names: Mapping[str, str]) -> Iterator[tuple[str, list[tuple[Any, Any]]]]:
    column, *more = chart["y"]
    if chart["series"]:
        for value in dict.fromkeys(row[chart["series"]] for row in rows):
            yield str(value), [(row[chart["x"]], row[column]) for row in rows if row[chart["series"]] == value]
        return
    for name in (column, *more):
        yield names.get(name, name), [(row[chart["x"]], row[name]) for row in rows]


_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.6g}" if abs(value) < 1_000 else f"{value:,.0f}")
