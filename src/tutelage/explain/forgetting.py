"""What each head of a network with several tasks forgot while later tasks were learned."""

from tutelage.explain.section import Section
from tutelage.explain.subject import Subject
from tutelage.report.templating import Column, Share, Table
from tutelage.runs.folder import train_entries
from tutelage.terminal.columns import task_accuracies
from tutelage.terminal.intervals import NO_VALUE
from tutelage.terminal.table import measure_losses

READING = (
    "Each row is the network after a stage, each bar the accuracy among one task's own classes on its test pictures; "
    "the points are what is lost since the stage that learned the task. A method that forgets nothing keeps the bars "
    "of the old tasks as long as they were."
)


def show_forgetting(subject: Subject) -> list[Section]:
    """Return the section on what was forgotten; none for a run of one task."""
    entries = {entry["name"]: entry for entry in train_entries(subject.record)}
    tasks = sorted({task for entry in entries.values() for task in task_accuracies(entry["result"])})
    if len(tasks) < 2:  # noqa: PLR2004 - one task has no other to be forgotten for
        return []
    columns = [Column("after stage", is_text=True)]
    for task in tasks:
        columns += [Column(f"task {task}"), *([Column("since learned")] if task < tasks[-1] else [])]
    rows: list[list[str | Share]] = []
    for name, entry in entries.items():
        accuracies, losses = task_accuracies(entry["result"]), measure_losses(subject.record, entry)
        row: list[str | Share] = [name]
        for task in tasks:
            row.append(Share(accuracies[task]) if task in accuracies else NO_VALUE)
            if task < tasks[-1]:  # the last one has no later task to be forgotten for
                row.append(f"{0.0 - 100 * losses[task]:+.1f}" if task in losses else NO_VALUE)
        rows.append(row)
    table = Table("accuracy of each task after each stage", columns, rows, best=subject.stage)
    return [Section("What each head forgot", READING, table=table)]
