"""In a folder of PYTHONPATH, has each engine of a server interpret kernels as `tests.interpreter` says."""

import sys

if "service.processes.engine_process" in sys.orig_argv:
    from tests.interpreter import replace_once_a_launch

    replace_once_a_launch()
