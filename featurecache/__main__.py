"""``python -m featurecache``, and the command ``featurecache``."""

# Until the command line takes signals, Ctrl-C ends the process without the traceback of some import. The module that
# `signal` wraps is there already, and costs no import in which the interrupt could come.
import _signal  # type: ignore[import-not-found]

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import gc
import os
import sys

from featurecache.machine import let_threads_sleep
from featurecache.stopping import put_in_order, stops_cleanly


def main() -> int:
    """Run the command line; a signal ends it cleanly."""
    try:
        with stops_cleanly():
            let_threads_sleep()
            from featurecache.cli import run_command

            status = run_command()
            # An interpreter looks through all objects before it ends: a second where PyTorch is among them.
            gc.freeze()
            return status
    except KeyboardInterrupt as error:
        # What compiled libraries do at the end of an interpreter can take as long as what was stopped.
        os._exit(put_in_order(error))


if __name__ == "__main__":
    sys.exit(main())
