"""Stand-in of torchrun: like the real one, it puts its workers in sessions of their own, and ends all with the first."""

import os
import signal
import subprocess
import sys

arguments = sys.argv[1:]
ranks = int(arguments[arguments.index("--nproc-per-node") + 1])
module, *options = arguments[arguments.index("-m") + 1 :]
command = [sys.executable, "-m", module, *options]
workers = [subprocess.Popen(command, start_new_session=True, env={**os.environ, "RANK": str(rank)}) for rank in range(ranks)]
signal.signal(signal.SIGTERM, lambda *_: [worker.terminate() for worker in workers])
_, status = os.wait()
for worker in workers:  # the first that ends, ends all
    worker.terminate()
    worker.wait()
sys.exit(os.waitstatus_to_exitcode(status))
