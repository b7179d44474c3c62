from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pgx
import pytest

import qlax
from qlax.envs import make
from qlax.errors import UserError

KEYS = jax.random.split(jax.random.key(0), 64)
LEARNER = 0


def first_legal(key, obs, legal):
    del key, obs
    return legal.argmax()


def last_legal(key, obs, legal):
    del key, obs
    return legal.size - 1 - legal[::-1].argmax()


def favourite(action):
    """Make a network whose only parameter is the Q-value of this action; all other Q-values are 0."""

    def apply(variables, memory, obs, first, train, **options):
        q = jnp.zeros((*first.shape, 9)).at[..., action].set(variables["params"])
        return q + 0 * obs.sum(), memory

    return SimpleNamespace(recurrent=False, init=lambda *inputs: {"params": jnp.float32(1)}, apply=apply)


def played(env, policy, key=KEYS[0], most=400):
    """Play one game; return `(action, state, step)` of every step, with None as the first action."""
    advance = jax.jit(env.step)
    state, step = jax.jit(env.reset)(key)
    shown = [(None, state, step)]
    for index in range(most):
        action = int(
            policy(KEYS[index % 64], step.obs, np.ones(env.num_actions, bool) if step.legal is None else step.legal)
        )
        state, step = advance(jax.random.fold_in(key, index), state, action)
        shown.append((action, state, step))
        if step.terminated or step.truncated:
            return shown
    raise AssertionError(f"no end within {most} steps")


@pytest.mark.parametrize("key", KEYS[:4])
@pytest.mark.parametrize("name", ["tic_tac_toe", "connect_four"])
def test_what_follows_an_action_is_the_learners_next_turn(name, key):
    env = make(f"pgx/{name}", opponent=f"{__name__}:first_legal")
    shown = played(env, last_legal, key)
    theirs = pgx.make(name)
    begin, advance = jax.jit(theirs.init), jax.jit(theirs.step)
    state = begin(jax.random.split(key)[0])
    for index, (action, _, step) in enumerate(shown):
        reward = 0.0
        if action is not None:
            state = advance(state, action)
            reward += state.rewards[LEARNER]
        while not state.terminated and state.current_player != LEARNER:
            state = advance(state, int(np.flatnonzero(state.legal_action_mask)[0]))
            reward += state.rewards[LEARNER]
        assert (step.reward, step.terminated, step.truncated) == (reward, state.terminated, False)
        assert bool(state.terminated) == (index == len(shown) - 1)
        if not state.terminated:
            np.testing.assert_array_equal(step.obs, state.observation)
            np.testing.assert_array_equal(step.legal, state.legal_action_mask)


def test_a_win_a_loss_and_who_begins():
    """The opponent takes the first free square of tic-tac-toe: 0, 1 and 2, unless one is taken."""
    env = make("pgx/tic_tac_toe", opponent=f"{__name__}:first_legal")
    outcomes = {}
    for key in KEYS[:8]:
        shown = played(env, last_legal, key)  # the learner takes 8, 7, 6, so the first to move wins
        begins = not shown[0][2].obs.any()
        reward, metrics = float(shown[-1][2].reward), shown[-1][2].metrics
        outcomes[begins] = (len(shown) - 1, reward, float(metrics["won"]), float(metrics["drawn"]))
        assert all(np.isnan(step.metrics["won"]) for _, _, step in shown[:-1])
    assert outcomes == {True: (3, 1.0, 1.0, 0.0), False: (2, -1.0, 0.0, 0.0)}


@pytest.mark.slow
def test_an_opponent_may_move_several_times_in_turn():
    env = make("pgx/backgammon")
    reset, advance = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
    state, step = reset(KEYS)
    turns = 0
    for index in range(6):
        assert np.all((state.current_player == LEARNER) | state.terminated)
        before = state._step_count
        keys = jax.vmap(jax.random.fold_in, (0, None))(KEYS, index)
        state, step = advance(keys, state, step.legal.argmax(-1).astype(jnp.int32))
        turns = max(turns, int((state._step_count - before).max()))
    assert turns > 2


def test_random_opponents_begin_half_of_the_games_anywhere():
    """In 64 games of Connect Four about half of the opponents move first, and all columns occur."""
    env = make("pgx/connect_four")
    _, step = jax.jit(jax.vmap(env.reset))(KEYS)
    columns = np.asarray(step.obs.any((1, 3)))
    began = columns.any(-1)
    assert 16 < began.sum() < 48
    assert set(np.flatnonzero(columns.any(0))) == set(range(7))


@pytest.mark.parametrize(("name", "limit"), [("minatar-freeway", 2501)])
def test_only_time_ends_freeway(name, limit):
    env = make(f"pgx/{name}")
    assert env.time_limit == limit

    def one(state, key):
        state, step = env.step(key, state, jnp.int32(0))
        return state, (step.terminated, step.truncated)

    keys = jax.random.split(KEYS[0], limit)
    _, (terminated, truncated) = jax.jit(lambda: jax.lax.scan(one, env.reset(KEYS[1])[0], keys))()
    assert not terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(truncated), [limit - 1])


def test_options_of_games():
    still = make("pgx/minatar-breakout", sticky_action_prob=0)
    assert (still.num_actions, make("pgx/minatar-breakout", use_minimal_action_set=False).num_actions) == (3, 6)
    theirs = pgx.minatar.breakout.MinAtarBreakout(sticky_action_prob=0.0)
    step_theirs, step_ours = jax.jit(theirs.step), jax.jit(still.step)
    state, step = still.reset(KEYS[0])
    for key in KEYS[:5]:
        expected = step_theirs(state, jnp.int32(1), key)
        state, step = step_ours(key, state, jnp.int32(1))
        np.testing.assert_array_equal(step.obs, expected.observation)
    assert step.legal is None
    assert [make("pgx/go_9x9", **options).num_actions for options in ({"size": 5}, {"komi": 6.5})] == [26, 82]


def test_an_illegal_action_does_not_happen_but_2048_has_them():
    shown = played(make("pgx/2048"), first_legal)
    assert sum(bool(not step.legal.all()) for _, _, step in shown) > 5
    assert sum(float(step.reward) for _, _, step in shown) > 100


def test_the_opponent_is_what_the_learner_was():
    """The opponent moves to the square with the largest Q-value of the network that it was given."""
    env = make("pgx/tic_tac_toe", opponent="self", opponent_epsilon=0, generations=4)
    for square in (4, 2):
        bound = env.with_network(favourite(square))
        state, step = bound.reset(KEYS[0])
        opponent = bound.shared._replace(variables={"params": jnp.float32(1)})
        mine = int(step.legal.argmax())
        _, after = bound.step(KEYS[1], state, mine, opponent)
        assert after.obs[..., 1].reshape(-1)[square]  # the opponent's stone
        assert after.obs[..., 0].reshape(-1)[mine]
        assert not step.obs[..., 1].reshape(-1)[square]


def test_the_opponent_is_replaced_so_many_times():
    env = make("pgx/tic_tac_toe", opponent="self", generations=4).with_network(favourite(0))
    opponent, of_generations = env.shared, []
    for update in range(20):
        opponent = env.shared_after(opponent, jnp.float32(update / 20), {"params": jnp.float32(update)})
        of_generations.append(float(opponent.variables["params"]))
    assert of_generations == [0] * 5 + [5] * 5 + [10] * 5 + [15] * 5


@pytest.mark.slow
def test_training_against_itself_and_an_agent_as_the_opponent(tmp_path, monkeypatch):
    """In the last update the opponent has the parameters that the learner had when the last generation began."""
    settings = {"num_envs": 4, "num_steps": 4, "num_minibatches": 1, "num_epochs": 1, "hidden": (8,), "encoder": "mlp"}
    options = {"opponent": "self", "generations": 2}
    result = qlax.train("pgx/tic_tac_toe", total_steps=64, env_options=options, out=tmp_path / "run", **settings)
    assert set(result.summary["eval_won"]) == {"mean", "per_run"}
    agent = qlax.load(tmp_path / "run")
    against = make("pgx/tic_tac_toe", opponent=str(tmp_path / "run"), opponent_epsilon=0)
    shown = played(against, first_legal)
    theirs = pgx.make("tic_tac_toe")
    advance = jax.jit(theirs.step)
    state = jax.jit(theirs.init)(jax.random.split(KEYS[0])[0])
    for action, reached, _ in shown:
        state = state if action is None else advance(state, action)
        while not state.terminated and state.current_player != LEARNER:
            state = advance(state, int(agent.act(state.observation, state.legal_action_mask)))
        np.testing.assert_array_equal(reached._x.board, state._x.board)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"opponent=run: an agent of pgx/tic_tac_toe, which .*; expected one of pgx/connect_four"
    ):
        make("pgx/connect_four", opponent="run")


def test_wrappers_would_not_be_around_the_opponent(tmp_path):
    with pytest.raises(UserError, match="wrappers=last_action: pgx/tic_tac_toe plays against itself"):
        qlax.train("pgx/tic_tac_toe", env_options={"opponent": "self"}, wrappers=("last_action",), out=tmp_path / "run")
    with pytest.raises(UserError, match="opponent=self needs a network without memory"):
        qlax.train("pgx/tic_tac_toe", env_options={"opponent": "self"}, memory="gru", out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("connect_for", {}, "pgx has no environment 'connect_for'; did you mean 'connect_four'?"),
        ("connect_four", {"oponent": "self"}, "has no option 'oponent'; did you mean 'opponent'?"),
        (
            "connect_four",
            {"opponent": "runs/nowhere"},
            "opponent='runs/nowhere': expected random, self, a run directory",
        ),
        ("connect_four", {"opponent": 3}, "opponent=3: expected a word, like 'random'"),
        ("connect_four", {"opponent_epsilon": 2}, "opponent_epsilon=2.0: expected a probability, from 0 to 1"),
        ("connect_four", {"generations": 0}, "generations=0: expected a whole number from 1"),
        ("minatar-breakout", {"opponent": "self"}, "has no option 'opponent'; options: sticky_action_prob, use_"),
        ("hex", {"size": -1}, "pgx/hex cannot be made with {'size': -1}"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        make(f"pgx/{name}", **options)
