"""The losses of a student against its teacher's logits or features."""

import torch
from torch import Tensor
from torch.nn import functional


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(t / T) || softmax(s / T)), summed over classes, as a mean over the batch.

    Hinton, Vinyals and Dean 2015, section 2: dividing the logits by T makes the gradients smaller by T^2; the factor
    undoes this, so that the weights of two losses mean the same at every temperature.

    Args:
        student: logits (B, C).
        teacher: logits (B, C), without gradient.
        temperature: T, above 0.
    """
    student_log, teacher_log = (
        functional.log_softmax(logits / temperature, dim=1) for logits in (student, teacher.detach())
    )
    return temperature**2 * functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def decoupled_divergence(
    student: Tensor, teacher: Tensor, classes: Tensor, temperature: float, target: float, others: float
) -> Tensor:
    """Return T^2 (``target`` TCKD + ``others`` NCKD) of Zhao et al. 2022, "Decoupled Knowledge Distillation", eq. 7.

    TCKD is the divergence of the true class against the rest, NCKD that among the other classes; with ``others`` at the
    teacher's 1 - p(true class) and ``target`` at 1 the sum is ``softened_divergence`` (eq. 6).

    Args:
        student: logits (B, C).
        teacher: logits (B, C), without gradient.
        classes: (B,) int64, the true ones.
        temperature: T, above 0.
        target: alpha of the paper.
        others: beta of the paper.
    """
    tckd, nckd = split_divergence(student / temperature, teacher.detach() / temperature, classes)
    return temperature**2 * (target * tckd + others * nckd).mean()


def split_divergence(student: Tensor, teacher: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return TCKD and NCKD, (B,) each, of softened logits (B, C) and true classes (B,)."""
    true = functional.one_hot(classes, student.shape[1]).bool()
    binary, non_target = [], []
    for logits in (student, teacher):
        log_probabilities = functional.log_softmax(logits, dim=1)
        rest = log_probabilities.masked_fill(true, -torch.inf).logsumexp(dim=1)
        binary.append(torch.stack([log_probabilities[true], rest], dim=1))
        non_target.append(functional.log_softmax(logits[~true].view(len(logits), -1), dim=1))
    return _divergence(*binary), _divergence(*non_target)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) (B,) of log-probabilities (B, C)."""
    return functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared difference of two layers' outputs of one shape.

    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", eq. 3, which takes the sum where this takes the mean: the
    learning rate then does not depend on the layer's size.
    """
    return 0.5 * functional.mse_loss(student, teacher.detach())
