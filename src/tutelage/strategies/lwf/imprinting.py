"""One more class for a trained network, from pictures of it alone (see ``models.imprinting``)."""

from collections.abc import Sequence

from tutelage.errors import UserError
from tutelage.strategies.stage_context import Length, StageContext
from tutelage.strategies.stages import TrainStage

FEWEST_IMAGES = 2  # each is compared with the mean of the others
NOTE = "imprint: the mean of the new pictures' features is the class; no weight of the old network has changed."


def imprinting_stages(context: StageContext) -> Sequence[TrainStage]:
    """Return the one stage, which trains nothing.

    Raises:
        UserError: there are too few pictures.
    """
    labelled, (name,) = context.labelled, context.source.classes
    if labelled.length < FEWEST_IMAGES:
        raise UserError(
            f"strategy=lwf: {labelled.length} labelled image of {name}; to be told from the old classes it needs "
            f"{FEWEST_IMAGES} or more"
        )
    return [context.supervised_stage("imprint", Length(1, 1), labelled, one_pass=True, note=NOTE)]
