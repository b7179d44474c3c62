"""Several processes that train together, each with the devices of its machine, on JAX's distributed runtime.

All processes run the same program on the same data, so every decision must be the same in all of them: whatever one
process reads or measures is sent to the others.
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

CONNECT_SECONDS = 300  # maximum time that processes wait for each other at the beginning
LOST_SECONDS = 30  # time without a heartbeat until a process counts as lost, and the others end
LEAVE_SECONDS = 600  # maximum time that processes wait for each other at the end, for example while the first writes
FAREWELL_SECONDS = 2.0  # extra time of the first process on failure, because its end kills the others without a message
PIECE = 2**26  # bytes per broadcast
# Environment variables in which a launcher gives the number of processes, and the index of this one. Slurm's variables
# are those of a step, because a batch script counts as a single process whatever was requested.
LAUNCHERS = {
    "Slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
}
# Words in JAX's errors that mean that another process is lost.
LOST = ("Gloo", "gloo", "NCCL", "coordination service", "heartbeat", "Socket closed", "Connection reset")
# Shell script that reads lines until this process ends in any way, and then prints the last line, unless it is empty.
WATCHER = 'while IFS= read -r line; do last=$line; done; if [ -n "$last" ]; then printf "%s\\n" "$last" >&2; fi'

_state: dict[str, Any] = {"joined": False, "watcher": None}  # `join` was called; process that runs `WATCHER`


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join several processes that train together, if the arguments or a launcher name any.

    Call this before the first use of JAX; only the first call has an effect.

    Args:
      coordinator: `host:port` on which the first process listens.
      num_processes: Number of processes.
      process_id: Index of this process, from 0.

    Raises:
      UserError: An argument is missing or not valid, the other processes did not connect, or the processes have
        different numbers of devices.
    """
    if _state["joined"] or jax.distributed.is_initialized():
        return
    launcher = next((name for name, names in LAUNCHERS.items() if _starts_several(*names)), None)
    given = (coordinator, num_processes, process_id)
    if num_processes == 1 or (given == (None, None, None) and not launcher and not _is_indexed_job()):
        _state["joined"] = True
        return
    if launcher is not None:
        count, index = LAUNCHERS[launcher]
        num_processes = int(os.environ[count]) if num_processes is None else num_processes
        process_id = int(os.environ[index]) if process_id is None else process_id
    _check(coordinator, num_processes, process_id, launcher is not None or _is_indexed_job())
    which = "" if process_id is None else f" {process_id} of {num_processes}"
    where = f" at {coordinator}" if coordinator else ""
    print(f"qlax: process{which} waits for the others{where}, at most {CONNECT_SECONDS} seconds", file=sys.stderr)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:  # JAX's runtime raises RuntimeError
        by = f", which {launcher} started" if launcher else ""
        raise UserError(
            f"cannot join the other processes{by}: {' '.join(str(error).split())}; give --coordinator host:port, "
            "--num-processes and --process-id, or --num-processes 1 to train alone"
        ) from error
    _state["joined"] = True
    say_if_lost("start all of them again")
    counts = Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        numbers = ", ".join(str(counts[index]) for index in sorted(counts))
        raise UserError(
            f"the processes have {numbers} devices; expected equal numbers: set them with JAX_NUM_CPU_DEVICES for "
            "CPUs, or with CUDA_VISIBLE_DEVICES for GPUs"
        )
    in_all(lambda: None)  # connects the processes now, before any of them is busy


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None, is_launched: bool) -> None:
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is None]
    if missing and not is_launched:
        raise UserError(
            f"{' and '.join(missing)} missing: each of several processes needs --coordinator, --num-processes and "
            "--process-id"
        )
    if coordinator is not None:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
            raise UserError(f"coordinator={coordinator}: expected host:port of the first process, such as node1:1234")
        if process_id == 0:
            _check_port(int(port))
    if num_processes is not None and num_processes < 1:
        raise UserError(f"num_processes={num_processes}: expected a whole number from 1")
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise UserError(f"process_id={process_id}: expected 0 to {num_processes - 1}, as num_processes={num_processes}")


def _check_port(port: int) -> None:
    """Check that the first process can listen on the port, because JAX's runtime would crash.

    Raises:
      UserError: The port cannot be used.
    """
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port}: {error.strerror}; the first process must listen on it: name another port in "
                "--coordinator, and check that no other process has --process-id 0"
            ) from error


def _starts_several(count: str, index: str) -> bool:
    """Tell whether a launcher has started several processes that work together."""
    return index in os.environ and os.environ.get(count, "").isdecimal() and int(os.environ[count]) > 1


def _is_indexed_job() -> bool:
    """Tell whether Kubernetes has started this process as one of several; JAX finds the others by itself."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ


def are_several() -> bool:
    """Tell whether several processes train together."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Tell whether this is the first process, which writes files and prints messages."""
    return jax.process_index() == 0


def leave(in_harmony: bool) -> None:
    """Leave the group of processes.

    Args:
      in_harmony: Whether all processes end in the same way, so that they can wait for each other.
    """
    if not jax.distributed.is_initialized() or _state["watcher"] is None:
        return
    if in_harmony:
        jax.distributed.shutdown()
    elif is_first():
        time.sleep(FAREWELL_SECONDS)
    say_if_lost("")


def from_first(make: Callable[[], Any]) -> Any:
    """Call a function in the first process, and return its result in all processes.

    Args:
      make: Function without arguments whose result can be pickled.

    Raises:
      UserError: The function raised it in the first process.
      RunError: The function raised it, or any other exception, in the first process.
    """
    if not are_several():
        return make()
    result, failed = None, False
    if is_first():
        try:
            result = make()
        except Exception as error:  # otherwise the other processes would wait forever
            kind = UserError if isinstance(error, UserError) else RunError
            result, failed = kind(str(error) if isinstance(error, kind) else described(error)), True
    result, failed = pickle.loads(_broadcast(pickle.dumps((result, failed))))
    if failed:
        raise result
    return result


def in_all(check: Callable[[], None]) -> None:
    """Run a check in every process; if it fails in one, raise an error in all.

    Args:
      check: Function that raises a `UserError` if the check fails.

    Raises:
      UserError: The check raised it in this process, or failed in another one.
    """
    failed = None
    try:
        check()
    except UserError as error:
        failed = error
    if are_several():
        failures = multihost_utils.process_allgather(np.array([failed is not None]))
        if failed is None and failures.any():
            failed = UserError(f"process {failures.argmax()} cannot continue; see its message for the reason")
    if failed is not None:
        raise failed


def least(number: int) -> int:
    """Return the smallest of the numbers that the processes pass."""
    return int(multihost_utils.process_allgather(np.array([number])).min()) if are_several() else number


def _broadcast(data: bytes) -> bytes:
    """Return the bytes that the first process passes."""
    whole, rest = multihost_utils.broadcast_one_to_all(np.array(divmod(len(data), PIECE), np.int32)).tolist()
    size = whole * PIECE + rest
    data = data.ljust(size)[:size]
    pieces = (np.frombuffer(data[begin : begin + PIECE], np.uint8) for begin in range(0, size, PIECE))
    return b"".join(multihost_utils.broadcast_one_to_all(piece).tobytes() for piece in pieces)


def say_if_lost(how: str) -> None:
    """Set the message that is printed if this process is killed, or ends because another process is lost.

    A call that notices a lost process raises an exception. But JAX's runtime ends a process at once when another one
    sent no heartbeat for `LOST_SECONDS`, or when the first process is gone; therefore a separate process prints.

    Args:
      how: How to continue, for the message; empty if this process ends normally, so that nothing is printed.
    """
    if not are_several():
        return
    if _state["watcher"] is None:
        _state["watcher"] = subprocess.Popen(["sh", "-c", WATCHER], stdin=subprocess.PIPE, start_new_session=True)
        atexit.register(say_if_lost, "")
    name = f"process {jax.process_index()} of {jax.process_count()}"
    line = f"qlax: {name} was killed, or ended because another process was lost; {how}" if how else ""
    try:
        _state["watcher"].stdin.write(f"{line}\n".encode())
        _state["watcher"].stdin.flush()
    except OSError:  # the watcher is gone, for example because all processes of the machine are being stopped
        pass


@contextmanager
def losing() -> Iterator[None]:
    """Turn errors of JAX within the context that mean the loss of another process into a `LostError`.

    Raises:
      LostError: Another process is lost.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        is_loss = any(word in str(error) for word in LOST) and not isinstance(error, UserError | RunError)
        if not is_loss or not are_several():
            raise
        raise LostError(described(error)) from error
