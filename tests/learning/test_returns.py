import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import rlax

from qlax.learning import returns

T, N = 9, 5


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(params=["q_lambda", "q_lambda_at_once"])
def q_lambda(request):
    return getattr(returns, request.param)


def experience(seed, shape=(T, N), ends=0.3):
    """Return random reward, terminated, truncated `[T, ...]`, sometimes both at once, and value `[T + 1, ...]`."""
    random = np.random.default_rng(seed)
    reward, value = random.normal(size=shape), random.normal(size=(shape[0] + 1, *shape[1:]))
    terminated, truncated = random.random((2, *shape)) < ends
    return reward.astype(np.float32), terminated, truncated, value.astype(np.float32)


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("ends", [0.0, 0.3, 0.8])
def test_agrees_with_the_forward_view(q_lambda, gamma, lam, ends):
    for seed in range(3):
        data = experience(seed, ends=ends)
        close(q_lambda(*data, gamma, lam), reference.q_lambda(*data, gamma, lam))


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        ([0, 0, 0], [0, 0, 0], [5.75, 11.0, 20.0, 32.0]),  # G_2 = 4 + 32 / 2, G_1 = 2 + (16 / 2 + 20 / 2) / 2
        ([0, 1, 0], [0, 0, 0], [3.5, 2.0, 20.0, 32.0]),  # G_0 = 1 + (8 / 2 + 2 / 2) / 2
        ([0, 0, 0], [0, 1, 0], [5.0, 8.0, 20.0, 32.0]),  # G_1 = v_1
        ([0, 1, 0], [0, 1, 0], [3.5, 2.0, 20.0, 32.0]),  # terminated wins
        ([0, 0, 1], [1, 0, 0], [4.0, 7.0, 4.0, 32.0]),  # G_1 = 2 + (16 / 2 + 4 / 2) / 2
    ],
)
def test_numbers_worked_out_by_hand_for_gamma_and_lambda_one_half(q_lambda, terminated, truncated, expected):
    reward, value = jnp.array([1.0, 2.0, 4.0]), jnp.array([4.0, 8.0, 16.0, 32.0])
    ends = jnp.array(terminated, bool), jnp.array(truncated, bool)
    np.testing.assert_array_equal(q_lambda(reward, *ends, value, 0.5, 0.5), jnp.array(expected))


def test_without_lambda_it_is_the_one_step_target(q_lambda):
    reward, terminated, truncated, value = experience(0)
    expected = reward + 0.9 * np.where(terminated, 0, value[1:])
    expected = np.where(truncated & ~terminated, value[:-1], expected)
    close(q_lambda(reward, terminated, truncated, value, 0.9, 0.0), np.concatenate([expected, value[-1:]]))


def test_with_lambda_one_it_is_the_bootstrapped_monte_carlo_return(q_lambda):
    reward, nothing, _, value = experience(1, ends=0.0)
    powers = 0.9 ** np.arange(T + 1)
    expected = [powers[: T - t] @ reward[t:] + powers[T - t] * value[-1] for t in range(T + 1)]
    close(q_lambda(reward, nothing, nothing, value, 0.9, 1.0), expected)


def test_equals_another_library(q_lambda):
    reward, terminated, _, _ = experience(2)
    nothing = np.zeros_like(terminated)
    q = np.random.default_rng(3).normal(size=(T + 1, N, 4)).astype(np.float32)
    targets = q_lambda(reward, terminated, nothing, q.max(-1), 0.9, 0.65)[:-1]
    discount = np.float32(0.9) * ~terminated
    action = np.zeros((T, N), int)
    error = jax.vmap(rlax.q_lambda, (1, 1, 1, 1, 1, None), 1)(q[:-1], action, reward, discount, q[1:], 0.65)
    close(targets - q[:-1, :, 0], error)


def test_what_a_truncated_step_holds_does_not_leak(q_lambda):
    reward, terminated, truncated, value = experience(4)
    lost = truncated & ~terminated
    assert lost.any()
    targets = q_lambda(reward, terminated, truncated, value, 0.9, 0.65)
    for junk in (np.inf, np.nan):
        poisoned = np.where(lost, junk, reward)
        np.testing.assert_array_equal(q_lambda(poisoned, terminated, truncated, value, 0.9, 0.65), targets)


def test_the_value_after_a_terminated_step_does_not_matter(q_lambda):
    reward, terminated, nothing, value = experience(5, ends=0.0)
    terminated[3] = True
    targets = q_lambda(reward, terminated, nothing, value, 0.9, 0.65)
    changed = value.copy()
    changed[4] = np.inf
    changed = q_lambda(reward, terminated, nothing, changed, 0.9, 0.65)
    np.testing.assert_array_equal(changed[:4], targets[:4])


@pytest.mark.parametrize("length", [1, 3, T])
def test_segments_with_the_kept_tail_give_the_targets_of_the_whole(q_lambda, length):
    reward, terminated, truncated, value = experience(6)
    gamma, lam = 0.9, 0.65
    whole = q_lambda(reward, terminated, truncated, value, gamma, lam)
    tail = (1 - lam) * value + lam * whole
    for start in range(0, T, length):
        inside, end = slice(start, start + length), start + length
        segment_value = np.concatenate([value[inside], tail[end : end + 1]])
        segment = q_lambda(reward[inside], terminated[inside], truncated[inside], segment_value, gamma, lam)
        close(segment[:-1], whole[inside])


def test_jit_vmap_and_trailing_axes_change_nothing(q_lambda):
    data = experience(7, (T, N, 2))
    targets = q_lambda(*data, 0.9, 0.65)
    assert targets.shape == (T + 1, N, 2)
    assert targets.dtype == jnp.float32
    close(jax.jit(q_lambda)(*data, 0.9, 0.65), targets)
    close(jax.vmap(q_lambda, (1, 1, 1, 1, None, None), 1)(*data, 0.9, 0.65), targets)
    for n in range(N):
        for m in range(2):
            close(q_lambda(*(x[:, n, m] for x in data), 0.9, 0.65), targets[:, n, m])


def test_gamma_and_lambda_may_be_mapped_over(q_lambda):
    data = experience(8)
    gamma, lam = jnp.array([0.5, 0.9]), jnp.array([1.0, 0.3])
    targets = jax.vmap(lambda g, l: q_lambda(*data, g, l))(gamma, lam)
    for i in range(2):
        close(targets[i], reference.q_lambda(*data, float(gamma[i]), float(lam[i])))
