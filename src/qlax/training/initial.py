"""Initial weights: those of an earlier run."""

from pathlib import Path

import jax
import numpy as np

from qlax.errors import UserError
from qlax.storage import checkpoint
from qlax.storage.formats import config_of_file
from qlax.types import PyTree


def weights_of(path: Path | str, like: PyTree) -> PyTree:
    """Read the weights of an earlier run, for agents that begin with them.

    Args:
      path: a run's directory, whose agents are dealt to as many runs, or whose only one to all; or one file of weights.
      like: shapes of the variables of all runs, `[R, ...]`.

    Raises:
      UserError: there are none, or they are not of such a network.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted((path / "agents").glob(f"*{checkpoint.SUFFIX}"), key=lambda file: (len(file.stem), file.stem))
        if not files:
            raise UserError(f"init={path} has no agents/: a run leaves them at its end; or name a file of its best/")
        if (path / "config.json").exists() and len(files) != (made := config_of_file(path / "config.json").num_members):
            raise UserError(f"init={path} has {len(files)} of the {made} agents it had; name one file of them")
    num_members = jax.tree.leaves(like)[0].shape[0]
    if len(files) not in (1, num_members):
        raise UserError(
            f"init={path} has {len(files)} agents, and the run has {num_members}; name one file of its agents/"
        )
    single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), like)
    trees = [checkpoint.restore(file, single)[1] for file in files]
    trees = trees * (num_members // len(trees))
    return jax.tree.map(lambda *x: np.stack(x), *trees)
