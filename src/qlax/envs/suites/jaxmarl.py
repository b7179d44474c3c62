"""JaxMARL: teams that share one reward (Rutherford et al., 2023, arXiv:2311.10090).

Adapts jaxmarl 0.2, whose environments do not distinguish terminations from time limits. Rewards, the padding of
observations of different sizes, and the one-hot members follow JaxMARL's own Q-learning baselines.
"""

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlax.envs.suites import drawing
from qlax.envs.suites.options import check_name, checked
from qlax.errors import UserError, described, nearest
from qlax.types import PyTree, Step
from qlax.util.imports import imported_when_used, silently

# Matplotlib is used only for drawing, and takes most of the import time; jaxmarl prints messages when it is imported.
with silently(), imported_when_used("matplotlib.pyplot"):
    from jaxmarl import environments
    from jaxmarl.environments.overcooked.overcooked import DELIVERY_REWARD
    from jaxmarl.environments.smax import SMAX, HeuristicEnemySMAX
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO


class JaxMARL:
    """Team in one JaxMARL environment; subclasses adapt the single games.

    Observations that are vectors are padded to the longest, and the member's one-hot number is appended to them.

    Args:
      env: Environment of jaxmarl.
    """

    def __init__(self, env: Any):
        self._env = env
        self._agents = list(env.agents)  # fixes the order of members, as jitted functions sort the keys of dicts
        sizes = [int(env.action_space(agent).n) for agent in self._agents]
        self.num_actions = max(sizes)
        self.num_agents = len(self._agents)
        self._legal = jnp.arange(self.num_actions) < jnp.array(sizes)[:, None] if len(set(sizes)) > 1 else None
        if hasattr(env, "max_steps"):
            self.time_limit = env.max_steps + 1  # JaxMARL compares with the limit before it counts the step

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        obs, state = self._env.reset(key)
        no = jnp.bool_(False)
        return state, self._step(obs, state, jnp.float32(0), no, no)

    def step(self, key: jax.Array, state: PyTree, action: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        obs, state, rewards, done, _ = self._env.step_env(key, state, self._by_agent(action))
        terminated = done["__all__"] & self._terminated(state)
        return state, self._step(obs, state, self._reward(rewards), terminated, done["__all__"] & ~terminated)

    def _step(self, obs: PyTree, state: Any, reward: jax.Array, terminated: jax.Array, truncated: jax.Array) -> Step:
        at_end = {name: value.astype(jnp.float32) for name, value in self._metrics(state).items()}
        metrics = {name: jnp.where(terminated | truncated, value, jnp.nan) for name, value in at_end.items()}
        return Step(self._observation(obs), self._legal_actions(state), reward, terminated, truncated, metrics)

    def _by_agent(self, action: jax.Array) -> dict[Any, jax.Array]:
        return dict(zip(self._agents, action, strict=True))

    def _metrics(self, state: PyTree) -> dict[str, jax.Array]:
        """Return the metrics of an episode that ended."""
        del state
        return {}

    def _observation(self, obs: dict[Any, jax.Array]) -> jax.Array:
        rows = [obs[agent] for agent in self._agents]
        longest = max(len(row) for row in rows)
        padded = jnp.stack([jnp.pad(row, (0, longest - len(row))) for row in rows])
        return jnp.concatenate([padded, jnp.eye(self.num_agents, dtype=padded.dtype)], axis=-1)

    def _legal_actions(self, state: PyTree) -> jax.Array | None:
        del state
        return self._legal

    def _reward(self, rewards: dict[Any, jax.Array]) -> jax.Array:
        """Return the team's reward: that of the first member, as all members have the same."""
        return rewards[self._agents[0]]

    def _terminated(self, state: PyTree) -> jax.Array:
        """Return True if an episode that is over was terminated, False if its time limit was reached."""
        del state
        return jnp.bool_(False)


class MultiParticle(JaxMARL):
    """Cooperative task of MPE, in which only the time limit ends an episode; its reward is the sum of the members'."""

    fps = 8.0

    def _reward(self, rewards: dict[Any, jax.Array]) -> jax.Array:
        return jnp.stack([rewards[agent] for agent in self._agents]).sum()

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`; agents have a rim and a number, landmarks do not, and some places lie outside the picture."""
        env, extent = self._env, 1.5
        canvas = drawing.Canvas((360, 360), (-extent, -extent), 180 / extent)
        for number in reversed(range(env.num_entities)):
            place, radius, color = state.p_pos[number], env.rad[number], tuple(map(int, env.colour[number]))
            if number < env.num_agents:
                canvas.circle(place, radius + 0.012, drawing.INK)
                canvas.circle(place, radius, color)
                canvas.text(place, str(number), drawing.INK, min(0.12, radius))
            else:
                canvas.circle(place, radius, color)
        lines = []
        for number in map(int, np.flatnonzero(~np.asarray(env.silent, bool))):
            if np.any(state.c[number]):
                lines.append(f"{number} says {chr(ord('A') + int(np.argmax(state.c[number])))}")
        for row, line in enumerate(lines):
            canvas.text((0.04 - extent, extent - 0.1 - 0.14 * row), line, drawing.INK, 0.11, "lm")
        return canvas.picture()


class Smax(JaxMARL):
    """SMAX against heuristic enemies; `metrics["won"]` is 1 at the end of a won episode and 0 of a lost one."""

    fps = 8.0

    def _metrics(self, state: PyTree) -> dict[str, jax.Array]:
        allies, enemies = self._alive(state)
        return {"won": allies & ~enemies}

    def _observation(self, obs: dict[Any, jax.Array]) -> jax.Array:
        rows = super()._observation(obs)
        # A dead unit sees only zeros; as in JaxMARL's baselines, they include its one-hot number.
        return rows * rows[:, : -self.num_agents].any(-1, keepdims=True)

    def _legal_actions(self, state: PyTree) -> jax.Array:
        available = self._env.get_avail_actions(state)
        return jnp.stack([available[agent] for agent in self._agents]).astype(bool)

    def _terminated(self, state: PyTree) -> jax.Array:
        allies, enemies = self._alive(state)
        return ~(allies & enemies)

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`; allies are blue and enemies red, with the letter of their type, their health and attacks."""
        env, units = self._env, jax.device_get(state.state)
        places, alive = np.asarray(units.unit_positions), np.asarray(units.unit_alive, bool)
        reach, radii, health = (
            np.asarray(by_type)[units.unit_types]
            for by_type in (env.unit_type_attack_ranges, env.unit_type_radiuses, env.unit_type_health)
        )
        canvas = drawing.Canvas((480, 480), (0, 0), 480 / env.map_width)
        for unit, action in enumerate(np.asarray(units.prev_attack_actions) - env.num_movement_actions):
            is_ally = unit < env.num_allies  # enemies number their targets backwards, from the last ally
            target = int(action) + env.num_allies if is_ally else env.num_allies - 1 - int(action)
            if action >= 0 and alive[unit] and np.linalg.norm(places[unit] - places[target]) < reach[unit]:
                canvas.line([places[unit], places[target]], drawing.BLUE if is_ally else drawing.VERMILION, 0.08)
        for unit in map(int, np.flatnonzero(alive)):
            (x, y), radius = places[unit], radii[unit] * 1.2
            canvas.circle((x, y), radius, drawing.BLUE if unit < env.num_allies else drawing.VERMILION)
            canvas.text((x, y), env.unit_type_shorthands[units.unit_types[unit]], drawing.WHITE, 0.9)
            full = max(0.0, float(units.unit_health[unit] / health[unit]))
            canvas.box((x - 0.7, y + radius + 0.15), (1.4, 0.2), (205, 205, 205))
            canvas.box((x - 0.7, y + radius + 0.15), (1.4 * full, 0.2), drawing.GREEN)
        return canvas.picture()

    def _alive(self, state: PyTree) -> tuple[jax.Array, jax.Array]:
        """Return whether any ally is alive, and whether any enemy is."""
        alive = state.state.unit_alive
        return alive[: self.num_agents].any(), alive[self.num_agents :].any()


class Overcooked(JaxMARL):
    """Overcooked, in which only the time limit ends an episode.

    At first, intermediate results such as filling a pot are rewarded too. The attribute `shared`, see `qlax.Env`, is
    the factor of this shaping reward, which falls linearly from 1 to 0. Reported returns count only deliveries, at 20
    each; `metrics["deliveries"]` is their number. Observations need not say whose they are, as each shows the game
    from the member's own side.

    Args:
      env: Environment of jaxmarl.
      shaping_fraction: Fraction of the training after which the shaping reward is 0; 0 for no shaping reward.
    """

    fps = 6.0
    action_names = ("up", "down", "right", "left", "stay", "interact")

    def __init__(self, env: Any, shaping_fraction: float = 0.5):
        if not 0 <= shaping_fraction <= 1:
            raise UserError(f"shaping_fraction={shaping_fraction}: expected a fraction of training, from 0 to 1")
        super().__init__(env)
        self.time_limit = env.max_steps  # unlike others, this game counts the step before it compares with the limit
        self.shared = jnp.float32(shaping_fraction > 0)
        self._shaping_fraction = shaping_fraction

    def shared_at(self, progress: jax.Array) -> jax.Array:
        """See `qlax.Env`."""
        if self._shaping_fraction == 0:
            return jnp.float32(0)
        return jnp.maximum(1 - progress / self._shaping_fraction, 0)

    def reset(self, key: jax.Array) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state, step = super().reset(key)
        nothing = jnp.float32(jnp.nan)
        return (state, jnp.float32(0)), step._replace(metrics={"raw_reward": nothing, "deliveries": nothing})

    def step(  # type: ignore[override]  # the shared value is the last argument
        self, key: jax.Array, state: PyTree, action: jax.Array, factor: jax.Array
    ) -> tuple[PyTree, Step]:
        """See `qlax.Env`."""
        state, deliveries = state
        obs, state, rewards, done, info = self._env.step_env(key, state, self._by_agent(action))
        raw_reward, cut = self._reward(rewards), done["__all__"]
        deliveries += raw_reward / DELIVERY_REWARD
        shaping = jnp.stack([info["shaped_reward"][agent] for agent in self._agents]).sum()
        step = self._step(obs, state, raw_reward + factor * shaping, jnp.bool_(False), cut)
        metrics = {"raw_reward": raw_reward, "deliveries": jnp.where(cut, deliveries, jnp.nan)}
        return (state, deliveries), step._replace(metrics=metrics)

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`."""
        with imported_when_used("matplotlib.pyplot"):  # used only for a window, which is not opened here
            from jaxmarl.viz.overcooked_visualizer import OvercookedVisualizer

        state, _ = state
        around = self._env.agent_view_size - 2  # width of the walls that JaxMARL adds around the layout
        grid = np.asarray(state.maze_map)[around:-around, around:-around]
        return OvercookedVisualizer._render_grid(
            grid, tile_size=48, agent_dir_idx=np.asarray(state.agent_dir_idx), agent_inv=np.asarray(state.agent_inv)
        )

    def _observation(self, obs: dict[Any, jax.Array]) -> jax.Array:
        """Return the planes `[M, H, W, 26]`, float32 as some of them hold counts."""
        return jnp.stack([obs[agent] for agent in self._agents]).astype(jnp.float32)


class Hanabi(JaxMARL):
    """Hanabi; the return is the score: the number of cards played, or 0 if the team lost all its lives.

    Members that are not to move have one legal action, to wait. `metrics` hold `fireworks`, the number of cards played
    even if all lives were lost, and `lost_lives`, 1 if they were.
    """

    fps = 1.0

    def render(self, state: PyTree) -> np.ndarray:
        """See `qlax.Env`; shows the cards played, the tokens, and all hands, with > before the member to move."""
        palette = (drawing.VERMILION, drawing.YELLOW, drawing.GREEN, drawing.WHITE, drawing.SKY)
        fireworks, hands = np.asarray(state.fireworks), np.asarray(state.player_hands)
        rows = [fireworks[..., None, :].sum(-1, dtype=int), *hands]
        width = 2.2 + max(hands.shape[1], len(fireworks))
        canvas = drawing.Canvas((round(60 * width), 60 * (len(rows) + 1)), (0, 0), 60, drawing.DIM)
        for row, cards in enumerate(rows):
            y = len(rows) - row
            turn = "> " if row and np.argmax(state.cur_player_idx) == row - 1 else ""
            canvas.text((0.2, y + 0.5), f"{turn}member {row - 1}" if row else "played", drawing.WHITE, 0.32, "lm")
            for place, card in enumerate(cards):
                if row:
                    color, number = divmod(int(np.argmax(card)), card.shape[-1]) if card.any() else (None, 0)
                    number += 1
                else:
                    color, number = place, int(card[0])
                if color is not None:
                    canvas.box((2.1 + place, y + 0.08), (0.84, 0.84), palette[color % len(palette)])
                    canvas.text((2.52 + place, y + 0.5), str(number), drawing.INK, 0.5)
        tokens = f"hints {int(np.sum(state.info_tokens))}   lives {int(np.sum(state.life_tokens))}"
        canvas.text((0.2, 0.5), f"{tokens}   step {int(state.step)}", drawing.WHITE, 0.32, "lm")
        return canvas.picture()

    def _metrics(self, state: PyTree) -> dict[str, jax.Array]:
        return {"fireworks": state.fireworks.sum(), "lost_lives": ~state.life_tokens.any()}

    def _legal_actions(self, state: PyTree) -> jax.Array:
        legal = self._env.get_legal_moves(state)
        return jnp.stack([legal[agent] for agent in self._agents]).astype(bool)

    def _terminated(self, state: PyTree) -> jax.Array:
        del state
        return jnp.bool_(True)


ENVIRONMENTS: dict[str, tuple[type[JaxMARL], tuple[type, ...], dict[str, Any]]] = {
    # name: adapter; JaxMARL's class, and base classes with further arguments; arguments that the name stands for
    **{
        f"smax/{name}": (Smax, (HeuristicEnemySMAX, SMAX), {"scenario": scenario})
        for name, scenario in MAP_NAME_TO_SCENARIO.items()
    },
    **{
        f"overcooked/{name}": (Overcooked, (environments.Overcooked,), {"layout": layout})
        for name, layout in environments.overcooked_layouts.items()
    },
    "hanabi": (Hanabi, (environments.Hanabi,), {}),
    "mpe/simple_spread": (MultiParticle, (environments.SimpleSpreadMPE, environments.SimpleMPE), {}),
    "mpe/simple_reference": (MultiParticle, (environments.SimpleReferenceMPE, environments.SimpleMPE), {}),
    "mpe/simple_speaker_listener": (MultiParticle, (environments.SimpleSpeakerListenerMPE, environments.SimpleMPE), {}),
}
NOT_OPTIONS = {
    *("num_allies", "num_enemies", "smacv2_position_generation", "smacv2_unit_type_generation"),  # fixed by the map
    *("action_type", "dim_c"),  # fixed by the task
}
ATTACK_MODES = ("closest", "random")  # checked here, as SMAX treats any other text as "closest"


def names() -> list[str]:
    """Return the names of the environments, as game or game/variant."""
    return list(ENVIRONMENTS)


def make(name: str, /, **options: Any) -> JaxMARL:
    """Make an environment by its name.

    Args:
      name: Name of the environment, as game or game/variant.
      options: Arguments of JaxMARL's class, such as `max_steps`; for Overcooked also `shaping_fraction` (0.5 unless
        given).

    Raises:
      UserError: The name or an option is unknown, or a value is not allowed.
    """
    check_name("jaxmarl", name, ENVIRONMENTS)
    adapter, classes, arguments = ENVIRONMENTS[name]
    own = _options(adapter)
    defaults = own | {k: v for each in reversed(classes) for k, v in _options(each).items() if k not in NOT_OPTIONS}
    options = checked(f"jaxmarl/{name}", options, defaults)
    mode = options.get("attack_mode", ATTACK_MODES[0])
    if mode not in ATTACK_MODES:
        raise UserError(f"attack_mode={mode!r}: expected {' or '.join(ATTACK_MODES)}{nearest(mode, ATTACK_MODES)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Overcooked recommends its second version
            env = classes[0](**arguments, **{option: value for option, value in options.items() if option not in own})
        return adapter(env, **{option: value for option, value in options.items() if option in own})
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"jaxmarl/{name} cannot be made with {options}: {described(error)}") from error


def _options(kind: type) -> dict[str, Any]:
    """Return the arguments of a class that can be written on a command line, with their defaults."""
    parameters = inspect.signature(kind).parameters.values()
    return {each.name: each.default for each in parameters if isinstance(each.default, bool | int | float | str)}
