"""One run by several processes; the notebooks find its records.

With --use_fsdp a model that is too large for one device is sharded:

    accelerate launch --num_processes 4 -m spectral_collapse.experiment.launch PROFILE seed=1 [key=value]
    accelerate launch --use_fsdp --num_processes 4 -m spectral_collapse.experiment.launch PROFILE condition=fresh
"""

import os
import sys
import traceback
from datetime import timedelta
from typing import NoReturn

from torch.distributed import DistError, TCPStore

from ..machine import devices, parallel, processes
from ..record import cli, params, schema
from . import measure
from .runs import Run


def make(run: Run) -> None:
    """Trains and measures every generation of a run, as notebooks 1 to 3 do.

    Sharded, without curvature, whose vectors are as large as the model and are not sharded: the notebook measures it,
    in one process.
    """
    left_out = {"curvature"} if processes.sharding() else set()
    stages = {name: stage for name, stage in measure.STAGES.items() if name not in left_out}
    for generation in range(run.params.generations + 1):
        measure.generation(run, generation, stages)


def _run(profile: str, *assignments: str) -> Run:
    """The run that the command's arguments name; its processes have joined."""
    values = cli.assignments(assignments)
    seed, condition = params.from_text("seed", values.pop("seed", None)), values.pop("condition", schema.CONDITIONS[0])
    schema.check_selectors(seed, condition)
    settings = params.load(profile, **values)
    parallel.start(devices.pick_device(settings.device))
    if processes.first() and (place := params.where(settings)):
        print(place)
    return Run(settings, condition, seed, say=print if processes.first() else lambda _: None)


def _first_to_fail() -> bool:
    """Whether this process fails first, by a counter that the launcher keeps."""
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add("spectral_collapse.failures", 1) == 1
    except (KeyError, DistError):  # alone, or the launcher is gone
        return True


def main(arguments: list[str]) -> int:
    """Makes the run that the arguments name; 0, or 1 after one sentence on what failed, in whichever process.

    The launcher ends the others as soon as one exits with 1.
    """
    try:
        if {"-h", "--help"} & set(arguments):
            if processes.first():
                print(__doc__)
            return 0
        if not arguments:
            raise ValueError("name a profile: launch PROFILE seed=1 condition=recursive [key=value ...]")
        make(_run(*arguments))
    except Exception as error:
        if _first_to_fail():
            if not isinstance(error, ValueError):
                traceback.print_exc()
                print(f"process {processes.rank()} of {processes.world()}: {type(error).__name__}: {error}")
            else:
                print(error)
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """Exits at once: an ordinary exit may wait for the other processes, and they for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
