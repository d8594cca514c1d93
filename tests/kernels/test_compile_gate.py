"""Every kernel compiles for every chip, and fits. In a file of its own, so that workers come to it last."""

import pytest

from tests.compile_gate import CompileGate


@pytest.mark.timeout(900)
def test_every_kernel_fits_every_chip(compile_gate: CompileGate) -> None:
    status, printed = compile_gate.wait()
    assert status == 0, printed
