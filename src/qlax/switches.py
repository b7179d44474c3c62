"""JAX's global configuration options that change dtypes, random numbers or what counts as an error; qlax sets them."""

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
    """Set JAX's global options in `USUAL` to their defaults, within the context and for this thread only.

    Every public function that computes in JAX runs within this context, and so does every thread of qlax. Options that
    already have their defaults are not set, because JAX would then compile again.

    Args:
      returns_nan: True if the results may hold nan, and a user may call the function within a compiled function of
        their own. JAX would check the results of the user's function, to which the user's options apply.

    Raises:
      UserError: `returns_nan` is True, and the user's options make JAX check results for nan.
    """
    import jax  # here, as agents that act in NumPy do without JAX

    if returns_nan and jax.config.values["jax_debug_nans"]:
        where = "call them within jax.debug_nans(False)"
        raise UserError(f"JAX_DEBUG_NANS is on, but qlax.Vec and qlax.pqn use nan for missing metrics; {where}")
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
