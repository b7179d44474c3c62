"""Seaquest of MinAtar: the game of gymnax 1.0 bit for bit, in a form that is more than ten times as fast.

Gymnax keeps each kind of object in a list of 100 rows without gaps, of which at most 30 can be in use, and moves all
rows together whenever an object disappears. Here an object stays in its slot until it disappears, and its step of birth
stands for its place in the list. Arrays have one axis, the slots, along which a CPU computes many at once.

Why the slots suffice: at most one enemy is born per step, and enemies leave after at most 30 steps once they are that
frequent (early ones are slower, but rarer); the agent fires every 5 steps, and bullets leave after 10; divers are born
every 30 steps and leave after 60. A submarine fires every 11 steps, so its bullets can have its slot. This holds for
Gymnax's default intervals of spawning, moving and firing.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment
from gymnax.environments.minatar import seaquest

SIZE = seaquest.BOARD_SIZE
ENEMIES, BULLETS, DIVERS = 32, 4, 4  # slots


class Objects(NamedTuple):
    """Objects of one kind, each array `[slots]`.

    Attributes:
      alive: bool, whether the slot holds an object.
      x: int32, column.
      y: int32, row.
      right: bool, whether the object moves to the right.
      born: int32, step of birth; the order of objects in Gymnax's lists.
      timer: int32, steps until the next move.
    """

    alive: jax.Array
    x: jax.Array
    y: jax.Array
    right: jax.Array
    born: jax.Array
    timer: jax.Array


@struct.dataclass
class EnvState(environment.EnvState):
    """State of the game; fields that Gymnax has too mean the same."""

    oxygen: jax.Array
    sub_x: jax.Array
    sub_y: jax.Array
    sub_or: jax.Array
    f_bullets: Objects
    e_bullets: Objects  # each in the slot of the submarine that fired it
    e_fish: Objects
    e_subs: Objects
    e_subs_shot_timer: jax.Array  # [ENEMIES] int32, steps until each submarine fires
    diver_count: jax.Array
    divers: Objects
    e_spawn_speed: jax.Array
    e_spawn_timer: jax.Array
    d_spawn_timer: jax.Array
    move_speed: jax.Array
    ramp_index: jax.Array
    shot_timer: jax.Array
    surface: jax.Array
    time: jax.Array
    terminal: jax.Array


class MinSeaquest(seaquest.MinSeaquest):
    """See `gymnax.environments.minatar.seaquest.MinSeaquest`, whose timers are used unchanged."""

    def reset_env(self, key: jax.Array, params: seaquest.EnvParams) -> tuple[jax.Array, EnvState]:
        """Return the first observation and state."""
        _, first = seaquest.MinSeaquest().reset_env(key, params)
        shared = {field.name for field in dataclasses.fields(EnvState)}
        state = EnvState(
            **{name: x for name, x in vars(first).items() if name in shared and jnp.ndim(x) == 0},
            f_bullets=_none(BULLETS),
            e_bullets=_none(ENEMIES),
            e_fish=_none(ENEMIES),
            e_subs=_none(ENEMIES),
            e_subs_shot_timer=jnp.zeros(ENEMIES, jnp.int32),
            divers=_none(DIVERS),
        )
        return self.get_obs(state, params), state

    def step_env(
        self, key: jax.Array, state: EnvState, action: jax.Array, params: seaquest.EnvParams
    ) -> tuple[jax.Array, EnvState, jax.Array, jax.Array, dict[Any, Any]]:
        """Compute one step, with the same random numbers as Gymnax."""
        key_enemy, key_diver = jax.random.split(key)
        state = self._spawn_enemy(key_enemy, state, params)
        state = self._spawn_diver(key_diver, state, params)
        state = self._move_agent(state, self.action_set[action], params)
        bullets, fish, first = _collide(_advance(state.f_bullets), state.e_fish)
        bullets, subs, second = _collide(bullets, state.e_subs)
        divers, saved = self._save_divers(state, params)

        is_hit = self._is_hit(state, subs)
        subs = _advance(subs, state.move_speed)
        is_hit |= self._is_hit(state, subs)
        bullets, subs, third = _collide(bullets, subs)
        fires = subs.alive & (state.e_subs_shot_timer == 0)
        shot_timer = jnp.where(fires, params.enemy_shot_interval, jnp.maximum(state.e_subs_shot_timer - 1, 0))

        fired = subs._replace(timer=jnp.zeros_like(subs.timer))
        shots = jax.tree.map(lambda new, old: jnp.where(fires, new, old), fired, state.e_bullets)
        is_hit |= self._is_hit(state, shots)
        shots = _advance(shots)
        is_hit |= self._is_hit(state, shots)

        is_hit |= self._is_hit(state, fish)
        fish = _advance(fish, state.move_speed)
        is_hit |= self._is_hit(state, fish)
        bullets, fish, fourth = _collide(bullets, fish)

        state = state.replace(
            f_bullets=bullets,
            e_bullets=shots,
            e_fish=fish,
            e_subs=subs,
            e_subs_shot_timer=shot_timer,
            divers=divers,
            diver_count=saved,
        )
        state, at_surface, is_drowned = self._step_timers(state, params)
        done = state.terminal | is_hit | is_drowned
        state = state.replace(time=state.time + 1, terminal=done)
        reward = (first + second + third + fourth).astype(jnp.float32) + at_surface
        return self.get_obs(state, params), state, reward, done, {"discount": self.discount(state, params)}

    def get_obs(self, state: EnvState, params: seaquest.EnvParams | None = None, key: Any = None) -> jax.Array:
        """Return the observation, bool `[10, 10, 10]`."""
        params = params or self.default_params
        # Gymnax sets the cell behind the submarine by its index, of which -1 is the last one.
        behind = jnp.where(state.sub_or, (state.sub_x - 1) % SIZE, state.sub_x + 1)
        oxygen = jnp.maximum(state.oxygen, 0) * 10 // params.max_oxygen
        rows = jnp.arange(SIZE)
        swimmers = (state.e_fish, state.e_subs, state.divers)
        channels = [
            jnp.where(rows == state.sub_y, 1 << state.sub_x, 0),
            jnp.where(rows == state.sub_y, 1 << behind, 0),
            _occupied(state.f_bullets),
            functools.reduce(jnp.bitwise_or, (_occupied(each, _behind(each)) for each in swimmers)),
            _occupied(state.e_bullets),
            _occupied(state.e_fish),
            _occupied(state.e_subs),
            jnp.where(rows == SIZE - 1, (1 << oxygen) - 1, 0),
            jnp.where(rows == SIZE - 1, (1 << SIZE - 1) - (1 << SIZE - 1 - jnp.maximum(state.diver_count, 0)), 0),
            _occupied(state.divers),
        ]
        columns = jnp.arange(SIZE)[:, None]
        return (jnp.stack(channels, -1)[:, None] >> columns & 1).astype(bool)

    def _spawn_enemy(self, key: jax.Array, state: EnvState, params: seaquest.EnvParams) -> EnvState:
        key_choice, key_y = jax.random.split(key)
        values = jax.random.uniform(key_choice, shape=(2,))
        right, is_sub = values[0] < 0.5, values[1] < 1 / 3
        y = jax.random.randint(key_y, (), 1, 9)
        is_opposed = [
            (each.alive & (each.y == y) & (each.right != right)).any() for each in (state.e_fish, state.e_subs)
        ]
        is_due = state.e_spawn_timer == 0
        spawns = is_due & ~is_opposed[0] & ~is_opposed[1]
        enemy = {"x": jnp.where(right, 0, SIZE - 1), "y": y, "right": right, "timer": state.move_speed}
        fish, _ = _with_one(state.e_fish, spawns & ~is_sub, enemy, state.time)
        subs, here = _with_one(state.e_subs, spawns & is_sub, enemy, state.time)
        return state.replace(
            e_fish=fish,
            e_subs=subs,
            e_subs_shot_timer=jnp.where(here, params.enemy_shot_interval, state.e_subs_shot_timer),
            e_spawn_timer=jnp.where(is_due, state.e_spawn_speed, state.e_spawn_timer),
        )

    def _spawn_diver(self, key: jax.Array, state: EnvState, params: seaquest.EnvParams) -> EnvState:
        key_direction, key_y = jax.random.split(key)
        right = jax.random.bernoulli(key_direction)
        y = jax.random.randint(key_y, (), 1, 9)
        is_due = state.d_spawn_timer == 0
        diver = {"x": jnp.where(right, 0, SIZE - 1), "y": y, "right": right, "timer": params.diver_move_interval}
        divers, _ = _with_one(state.divers, is_due, diver, state.time)
        timer = jnp.where(is_due, params.diver_spawn_speed, state.d_spawn_timer)
        return state.replace(divers=divers, d_spawn_timer=timer)

    def _move_agent(self, state: EnvState, action: jax.Array, params: seaquest.EnvParams) -> EnvState:
        is_left, is_up, is_right, is_down, is_fire = (action == number for number in range(1, 6))
        x = jnp.clip(state.sub_x - is_left + is_right, 0, SIZE - 1)
        y = jnp.clip(state.sub_y - is_up + is_down, 0, SIZE - 2)
        right = (state.sub_or & ~is_left) | is_right
        fires = is_fire & (state.shot_timer == 0)
        bullets, _ = _with_one(state.f_bullets, fires, {"x": x, "y": y, "right": right}, state.time)
        timer = jnp.where(fires, params.shot_cool_down, state.shot_timer)
        return state.replace(sub_x=x, sub_y=y, sub_or=right, f_bullets=bullets, shot_timer=timer)

    def _save_divers(self, state: EnvState, params: seaquest.EnvParams) -> tuple[Objects, jax.Array]:
        """Take divers on board, before and after they move; return those that are left, and how many are on board."""
        divers, on_board = _taken(state.divers, state, state.diver_count)
        divers, on_board = _taken(_advance(divers, params.diver_move_interval), state, on_board)
        return divers, jnp.minimum(6, on_board)

    def _is_hit(self, state: EnvState, objects: Objects) -> jax.Array:
        return (objects.alive & (objects.x == state.sub_x) & (objects.y == state.sub_y)).any()


def _none(slots: int) -> Objects:
    no, zero = jnp.zeros(slots, bool), jnp.zeros(slots, jnp.int32)
    return Objects(alive=no, x=zero, y=zero, right=no, born=zero, timer=zero)


def _with_one(objects: Objects, appears: jax.Array, new: dict[str, Any], time: jax.Array) -> tuple[Objects, jax.Array]:
    """Put a new object into the first free slot if `appears`; also return where, bool `[slots]`."""
    slots = jnp.arange(len(objects.alive))
    here = appears & (slots == jnp.where(objects.alive, len(slots), slots).min())
    values = new | {"alive": True, "born": time}
    changed = {name: jnp.where(here, value, getattr(objects, name)) for name, value in values.items()}
    return objects._replace(**changed), here


def _advance(objects: Objects, interval: jax.Array | int = 0) -> Objects:
    """Move objects whose timer has run out, and remove those that leave the board."""
    moves = objects.timer == 0
    x = objects.x + jnp.where(moves, jnp.where(objects.right, 1, -1), 0)
    timer = jnp.where(moves, interval, objects.timer - 1)
    return objects._replace(alive=objects.alive & (x >= 0) & (x < SIZE), x=x, timer=timer)


def _collide(bullets: Objects, targets: Objects) -> tuple[Objects, Objects, jax.Array]:
    """Remove bullets and the targets that they hit: the oldest target of a cell, and its youngest bullet.

    Returns:
      Bullets and targets that are left, and the number of targets that were hit.
    """
    meets = _same_cell(bullets, targets)
    oldest = jnp.where(meets, targets.born, jnp.iinfo(jnp.int32).max).min(1, keepdims=True)
    is_hit = (meets & (targets.born == oldest)).any(0)
    has_younger = (_same_cell(bullets, bullets) & (bullets.born > bullets.born[:, None])).any(1)
    left = bullets.alive & ~(meets.any(1) & ~has_younger)
    return bullets._replace(alive=left), targets._replace(alive=targets.alive & ~is_hit), is_hit.sum()


def _same_cell(some: Objects, others: Objects) -> jax.Array:
    """Return which objects are in the same cell, bool `[slots of some, slots of others]`."""
    here = some.alive[:, None] & others.alive
    return here & (some.x[:, None] == others.x) & (some.y[:, None] == others.y)


def _taken(divers: Objects, state: EnvState, on_board: jax.Array) -> tuple[Objects, jax.Array]:
    """Pick up divers at the submarine, the oldest first, until six are on board; return the others, and that number."""
    is_here = divers.alive & (divers.x == state.sub_x) & (divers.y == state.sub_y)
    older = (is_here & (divers.born < divers.born[:, None])).sum(1)
    taken = is_here & (older < jnp.maximum(6 - on_board, 0))
    return divers._replace(alive=divers.alive & ~taken), on_board + taken.sum()


def _behind(objects: Objects) -> jax.Array:
    return objects.x + jnp.where(objects.right, -1, 1)


def _occupied(objects: Objects, x: jax.Array | None = None) -> jax.Array:
    """Return the columns that objects occupy in each row, as bits: `[10]` int32; bits take few operations.

    Args:
      objects: The objects.
      x: Columns to use in place of `objects.x`, `[slots]`.
    """
    x = objects.x if x is None else x
    bits = jnp.where(objects.alive & (x >= 0) & (x < SIZE), 1 << jnp.clip(x, 0, SIZE - 1), 0)
    in_row = jnp.where(objects.y[:, None] == jnp.arange(SIZE), bits[:, None], 0)
    return jax.lax.reduce(in_row, jnp.int32(0), jax.lax.bitwise_or, (0,))
