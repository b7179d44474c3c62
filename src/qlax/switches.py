"""JAX's global switches, which change dtypes, random numbers or what counts as an error: qlax sets them itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from qlax.errors import UserError

USUAL: dict[str, Any] = {  # JAX's own defaults, by the names of its context managers
    "enable_x64": False,  # else numbers have 64 bits in some places, and agents are others
    "numpy_dtype_promotion": "standard",  # suites and Optax combine arrays of different dtypes
    "numpy_rank_promotion": "allow",  # suites and Flax combine arrays of different ranks
    "debug_nans": False,  # nan is a metric with nothing to report
    "debug_infs": False,  # -inf is the Q-value of an illegal action
    "disable_jit": False,  # programs are compiled before they run
    "debug_key_reuse": False,  # suites use a key twice
    "enable_custom_prng": False,  # suites make keys in the older format
    "legacy_prng_key": "allow",
    "default_prng_impl": "threefry2x32",  # with other random numbers, the same seed gives another agent
    "threefry_partitionable": True,
}


@contextmanager
def usual_switches(*, returns_nan: bool = False) -> Iterator[None]:
    """Set JAX's switches to their defaults, within the context and for this thread only.

    Every public function that computes in JAX is decorated with it, and so is every thread of qlax. Switches that have
    their defaults are not touched, as JAX would compile again.

    Args:
      returns_nan: The results may hold nan, and a user may call the function within a compiled one. JAX would check the
        results of that one, for which the user's switches hold.

    Raises:
      UserError: `returns_nan`, and JAX checks results for nan.
    """
    import jax  # here, as agents that act in NumPy do without JAX

    if returns_nan and jax.config.values["jax_debug_nans"]:
        where = "call it within jax.debug_nans(False)"
        raise UserError(f"JAX_DEBUG_NANS is on, but in qlax.Vec and qlax.pqn nan is a metric not known yet; {where}")
    with ExitStack() as stack:
        for name, value in USUAL.items():
            if getattr(jax.config, f"jax_{name}") != value:
                switch = getattr(jax, name)
                if name in ("debug_nans", "debug_infs"):
                    # After `with jax.debug_nans(False)`, JAX 0.10 never checks compiled functions again in this thread.
                    stack.callback(switch.set_local, switch.swap_local(value))
                else:
                    stack.enter_context(switch(value))
        yield
