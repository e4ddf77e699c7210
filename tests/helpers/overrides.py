"""Overrides of small runs, as a person types them."""

QUIET = ("callbacks=quiet", "trainer.threads=1", "logger=csv")

# What acts on labels and gradients, for runs of any strategy.
CLIPPED_AND_SMOOTHED = ("optimizer.clip_norm=0.3", "loss.label_smoothing=0.1")

# Has every state that a resume restores: dropout, averaged weights, the best validation result, several stages.
NOISY_STUDENT = (
    "strategy=noisy_student",
    "strategy.students=[{model:{dropout:0.3,width:1.5},length:1.0}]",
    "data.labels_per_class=3",
    "data.limit=120",
    "data.batch_size=8",
    "augmentation=affine_randaugment",
    "optimizer.ema_decay=0.9",
    "schedule.epochs=null",
    "schedule.steps=7",
)

# Dropout and two cached views: the student's draws and the teacher's cache both matter.
DISTILLATION = (
    "strategy=distillation",
    "model@strategy.teacher=lenet5",
    "model=mlp",
    "model.width=16",
    "model.dropout=0.2",
    "augmentation=affine",
    "data.limit=60",
    "data.batch_size=16",
    "data.validation=none",
    "schedule.epochs=null",
    "schedule.steps=9",
    "strategy.cached_views=2",
    *CLIPPED_AND_SMOOTHED,
)

# For every strategy that learns from a pool.
POOL_STRATEGY = (
    "schedule.epochs=null",
    "schedule.steps=6",
    "data.limit=200",
    "data.batch_size=8",
    "data.labels_per_class=2",
    "strategy.unlabelled_ratio=2",
    "strategy.control=false",
    "callbacks.report=false",
    *CLIPPED_AND_SMOOTHED,
)
