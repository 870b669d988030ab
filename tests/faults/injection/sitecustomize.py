"""On PYTHONPATH, this puts a fault into any command: IGRPO_FAULT=eio@7 IGRPO_FAULT_BELOW=RUN igrpo draft RUN."""

import os
import sys
from pathlib import Path

if "IGRPO_FAULT" in os.environ:
    sys.path.append(str(Path(__file__).parents[1]))
    from file_faults import install

    # Processes that the command starts write nothing of the run, and count for themselves.
    install(os.environ["IGRPO_FAULT"], Path(os.environ.get("IGRPO_FAULT_BELOW", ".")))
