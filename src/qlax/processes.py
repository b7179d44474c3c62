"""Several processes that train together, each with the devices of its machine, on JAX's own distributed runtime.

All run the same program on the same data, so whatever decides what comes next has to be the same in all: what one of
them reads or measures is told to the others.
"""

import contextlib
import os
import pickle
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qlax.errors import RunError, UserError

CONNECT_SECONDS = 300  # that processes wait for each other at the beginning
LOST_SECONDS = 30  # without a sign of life, until a process counts as lost, and the others end
LEAVE_SECONDS = 60  # that they wait for each other at the end
PIECE = 2**26  # bytes told at once
# Where a launcher says how many processes it started, and which this is. Slurm's are of a step: a script of a batch is
# one of its own, whatever was asked for.
LAUNCHERS = {
    "Slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
# What JAX says where another process is no longer there.
LOST = ("Gloo", "gloo", "NCCL", "coordination service", "heartbeat", "Socket closed", "Connection reset")

_state = {"asked": False, "lost": False}  # whether this process was told of others, and whether one of them is gone


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Make this process one of several, if it was told of any, or a launcher says so; before the first use of JAX.

    What the first call finds holds from then on.

    Args:
      coordinator: `host:port` of the first process, which listens there.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      UserError: something is missing or does not fit, or the others did not come.
    """
    told = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if _state["asked"] or jax.distributed.is_initialized():
        return
    _state["asked"] = True
    if num_processes == 1:
        return
    launcher = next((name for name, names in LAUNCHERS.items() if _starts_several(*names)), None)
    if coordinator is None and num_processes is None and process_id is None and not (launcher or _is_indexed_job()):
        return
    if launcher is not None:
        count, index = LAUNCHERS[launcher]
        num_processes = int(os.environ[count]) if num_processes is None else num_processes
        process_id = int(os.environ[index]) if process_id is None else process_id
    told = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name.replace('_', '-')}" for name, value in told.items() if value is None]
    if launcher is None and not _is_indexed_job() and missing:
        raise UserError(f"{' and '.join(missing)} missing: each of several processes is told all three")
    if coordinator is not None:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise UserError(f"coordinator={coordinator}: expected host:port of the first process, as node1:1234")
        assert num_processes is not None
        assert process_id is not None
        if num_processes < 1:
            raise UserError(f"num_processes={num_processes}: expected a whole number from 1")
        if not 0 <= process_id < num_processes:
            raise UserError(f"process_id={process_id}: expected 0 to {num_processes - 1}, as num_processes says")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:  # that of JAX's runtime is the former
        by = f", which {launcher} started" if launcher else ""
        raise UserError(
            f"cannot join the other processes{by}: {' '.join(str(error).split())}; say --coordinator host:port, "
            "--num-processes and --process-id, or --num-processes 1 to train alone"
        ) from error


def _starts_several(count: str, index: str) -> bool:
    """Whether a launcher has started several processes that are to work together."""
    return index in os.environ and os.environ.get(count, "").isdecimal() and int(os.environ[count]) > 1


def _is_indexed_job() -> bool:
    """Whether Kubernetes has started this process as one of several; JAX asks it for the others."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ


def are_several() -> bool:
    """Whether others work on the same runs."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether it is this process that writes and speaks."""
    return jax.process_index() == 0


def leave() -> None:
    """Wait for the others at the end, so that none takes this one for lost."""
    if jax.distributed.is_initialized() and not _state["lost"]:
        jax.distributed.shutdown()


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, in all of them.

    Args:
      make: called in the first process alone; its result may be pickled.

    Raises:
      UserError, RunError: it was raised there.
    """
    if not are_several():
        return make()
    result, failed = None, False
    if is_first():
        try:
            result = make()
        except (UserError, RunError) as error:
            result, failed = type(error)(str(error)), True
    result, failed = pickle.loads(_told(pickle.dumps((result, failed))))
    if failed:
        raise result
    return result


def _told(data: bytes) -> bytes:
    """The bytes of the first process."""
    whole, rest = multihost_utils.broadcast_one_to_all(np.array(divmod(len(data), PIECE), np.int32)).tolist()
    size = whole * PIECE + rest
    data = data.ljust(size)[:size]
    pieces = (np.frombuffer(data[begin : begin + PIECE], np.uint8) for begin in range(0, size, PIECE))
    return b"".join(multihost_utils.broadcast_one_to_all(piece).tobytes() for piece in pieces)


@contextmanager
def losing(resume: str) -> Iterator[None]:
    """Within it, the loss of another process ends this one with a message.

    Where that is noticed by a call, it is an exception. But JAX's runtime ends a process at once when another one gave
    no sign of life for `LOST_SECONDS`, or the first is gone; what is printed then is printed by a process beside.

    Args:
      resume: how to go on.

    Raises:
      RunError: another process is lost.
    """
    if not are_several():
        yield
        return
    name = f"process {jax.process_index()} of {jax.process_count()}"
    # It reads a line, or the end of its input, which comes when this process ends, in whatever way.
    script = 'read line || printf "%s\\n" "$0" >&2'
    command = ["sh", "-c", script, f"qlax: {name} was killed, or ended as another one was lost; {resume}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as beside:
        try:
            yield
        except (ValueError, RuntimeError) as error:
            if isinstance(error, UserError | RunError) or not any(word in str(error) for word in LOST):
                raise
            _state["lost"] = True
            raise RunError(f"{name} ends, as another one was lost; {resume}") from error
        finally:
            assert beside.stdin is not None
            with contextlib.suppress(OSError):
                beside.stdin.write(b"\n")
                beside.stdin.close()
