"""Files of rows that were evaluated in another folder of the same study, or whose files were not kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from autocomp.core.candidate import Candidate
from autocomp.core.progress import Progress
from autocomp.core.row import Row
from autocomp.search.evaluator import Evaluator
from autocomp.stages.exploring import Explored
from autocomp.stages.rows import make_row
from autocomp.stages.summarising import front_of


def with_files(evaluator: Evaluator, explored: Explored, further: Sequence[Row], progress: Progress) -> Explored:
    """``explored``, where the rows of the front and ``further`` ones all have their files in this folder.

    A file is written again from the row's recipe. Where it is not of the row's size (another machine may round
    another way), the row is measured anew: what is shown is what is there.
    """
    wanted = {row.trial for row in (*front_of(explored.rows), *further)}
    missing = [row for row in explored.rows if row.file is None and row.trial in wanted]
    if not missing:
        return explored
    progress.note(f"files of {len(missing)} earlier evaluations are not in {evaluator.session.run.path}: written again")
    written = {row.trial: _with_file(evaluator, explored, row) for row in missing}
    return dataclasses.replace(explored, rows=tuple(written.get(row.trial, row) for row in explored.rows))


def _with_file(evaluator: Evaluator, explored: Explored, row: Row) -> Row:
    candidate = Candidate.from_json(row.recipe)
    path = evaluator.path_of(candidate)
    if evaluator.write(evaluator.realise(candidate), path) == row.file_bytes:
        return dataclasses.replace(row, file=str(path))
    done = evaluator.evaluate(candidate, path)
    return make_row(row.name, candidate, done, explored.limits, trial=row.trial, file=str(path))
