"""The notice that the solver is being compiled."""

import logging

from numba import njit
from numba.core.event import install_listener

from saematch.matching.solver.compiling import CompileNotice


def test_the_notice_is_logged_once_and_only_if_code_is_compiled(caplog):
    caplog.set_level(logging.INFO)
    compiled = njit(lambda x: x + 1)
    with install_listener("numba:compile", CompileNotice()):
        assert compiled(1) == 2
        assert len(caplog.messages) == 1 and "compiling the solver" in caplog.messages[0]
        assert compiled(1.0) == 2.0
    with install_listener("numba:compile", CompileNotice()):
        compiled(1)
    assert len(caplog.messages) == 1
