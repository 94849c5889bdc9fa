"""The tables of RESULTS.md: per figure what was run and what the rest takes; per claim rule, numbers and verdict."""

from pathlib import Path

from experiments import claims, estimate, results
from experiments.figures import FIGURES, PAPER, preset_setting
from experiments.runs import Places, Trial

RUN = "python experiments/run_experiments.py"


def figures_table(out: Path) -> str:
    """A row per figure with results, then a line for each that waits, with its command."""
    rows, waiting = ["| figure | ran | verdicts | command |", "|---|---|---|---|"], []
    for name, figure in FIGURES.items():
        table, setting = results.load(out, name), preset_setting(name, PAPER)
        needs = " --crops CROPS" if any(point.data == "ncamelyon" for point in figure.points) else ""
        command = f"`{RUN} {name}{needs}`"
        if table is not None:
            rows.append(f"| {name}: {figure.title} | {ran(table)} | {verdicts(name, table)} | {command} |")
        full = [Trial(point, setting, 1, False, Places(out)) for point in figure.points]
        left = setting.seeds * len(full) - (0 if table is None else int((table["setting"] == PAPER.label).sum()))
        if left:
            hours = setting.seeds * sum(map(estimate.hours, full))
            waiting.append(f"- {name}, {figure.title}: {left:,} runs, {hours:,.0f} GPU hours in all: {command}")
    return "\n".join([*rows, "", "At the scale of Pawlowski 2019 these wait:", "", *waiting])


def ran(table) -> str:
    """Settings with their runs and hours, on which device."""
    parts = []
    for setting, rows in table.groupby("setting"):
        hours, device = rows["seconds"].sum() / 3600, " and ".join(sorted(rows["device"].unique()))
        parts.append(f"{setting}: {len(rows)} runs, {rows['seed'].nunique()} seeds, {hours:.2g} h on {device}")
    return "; ".join(parts)


def verdicts(name: str, table) -> str:
    """How many claims of the figure are confirmed, contradicted, undecided and not yet run, at each setting."""
    parts = []
    for setting, rows in table.groupby("setting"):
        found = [claims.judge(claim, rows)[0] for claim in claims.CLAIMS if claim.figure == name]
        counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in dict.fromkeys(found))
        parts.append(f"{setting}: {counts}")
    return "; ".join(parts)


def claims_table(out: Path) -> str:
    """A row per claim and setting that was judged, and how many claims await runs."""
    lines, waiting = ["| figure | claim | rule | numbers | setting | verdict |", "|---|---|---|---|---|---|"], 0
    for claim in claims.CLAIMS:
        table, before = results.load(out, claim.figure), len(lines)
        for setting, rows in [] if table is None else table.groupby("setting"):
            verdict, numbers = claims.judge(claim, rows)
            if verdict != claims.NOT_RUN:
                cells = [claim.figure, claim.text, claim.rule, numbers, setting, f"**{verdict}**"]
                lines.append(f"| {' | '.join(cells)} |")
        waiting += len(lines) == before
    return "\n".join([*lines, "", f"{waiting} claims await runs: `{RUN} FIGURE`."])
