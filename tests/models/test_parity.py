"""Every backbone against the network it follows: same parameters, statistics and pictures, same answers and gradients.

Names of levels and sizes only; `parity` does the work.
"""

import pytest

pytest.importorskip("torch", reason="needs the extra [parity]; torch is never a dependency of the package")

from tests.models.parity import Case, check_inference, check_training

RESNET = ("relu", "layer1", "layer2", "layer3", "layer4")

CASES = [
    Case("resnet18", RESNET, batch=4),
    Case("resnet50", RESNET, batch=4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_answers_and_pyramid(case):
    check_inference(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_training_step(case):
    check_training(case)
