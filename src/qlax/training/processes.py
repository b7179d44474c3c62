"""Several processes that train together, each with the devices of its machine, on JAX's own distributed runtime.

All run the same program on the same data, so whatever decides what comes next has to be the same in all: what one of
them reads or measures is told to the others.
"""

import atexit
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qlax.errors import LostError, RunError, UserError, described

CONNECT_SECONDS = 300  # that processes wait for each other at the beginning
LOST_SECONDS = 30  # without a sign of life, until a process counts as lost, and the others end
LEAVE_SECONDS = 600  # that they wait at the end for the first, which writes; or, from Python, for one that failed
FAREWELL_SECONDS = 2.0  # that the first outlives others that fail with it, as its end would end them without a word
PIECE = 2**26  # bytes told at once
# Where a launcher says how many processes it started, and which this is. Slurm's are of a step: a script of a batch is
# one of its own, whatever was asked for.
LAUNCHERS = {
    "Slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
# What JAX says where another process is no longer there.
LOST = ("Gloo", "gloo", "NCCL", "coordination service", "heartbeat", "Socket closed", "Connection reset")
# A process that reads lines until ours ends, in whatever way, and prints the last one, unless that is empty.
BESIDE = 'while IFS= read -r line; do said=$line; done; if [ -n "$said" ]; then printf "%s\\n" "$said" >&2; fi'

_state: dict[str, Any] = {"joined": False, "beside": None}  # whether `join` was called; the process that reads lines


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Make this process one of several, if it was told of any, or a launcher says so; before the first use of JAX.

    What the first call finds holds from then on.

    Args:
      coordinator: `host:port` of the first process, which listens there.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      UserError: something is missing or does not fit, the others did not come, or have other numbers of devices.
    """
    if _state["joined"] or jax.distributed.is_initialized():
        return
    launcher = next((name for name, names in LAUNCHERS.items() if _starts_several(*names)), None)
    told = (coordinator, num_processes, process_id)
    if num_processes == 1 or (told == (None, None, None) and not launcher and not _is_indexed_job()):
        _state["joined"] = True
        return
    if launcher is not None:
        count, index = LAUNCHERS[launcher]
        num_processes = int(os.environ[count]) if num_processes is None else num_processes
        process_id = int(os.environ[index]) if process_id is None else process_id
    _check(coordinator, num_processes, process_id, launcher is not None or _is_indexed_job())
    which = "" if process_id is None else f" {process_id} of {num_processes}"
    where = f" at {coordinator}" if coordinator else ""
    print(f"qlax: process{which} waits for the others{where}, {CONNECT_SECONDS} seconds at most", file=sys.stderr)
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
    _state["joined"] = True
    say_if_lost("start all of them again")
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        numbers = ", ".join(str(counts[index]) for index in sorted(counts))
        raise UserError(
            f"the processes have {numbers} devices; expected as many of each: of a CPU say how many with "
            "JAX_NUM_CPU_DEVICES=1, of GPUs with CUDA_VISIBLE_DEVICES"
        )
    in_all(lambda: None)  # they connect now, while nobody has anything else to do


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None, is_launched: bool) -> None:
    told = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name.replace('_', '-')}" for name, value in told.items() if value is None]
    if missing and not is_launched:
        raise UserError(f"{' and '.join(missing)} missing: each of several processes is told all three")
    if coordinator is not None:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise UserError(f"coordinator={coordinator}: expected host:port of the first process, as node1:1234")
        if process_id == 0:
            _check_port(int(port))
    if num_processes is not None and num_processes < 1:
        raise UserError(f"num_processes={num_processes}: expected a whole number from 1")
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise UserError(f"process_id={process_id}: expected 0 to {num_processes - 1}, as num_processes says")


def _check_port(port: int) -> None:
    """Whether the first process may listen there; JAX's runtime would crash."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port}: {error.strerror}; the first process listens there: name another port in --coordinator, "
                "or is another process the first, too?"
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


def leave(in_harmony: bool) -> None:
    """End what is done together.

    Args:
      in_harmony: all end in the same way, so that they can wait for each other, and none takes another for lost.
    """
    if not jax.distributed.is_initialized() or _state["beside"] is None:
        return
    if in_harmony:
        jax.distributed.shutdown()
    elif is_first():
        time.sleep(FAREWELL_SECONDS)
    say_if_lost("")


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, in all of them.

    Args:
      make: called in the first process alone; its result may be pickled.

    Raises:
      UserError, RunError: it was raised there; the latter whatever else was.
    """
    if not are_several():
        return make()
    result, failed = None, False
    if is_first():
        try:
            result = make()
        except Exception as error:  # the others would wait for ever
            kind = UserError if isinstance(error, UserError) else RunError
            result, failed = kind(str(error) if isinstance(error, kind) else described(error)), True
    result, failed = pickle.loads(_told(pickle.dumps((result, failed))))
    if failed:
        raise result
    return result


def in_all(check: Callable[[], None]) -> None:
    """Call this in every process; where it fails in one, it fails in all.

    Raises:
      UserError: what it raised, or that it was raised in another.
    """
    failed = None
    try:
        check()
    except UserError as error:
        failed = error
    if are_several():
        failures = multihost_utils.process_allgather(np.array([failed is not None]))
        if failed is None and failures.any():
            failed = UserError(f"process {failures.argmax()} cannot go on, and says why")
    if failed is not None:
        raise failed


def least(number: int) -> int:
    """The least of what the processes say."""
    return int(multihost_utils.process_allgather(np.array([number])).min()) if are_several() else number


def _told(data: bytes) -> bytes:
    """The bytes of the first process."""
    whole, rest = multihost_utils.broadcast_one_to_all(np.array(divmod(len(data), PIECE), np.int32)).tolist()
    size = whole * PIECE + rest
    data = data.ljust(size)[:size]
    pieces = (np.frombuffer(data[begin : begin + PIECE], np.uint8) for begin in range(0, size, PIECE))
    return b"".join(multihost_utils.broadcast_one_to_all(piece).tobytes() for piece in pieces)


def say_if_lost(how: str) -> None:
    """Have a line printed, should this process end as another one is lost, or is killed.

    Where a loss is noticed by a call, it is an exception. But JAX's runtime ends a process at once when another one
    gave no sign of life for `LOST_SECONDS`, or the first is gone; so it is a process beside that prints.

    Args:
      how: to go on; nothing if this process ends as it should.
    """
    if not are_several():
        return
    if _state["beside"] is None:
        _state["beside"] = subprocess.Popen(["sh", "-c", BESIDE], stdin=subprocess.PIPE, start_new_session=True)
        atexit.register(say_if_lost, "")
    name = f"process {jax.process_index()} of {jax.process_count()}"
    line = f"qlax: {name} was killed, or ended as another one was lost; {how}" if how else ""
    try:
        _state["beside"].stdin.write(f"{line}\n".encode())
        _state["beside"].stdin.flush()
    except OSError:  # it is gone, as all of the machine's processes may be told to be
        pass


@contextmanager
def losing() -> Iterator[None]:
    """Within it, the loss of another process that a call notices has a name.

    Raises:
      LostError: another process is lost.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        is_loss = any(word in str(error) for word in LOST) and not isinstance(error, UserError | RunError)
        if not is_loss or not are_several():
            raise
        raise LostError(described(error)) from error
