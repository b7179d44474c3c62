"""A team environment with PettingZoo's parallel API, in which dicts have an entry for each agent, for qlax."""

import numpy as np

import qlax

REST, PULL = 0, 1


class Rowers:
    """Two rowers in a boat: one pulling alone turns it, both together move it ahead if it is straight."""

    possible_agents = ("left", "right")
    LENGTH, LIMIT = 10, 60

    def reset(self, seed=None, options=None):
        """Begin a new race."""
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.heading, self.way, self.time = 0, 0, 0
        return self.observed(), {agent: {} for agent in self.agents}

    def step(self, actions):
        """Take one step with the action of each agent."""
        left, right = (actions[agent] == PULL for agent in self.possible_agents)
        ahead = bool(left and right and self.heading == 0)
        current = self.random.choice([-1, 0, 1], p=[0.15, 0.7, 0.15])
        self.heading += int(left) - int(right) + current
        self.way, self.time = self.way + ahead, self.time + 1
        aground = abs(self.heading) > 2
        arrived = self.way == self.LENGTH
        rewards = dict.fromkeys(self.agents, float(ahead) + 5 * arrived - 5 * aground)
        terminations = dict.fromkeys(self.agents, arrived or aground)
        truncations = dict.fromkeys(self.agents, self.time == self.LIMIT)
        observed = self.observed()
        infos: dict[str, dict] = {agent: {} for agent in self.agents}
        if arrived or aground or self.time == self.LIMIT:
            self.agents = []
        return observed, rewards, terminations, truncations, infos

    def observed(self):
        """Return what each agent observes."""
        side = {"left": [1, 0], "right": [0, 1]}
        heading = [self.heading == x for x in range(-3, 4)]
        return {agent: np.array([*side[agent], *heading, self.way / self.LENGTH], np.float32) for agent in self.agents}


class Team:
    """N environments with the parallel API, as a `qlax.HostEnv`. The team's reward is the mean over its members.

    An environment whose episode ended is reset in the next step, which ignores its actions. So the final observation
    of an episode that reached its time limit can be learned from; `qlax.Episodes` tells the learner. An agent that
    leaves before the others observes zeros from then on, and its actions have no effect.
    """

    parallel_env = Rowers
    num_actions = 2
    num_agents = 2
    time_limit = Rowers.LIMIT

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.envs = [self.parallel_env() for _ in range(num_envs)]
        self.episodes = qlax.Episodes(num_envs)

    def reset(self, seed):
        """Begin N new episodes."""
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs)
        observed = [env.reset(seed=int(own))[0] for env, own in zip(self.envs, seeds, strict=True)]
        self.zeros = np.zeros_like(next(iter(observed[0].values())))
        return self.episodes.begin(self.rows(observed))

    def step(self, action):
        """Take one step in every environment, with actions int32 `[N, M]`."""
        observed, reward = [], np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for i, env in enumerate(self.envs):
            if not env.agents:  # its episode ended in the step before
                observed.append(env.reset()[0])
                continue
            of_agent = dict(zip(env.possible_agents, action[i], strict=True))
            obs, rewards, terminations, _, _ = env.step({agent: of_agent[agent] for agent in env.agents})
            observed.append(obs)
            reward[i] = np.mean(list(rewards.values()))
            is_over = not env.agents
            terminated[i] = is_over and all(terminations.values())
            truncated[i] = is_over and not terminated[i]
        return self.episodes.step(self.rows(observed), reward, terminated, truncated)

    def rows(self, observed):
        """Return observations `[N, M, ...]`, with members in the order of `possible_agents`."""
        agents = self.parallel_env.possible_agents
        return np.stack([[obs.get(agent, self.zeros) for agent in agents] for obs in observed])

    def close(self):
        """Close nothing, as nothing is open."""


if __name__ == "__main__":
    qlax.check_env(Team(num_envs=8), num_steps=300)
    result = qlax.train("cooperative_environment:Team", total_steps=60_000, num_envs=16, epsilon_fraction=0.5)
    print(result.summary["train_return"], result.summary["eval_return"])
