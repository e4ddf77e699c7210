"""``tutelage report``: the reports of finished runs, written again."""

from collections.abc import Sequence
from pathlib import Path

from tutelage.errors import UserError
from tutelage.runs import open_tested_run, read_config

ROOT = "data.root="


def rewrite_reports(arguments: Sequence[str]) -> None:
    """Write the reports of finished runs again: ``RUN... [data.root=DIR]``.

    Raises:
        UserError: no run is named, one is not finished, its data has changed, or an option is not known.
    """
    roots = [word.removeprefix(ROOT) for word in arguments if word.startswith(ROOT)]
    names = [word for word in arguments if not word.startswith(ROOT)]
    if not names:
        raise UserError("report needs a run's folder: tutelage report outputs/EXPERIMENT/RUN")
    if unknown := [name for name in names if "=" in name and not Path(name).is_dir()]:
        raise UserError(f"{unknown[0]}: unknown option; report takes runs' folders and data.root=FOLDER")
    for folder, record in [open_tested_run(name) for name in names]:
        config = read_config(folder, roots[-1] if roots else None)
        from tutelage.report.run_report import write_report
        from tutelage.runs.weight_sources import check_run_data

        check_run_data(folder, record, config.data)
        write_report(folder, config)
        print(f"report: {folder.report / 'index.html'}")
