"""The smallest training runs that have everything, for the tests of what surrounds the algorithm."""

SMALL = {
    "num_envs": 4,
    "num_steps": 8,
    "num_minibatches": 2,
    "num_epochs": 1,
    "hidden": (8,),
    "total_steps": 12 * 32,
    "log_interval": 2,
    "eval_interval": 4,
    "checkpoint_interval": 4,
    "eval_episodes": 3,
    "eval_max_steps": 20,
}
CARTPOLE = "gymnax/CartPole-v1"


def flags(settings):
    """The same on the command line."""

    def written(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    words = []
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), *map(written, value if isinstance(value, list) else [value])]
    return words


def without_times(line):
    """A line of metrics without what two equal runs may differ in."""
    return {name: value for name, value in line.items() if name not in ("seconds", "steps_per_second")}
