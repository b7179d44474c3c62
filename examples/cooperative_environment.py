"""A team whose world speaks PettingZoo's parallel API, a dict for each agent, as environments for qlax."""

import numpy as np

import qlax

REST, PULL = 0, 1


class Rowers:
    """Two in a boat, with the parallel API: who pulls turns it, both together bring it ahead if it lies straight."""

    possible_agents = ("left", "right")
    LENGTH, LIMIT = 10, 60

    def reset(self, seed=None, options=None):
        """A new race."""
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        self.heading, self.way, self.time = 0, 0, 0
        return self.seen(), {agent: {} for agent in self.agents}

    def step(self, actions):
        """What comes of an action of each."""
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
        seen = self.seen()
        infos: dict[str, dict] = {agent: {} for agent in self.agents}
        if arrived or aground or self.time == self.LIMIT:
            self.agents = []
        return seen, rewards, terminations, truncations, infos

    def seen(self):
        """What each agent sees."""
        side = {"left": [1, 0], "right": [0, 1]}
        heading = [self.heading == x for x in range(-3, 4)]
        return {agent: np.array([*side[agent], *heading, self.way / self.LENGTH], np.float32) for agent in self.agents}


class Team:
    """N worlds with the parallel API, as a `qlax.HostEnv`. The team's reward is the mean of its members'.

    A world that ended is reset in the next step, which ignores its actions: so the last observation of an episode
    that only time cut is there to be learned from. `qlax.Episodes` says so to the learner. An agent that leaves before
    the others sees zeros from then on, and what it does counts for nothing.
    """

    world = Rowers
    num_actions = 2
    num_agents = 2
    time_limit = Rowers.LIMIT

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.worlds = [self.world() for _ in range(num_envs)]
        self.episodes = qlax.Episodes(num_envs)

    def reset(self, seed):
        """N new episodes."""
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs)
        seen = [world.reset(seed=int(own))[0] for world, own in zip(self.worlds, seeds, strict=True)]
        self.nothing = np.zeros_like(next(iter(seen[0].values())))
        return self.episodes.begin(self.rows(seen))

    def step(self, action):
        """The next step of all, `action` int32 `[N, M]`."""
        seen, reward = [], np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for i, world in enumerate(self.worlds):
            if not world.agents:  # it ended in the step before
                seen.append(world.reset()[0])
                continue
            of_agent = dict(zip(world.possible_agents, action[i], strict=True))
            obs, rewards, terminations, _, _ = world.step({agent: of_agent[agent] for agent in world.agents})
            seen.append(obs)
            reward[i] = np.mean(list(rewards.values()))
            is_over = not world.agents
            terminated[i] = is_over and all(terminations.values())
            truncated[i] = is_over and not terminated[i]
        return self.episodes.step(self.rows(seen), reward, terminated, truncated)

    def rows(self, seen):
        """`[N, M, ...]`, members in the order of `possible_agents`."""
        return np.stack([[obs.get(agent, self.nothing) for agent in self.world.possible_agents] for obs in seen])

    def close(self):
        """Nothing is held."""


if __name__ == "__main__":
    qlax.check_env(Team(num_envs=8), num_steps=300)
    result = qlax.train("cooperative_environment:Team", total_steps=60_000, num_envs=16, epsilon_fraction=0.5)
    print(result.summary["train_return"], result.summary["eval_return"])
