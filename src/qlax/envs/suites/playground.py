"""MuJoCo Playground: DeepMind's control suite and robots, simulated by MJX (Zakka et al., 2025, arXiv:2502.08844).

Adapts playground 0.2, whose environments do not reset themselves and have no time limit until they are wrapped.
"""

from typing import Any

from mujoco_playground import dm_control_suite, registry
from mujoco_playground._src import mjx_env

from qlax.envs.suites.options import check_name, checked
from qlax.envs.suites.physics import Robot
from qlax.errors import UserError, nearest

IMPLEMENTATIONS = ("jax", "warp")  # of MJX; the suite's own default is warp
NOT_OPTIONS = ("vision", "vision_config")  # pictures, which only a GPU renders
FETCH = "python -c 'from mujoco_playground._src import mjx_env; mjx_env.ensure_menagerie_exists()'"


def names() -> list[str]:
    """Return the names of the environments whose robots come with the package."""
    return list(dm_control_suite.ALL_ENVS)


def make(name: str, /, **options: Any) -> Robot:
    """Make an environment by its name.

    Args:
      name: Name of the environment.
      options: Entries of the environment's configuration, such as `episode_length` and `action_repeat`, and with dots
        those within another, such as `reward_config.scales.energy`; `impl` is "jax" unless given.

    Raises:
      UserError: The name or an option is unknown, a value is not allowed, or the robot has to be downloaded first.
    """
    env_id = f"playground/{name}"
    check_name("playground", name, registry.ALL_ENVS)
    if name not in dm_control_suite.ALL_ENVS and not mjx_env.MENAGERIE_PATH.exists():
        raise UserError(f"{env_id} needs the robots of MuJoCo Menagerie, which git downloads: {FETCH}")
    config = registry.get_default_config(name)
    if "impl" in config:
        config.impl = IMPLEMENTATIONS[0]
    options = checked(env_id, options, _flat(config.to_dict()))
    impl = options.get("impl", IMPLEMENTATIONS[0])
    if impl not in IMPLEMENTATIONS:
        raise UserError(f"impl={impl!r}: expected {' or '.join(IMPLEMENTATIONS)}{nearest(impl, IMPLEMENTATIONS)}")
    config.update_from_flattened_dict(options)
    return Robot(registry.load(name, config=config), int(config.episode_length), int(config.action_repeat))


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the entries of a configuration by their names, with dots for those within another."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name not in NOT_OPTIONS:
            found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
