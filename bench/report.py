"""Results as files: one JSON a figure, and from them the page and the plot in docs/."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from statistics import median

from bench.build import RESULTS
from bench.figures import FIGURES
from bench.measure import Figure, Row, best_peer, ratio, reaches, verdict

DOCS = Path(__file__).parent.parent / "docs"
TITLES = {
    "floor": "floor (bare relay)",
    "lb": "**lb**",
    "lb-single-file": "**lb**, single file",
    "nginx": "nginx",
    "haproxy": "HAProxy",
    "haproxy-splice": "HAProxy, splicing",
    "nghttpx": "nghttpx",
    "envoy": "Envoy",
}
COLOURS = {"floor": "#9a9a9a", "lb": "#0b6e4f", "nginx": "#b8c4d6", "haproxy": "#8fa3bf", "envoy": "#647c9e"}


def save(figure: Figure, rows: list[Row], about: dict[str, str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    content = {"figure": figure.name, "unit": figure.unit, "about": about, "rows": [asdict(row) for row in rows]}
    (RESULTS / f"{figure.name}.json").write_text(json.dumps(content, indent=2) + "\n")


def load(figure: Figure) -> tuple[list[Row], dict[str, str]]:
    """The rows of the last run of this figure, and what they were taken on; empty when it never ran."""
    file = RESULTS / f"{figure.name}.json"
    if not file.exists():
        return [], {}
    content = json.loads(file.read_text())
    return [Row(**row) for row in content["rows"]], content["about"]


def write_docs() -> None:
    taken = [(figure, *load(figure)) for figure in FIGURES]
    taken = [(figure, rows, about) for figure, rows, about in taken if rows]
    if not taken:
        raise SystemExit("bench: no results in bench/results; run `python -m bench` first")
    sections = "\n".join(_section(figure, rows) for figure, rows, _ in taken)
    _plot({figure.name: rows for figure, rows, _ in taken})
    abouts = [about for *_, about in taken]
    summary = "\n".join(_summary(figure, rows) for figure, rows, _ in taken)
    page = {"warning": _warning(abouts), "about": _about(abouts), "summary": summary, "sections": sections}
    (DOCS / "benchmarks.md").write_text(_PAGE % page)


def _about(abouts: list[dict[str, str]]) -> str:
    """What the figures were taken on; where that differs between them, all of it."""
    return "\n".join(
        f"| {key} | {'; '.join(dict.fromkeys(about.get(key, '') for about in abouts))} |" for key in abouts[0]
    )


def _warning(abouts: list[dict[str, str]]) -> str:
    """What else ran makes the figures rough; whoever reads them must know."""
    busy = max(float(about["load before"].split()[0]) for about in abouts)
    return f"**Taken on a busy machine (load {busy:.1f} before the run): rough figures.**\n\n" if busy > 1 else ""


def _summary(figure: Figure, rows: list[Row]) -> str:
    """One line of the table of all figures."""
    lb = next((row for row in rows if row.contender == "lb"), None)
    peer = best_peer(rows)
    cells = [
        f"[{figure.name}](#{_anchor(figure)})",
        _quantity(figure, lb) if lb else "",
        f"{TITLES[peer.contender]}: {_quantity(figure, peer)}" if peer else "",
        f"{ratio(lb, peer):.2f}" if lb and peer and median(peer.values) else "",
        figure.target,
        {True: "yes", False: "**no**", None: ""}[reaches(figure, rows)],
    ]
    return f"| {' | '.join(cells)} |"


def _quantity(figure: Figure, row: Row) -> str:
    return f"{_number(median(row.values))} {figure.unit}"


def _anchor(figure: Figure) -> str:
    """As GitHub makes it from the heading: lower case, punctuation dropped, blanks to dashes."""
    return re.sub(r"[^\w\- ]", "", figure.title.lower()).replace(" ", "-")


def _section(figure: Figure, rows: list[Row]) -> str:
    extras = list(dict.fromkeys(key for row in rows for key in row.extra))
    compared = any(row.bases for row in rows)
    head = [""]
    if compared:
        head += [f"ratio to {figure.ratio_to}", "range"]
    head += [figure.unit, *extras]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in rows:
        cells = [TITLES[row.contender]]
        if compared:
            ratios = row.ratios
            cells += [f"{median(ratios):.2f}", f"{min(ratios):.2f}–{max(ratios):.2f}"] if ratios else ["", ""]
        cells += [_number(median(row.values)), *(_number(row.extra[key]) if key in row.extra else "" for key in extras)]
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    return f"### {figure.title}\n\n{table}\n\n{verdict(figure, rows)} {figure.about}\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.2f}"


def _plot(results: dict[str, list[Row]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("keepalive", "128-byte answers"),
        ("body-16k", "16 KiB answers"),
        ("new-connection", "new connection each"),
    ]
    panels = [(name, title) for name, title in panels if any(row.bases for row in results.get(name, []))]
    if not panels:
        return
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.4 * len(panels), 2.6), squeeze=False)
    for axis, (name, title) in zip(axes[0], panels, strict=True):
        rows = list(reversed(results[name]))
        middle = [median(row.ratios) for row in rows]
        spread = [
            [value - min(row.ratios) for value, row in zip(middle, rows, strict=True)],
            [max(row.ratios) - value for value, row in zip(middle, rows, strict=True)],
        ]
        axis.barh(
            [TITLES[row.contender].replace("*", "").partition(" ")[0] for row in rows],
            middle,
            xerr=spread,
            color=[COLOURS[row.contender] for row in rows],
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
        )
        for index, value in enumerate(middle):
            axis.text(max(rows[index].ratios) + max(middle) * 0.04, index, f"{value:.2f}", va="center", fontsize=8)
        axis.set_xlim(0, max(max(row.ratios) for row in rows) * 1.2)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8, length=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("CPU time per request, as a multiple of a bare relay's (less is better)", fontsize=10)
    figure.tight_layout()
    figure.savefig(DOCS / "benchmarks.png", dpi=150)
    pyplot.close(figure)


_PAGE = """\
# Benchmarks

Written by `python -m bench --write-docs` from the last run of `make bench`. Run it yourself: every configuration is in
`bench/contenders.py` and `bench/carriers.py`, every figure in `bench/figures/`.

![CPU time per request](benchmarks.png)

## How

The proxy runs on one CPU with one worker; the load generator and the backend (a minimal responder in C) share another.
All contenders run at the same time and take turns, several rounds; each ratio pairs two measurements of the same
round, and the tables show the median ratio and its range. **Read the ratios**: absolute numbers are this machine's, on
loopback, and the load side shares it. CPU time is that of the whole process tree, from the kernel's clock, divided by
the completed requests; a run with a wrong or short answer is an error, not a figure. The *floor* is a bare epoll relay
in C that parses nothing: recv, send, recv, send. Every proxy adds X-Forwarded-For, -Proto, -Host, -Port, X-Real-IP and
X-Request-ID (nghttpx the last four as constants), has its access log off, and keeps backend connections without a
limit of requests.

TLS is the same for all: version 1.3, TLS_AES_128_GCM_SHA256, X25519, one self-signed P-256 certificate, SNI, ALPN; the
client offers nothing else and ends the run when it gets something else. Session tickets are on, as each proxy has them
by default; only `tls-resumed` uses them. lb, nginx, HAProxy and nghttpx use the system's OpenSSL, Envoy brings its
own BoringSSL.

| | |
|---|---|
%(about)s

## Figures

%(warning)s\
Each figure's best peer is the one with the least cost; the ratio to it pairs the same rounds where they took turns.
What a figure must reach may name another peer.

| | lb | best peer | lb / best peer | must reach | reached |
|---|---:|---:|---:|---|---|
%(summary)s

%(sections)s"""
