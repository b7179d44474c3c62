"""Worker of `peers.py` and `baselines.py` for the Python that has SB3: `sb3_dqn.py SETTINGS`, as JSON; prints JSON.

It trains DQN of Stable-Baselines3 on CartPole with the settings that RL Baselines3 Zoo tuned for it, until the mean of
20 greedy episodes reaches a given return.
"""

import importlib.metadata
import json
import sys
import time

import gymnasium
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

EXPLORATION_STEPS = 0.16 * 50_000  # share of the steps for which the settings were tuned
EPISODES = 20  # greedy episodes per evaluation, one in each of as many environments


class UntilSolved(BaseCallback):
    """Callback that stops training once the agent is good or the time is over, and times the evaluations."""

    def __init__(self, solved_return: float, eval_interval: int, seconds: float):
        super().__init__()
        self.solved_return, self.eval_interval, self.seconds = solved_return, eval_interval, seconds
        self.eval_env = make_vec_env("CartPole-v1", EPISODES)
        self.eval_seconds, self.returns = 0.0, []
        self.steps, self.seconds_of_training = [], []  # at every evaluation

    def _on_training_start(self) -> None:
        self.start = time.perf_counter()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.eval_interval:
            return True
        start = time.perf_counter()
        self.steps.append(self.num_timesteps)
        self.seconds_of_training.append(start - self.start - self.eval_seconds)
        self.returns.append(float(evaluate_policy(self.model, self.eval_env, n_eval_episodes=EPISODES)[0]))
        now = time.perf_counter()
        self.eval_seconds += now - start
        return not self.solved and now - self.start - self.eval_seconds < self.seconds

    @property
    def solved(self) -> bool:
        """Whether the latest evaluation reached the return."""
        return bool(self.returns) and self.returns[-1] >= self.solved_return


def main(seed: int, total_steps: int, seconds: float, solved_return: float, eval_interval: int) -> dict:
    """Train one agent for at most `total_steps` steps and `seconds` seconds."""
    torch.set_num_threads(1)  # these layers are so small that two threads wait for each other most of the time
    agent = DQN(
        "MlpPolicy",
        gymnasium.make("CartPole-v1"),
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=256,
        gradient_steps=128,
        exploration_fraction=EXPLORATION_STEPS / total_steps,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        seed=seed,
        device="cpu",
    )
    until = UntilSolved(solved_return, eval_interval, seconds)
    start = time.perf_counter()
    agent.learn(total_steps, callback=until)
    versions = ("stable-baselines3", "torch", "gymnasium", "numpy")
    return {
        "solved": until.solved,
        "steps": agent.num_timesteps,
        "train_seconds": time.perf_counter() - start - until.eval_seconds,
        "eval_seconds": until.eval_seconds,
        "eval_steps": until.steps,
        "eval_train_seconds": until.seconds_of_training,
        "eval_returns": until.returns,
        "versions": {name: importlib.metadata.version(name) for name in versions},
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
