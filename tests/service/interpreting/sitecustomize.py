"""Start-up code of the processes whose PYTHONPATH has this folder: engines interpret kernels by `tests.interpreter`."""

import sys

if "service.processes.engine_process" in sys.orig_argv:
    from tests.interpreter import replace_once_a_launch

    replace_once_a_launch()
