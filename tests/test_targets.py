"""The classes that a stored config may name."""

import albumentations
import pytest

from tutelage.config.targets import build, resolve
from tutelage.errors import UserError
from tutelage.models import ImageClassifier, ImageSpec, LeNet5


def test_an_architecture_of_ours_is_found():
    assert resolve("tutelage.models.LeNet5", ImageClassifier, "model") is LeNet5


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "tutelage.storage.os.system",  # begins in an allowed package and ends outside it
        "tutelage.runs.folder.subprocess.Popen",
        "albumentations.core.serialization.warnings.warn",
        "timm.models._hub.os.system",
        "tutelage.models.base.nn.Linear",
        "tutelage.models.ImageSpec",  # ours, but no architecture
        "tutelage.models.Missing",
        "LeNet5",
        "",
    ],
)
def test_anything_else_is_refused_in_one_line(target):
    with pytest.raises(UserError) as error:
        resolve(target, ImageClassifier, "model._target_")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("model._target_: ")


def test_a_class_from_elsewhere_that_has_the_right_base_is_refused(monkeypatch):
    class Evil(albumentations.BasicTransform):
        pass

    import tutelage.augmentation as package

    monkeypatch.setattr(package, "Evil", Evil, raising=False)
    with pytest.raises(UserError, match="outside the allowed packages"):
        resolve("tutelage.augmentation.Evil", albumentations.BasicTransform, "augmentation")


def test_refused_arguments_are_named_in_one_line():
    with pytest.raises(UserError, match="augmentation: Rotate refuses limit") as error:
        build({"_target_": "albumentations.Rotate", "limit": "much"}, albumentations.BasicTransform, "augmentation")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"_target_": "tutelage.models.LeNet5", "width": -1},
            "LeNet5 refuses width=-1: Input should be greater than 0",
        ),
        (
            {"_target_": "tutelage.models.MLP", "width": 8, "depth": "two"},
            "MLP refuses depth=two: Input should be a valid",
        ),
        ({"_target_": "tutelage.models.LeNet5", "widht": 2}, "LeNet5 refuses widht=2: Extra inputs are not permitted"),
        ({"_target_": "tutelage.models.VGG"}, "VGG refuses to be built without depth: give it a value"),
    ],
)
def test_a_wrong_argument_of_an_architecture_is_named_in_one_line(model, message):
    with pytest.raises(UserError, match=f"^model: {message}") as refused:
        build(model, ImageClassifier, "model", spec=ImageSpec(1, 28, ("a", "b"), (0.3,), (0.2,)))
    assert "\n" not in str(refused.value)


def test_an_argument_that_albumentations_only_warns_of_is_refused():
    with pytest.raises(UserError, match="Rotate refuses its arguments: .*'limitt'"):
        build({"_target_": "albumentations.Rotate", "limitt": 20}, albumentations.BasicTransform, "augmentation")
