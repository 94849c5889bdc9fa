"""The tables of RESULTS.md: per figure what was run and what the rest takes; per claim rule, numbers and verdict."""

from pathlib import Path

from experiments import claims, estimate, results
from experiments.figures import FIGURES, PAPER, preset_setting
from experiments.runs import Places, Run

RUN = "python experiments/run_experiments.py"


def figures_table(out: Path) -> str:
    """A row per figure and setting with results, or one for the figure."""
    lines = ["| figure | ran so far | verdicts | the paper's scale | command |", "|---|---|---|---|---|"]
    for name, figure in FIGURES.items():
        table = results.load(out, name)
        setting = preset_setting(name, PAPER)
        full = [Run(point, setting, 1, False, Places(out)) for point in figure.points]
        done = 0 if table is None else int((table["setting"] == PAPER.label).sum())
        hours = setting.seeds * sum(map(estimate.hours, full))
        rest = f"{done:,} of {setting.seeds * len(full):,} runs; {hours:,.0f} GPU hours in all"
        needs = " --crops CROPS" if any(point.data == "ncamelyon" for point in figure.points) else ""
        cells = [f"{name}: {figure.title}", ran(table), verdicts(name, table), rest]
        lines.append(f"| {' | '.join(cells)} | `{RUN} {name}{needs}` |")
    return "\n".join(lines)


def ran(table) -> str:
    """Settings with their runs and hours, on which device."""
    if table is None:
        return "not yet run"
    parts = []
    for setting, rows in table.groupby("setting"):
        hours, device = rows["seconds"].sum() / 3600, " and ".join(sorted(rows["device"].unique()))
        parts.append(f"{setting}: {len(rows)} runs, {rows['seed'].nunique()} seeds, {hours:.2g} h on {device}")
    return "; ".join(parts)


def verdicts(name: str, table) -> str:
    """How many claims of the figure are confirmed, contradicted, undecided and not yet run, at each setting."""
    parts = []
    for setting, rows in [("", None)] if table is None else table.groupby("setting"):
        found = [claims.judge(claim, rows)[0] for claim in claims.CLAIMS if claim.figure == name]
        counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in dict.fromkeys(found))
        parts.append(f"{setting}: {counts}" if setting else counts)
    return "; ".join(parts)


def claims_table(out: Path) -> str:
    """A row per claim and setting with results."""
    lines = ["| figure | claim | rule | numbers | setting | verdict |", "|---|---|---|---|---|---|"]
    for claim in claims.CLAIMS:
        table = results.load(out, claim.figure)
        for setting, rows in [("", None)] if table is None else table.groupby("setting"):
            verdict, numbers = claims.judge(claim, rows)
            cells = [claim.figure, claim.text, claim.rule, numbers, setting, f"**{verdict}**"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
