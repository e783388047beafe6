"""The plan of a recipe's stages as a table on a console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from skytrain.plan.serving import MEMORY_PART
from skytrain.plan.stages import RecipePlan, StagePlan

COLUMNS = ("", "requests", "M tokens in", "M tokens out", "tokens/s", "at a time", "graded", "hours", "money")


def show(console: Console, one: RecipePlan) -> None:
    plan, device = one.plan, one.device
    replicas = plan.gpus // plan.tensor_parallel
    console.print(
        f"{one.recipe}: {plan.gpus} x {device.id}, {replicas} replica(s) of {plan.tensor_parallel} in bf16, up to "
        f"{plan.max_sequences} answers at a time on each; {plan.cores} CPU cores",
        markup=False,
    )
    console.print(
        f"ASSUMED, not measured: servers reach {device.efficiency.serving:.0%} of the roofline at {MEMORY_PART:.0%} of "
        f"the memory, {device.memory_rate / 1e9:,.0f} GB/s and {device.matmul_rate / 1e12:,.0f} TFLOP/s a GPU "
        "(sources: skytrain/plan/hardware.toml)",
        markup=False,
    )
    table = Table(title="Hours and money by stage", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for stage in one.stages:
        table.add_row(*_cells(one, stage))
    table.add_row("all", *[""] * 6, f"{one.hours:.2f}", _money(one, one.hours), style="bold")
    console.print(table)


def _cells(one: RecipePlan, stage: StagePlan) -> list[str]:
    work, serving = stage.work, stage.serving
    asked = [""] * 5
    if serving is not None:
        tokens = [work.requests * each / 1e6 for each in (work.prompt_tokens, work.completion_tokens)]
        asked = [f"{work.requests:,}", *(f"{one:,.1f}" for one in tokens)]
        asked += [f"{serving.tokens_per_s:,.0f}", f"{serving.batch:,}"]
    graded = [f"{count:,} {what}" for count, what in ((work.answers, "answers"), (stage.runs, "runs")) if count]
    hours = "small" if stage.hours is None else f"{stage.hours:.2f}"
    return [stage.name, *asked, ", ".join(graded), hours, _money(one, stage.hours)]


def _money(one: RecipePlan, hours: float | None) -> str:
    money = one.money(hours)
    return "" if money is None else f"{money:,.0f}"
