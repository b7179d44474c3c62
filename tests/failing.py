"""Wrappers of Gymnasium's environments that fail, in a module without JAX, as their processes import it."""

import os
import time

import gymnasium


class Dying:
    """Wrapper of Gymnasium's environments that ends the process of an environment in its thirtieth step."""

    fail = staticmethod(lambda: os._exit(3))

    def __new__(cls, env):
        class Wrapper(gymnasium.Wrapper):
            steps = 0

            def step(self, action):
                self.steps += 1
                if self.steps == 30:
                    cls.fail()
                return self.env.step(action)

        return Wrapper(env)


class Sleeping(Dying):
    """Wrapper of Gymnasium's environments that hangs in the thirtieth step."""

    fail = staticmethod(lambda: time.sleep(1000))


class Slow(Dying):
    """Wrapper of Gymnasium's environments whose steps take a tenth of a second."""

    def __new__(cls, env):
        class Wrapper(gymnasium.Wrapper):
            def step(self, action):
                time.sleep(0.1)
                return self.env.step(action)

        return Wrapper(env)
