"""Environments of Gymnasium with action masks, in a module without JAX, as their processes import it.

An observation begins with the mask, so that tests can compare it with the legal actions.
"""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

ACTIONS, TIME_LIMIT = 3, 6


class Masked(gymnasium.Env):
    """Environment whose illegal actions raise an error. One of four steps terminates, where no action is legal.

    Args:
      form: Where the mask is: "info", "method" or "observation"; "late" for an `info` that has none after a reset.
      mess: Whether `info` also has values that cannot be stacked to arrays.
      mask: The mask to show instead of the right one.
      others: Names of further entries of observations that are a dict.
      parts: Numbers of a `MultiDiscrete` action space in place of `Discrete(3)`; masks are of joint actions.
    """

    def __init__(self, form="info", mess=False, mask=None, parts=None, others=(), **_):
        self.action_space = spaces.Discrete(ACTIONS) if parts is None else spaces.MultiDiscrete(parts)
        self.size = ACTIONS if parts is None else int(np.prod(parts))
        self.parts, self.form, self.mess, self.wrong, self.others = parts, form, mess, mask, others
        self.observation_space = spaces.Box(0, 1, (self.size + 1,), np.float32)
        if form == "observation":
            one = spaces.Box(0, 1, (self.size if mask is None else len(mask),), np.int8)
            more = dict.fromkeys(self.others, spaces.Discrete(2))
            self.observation_space = spaces.Dict({"observation": self.observation_space, "action_mask": one, **more})
        if form == "method":
            self.action_masks = self._masks_if_in_play

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._draw(terminated=False)
        if self.form == "late":
            self.mask[:] = True
            return self._shown()[0], {}
        return self._shown()

    def step(self, action):
        chosen = action if self.parts is None else np.ravel_multi_index(action, self.parts)
        if not self.mask[chosen]:
            raise RuntimeError(f"action {action} is illegal")
        self._draw(terminated=self.form != "late" and self.np_random.random() < 0.25)
        shown, info = self._shown()
        return shown, float(chosen), self.terminated, False, info

    def _draw(self, terminated):
        self.terminated = terminated
        self.mask = self.np_random.permutation(np.arange(self.size) <= self.np_random.integers(self.size))
        self.mask = self.mask & (not terminated)

    def _masks_if_in_play(self):
        if self.terminated:
            raise RuntimeError("sb3-contrib never asks at the end")
        return self.mask if self.wrong is None else self.wrong

    def _shown(self):
        obs = np.array([*self.mask, 1], np.float32)
        mask = (
            self.mask.astype(np.int8)
            if self.wrong is None
            else np.array(self.wrong, None if self.wrong == "no" else np.int8)
        )
        info = {"action_mask": mask} if self.form in ("info", "late") else {}
        if self.mess:
            draw = self.np_random.integers
            odd = [np.zeros(draw(4)), "text", 1, {"a": draw(9)}, [1, "b"], np.zeros((2, 2)), None, lambda: 0, 2.5]
            info |= {name: odd[draw(len(odd))] for name in ("a", "b", "_c", "final_info", "episode")}
        in_parts = {"observation": obs, "action_mask": mask, **dict.fromkeys(self.others, 1)}
        return (in_parts if self.form == "observation" else obs), info


class MaskedVector(gymnasium.vector.VectorEnv):
    """Vector environment of N `Masked`; `info` has an array of N masks, with None in place of some if `sparse`."""

    def __init__(self, num_envs, form="info", sparse=False, **_):
        self.envs = [Masked(form) for _ in range(num_envs)]
        self.num_envs, self.form, self.sparse = num_envs, form, sparse
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.ended = np.zeros(num_envs, bool)
        if form == "method":
            self.action_masks = lambda: np.stack([env.mask for env in self.envs])

    def reset(self, *, seed=None, options=None):
        self.ended[:] = False
        return self._stacked([env.reset(seed=seed + i)[0] for i, env in enumerate(self.envs)])

    def step(self, actions):
        steps = [
            (env.reset()[0], 0.0, False) if ended else env.step(action)[:3]
            for env, action, ended in zip(self.envs, actions, self.ended, strict=True)
        ]
        obs, rewards, terminated = zip(*steps, strict=True)
        self.ended = np.array(terminated)
        shown, info = self._stacked(obs)
        return shown, np.array(rewards), self.ended.copy(), np.zeros(self.num_envs, bool), info

    def _stacked(self, obs):
        masks = np.stack([env.mask for env in self.envs])
        info = {"action_mask": masks} if self.form == "info" else {}
        if self.sparse:
            all_legal = masks.all(-1)
            found = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(~all_legal):
                found[i] = masks[i]
            info = {"action_mask": found, "_action_mask": ~all_legal}
        if self.form == "observation":
            return {name: np.stack([each[name] for each in obs]) for name in obs[0]}, info
        return np.stack(obs), info


gymnasium.register("Masked-v0", "masked:Masked", vector_entry_point="masked:MaskedVector", max_episode_steps=TIME_LIMIT)
