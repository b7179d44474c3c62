"""qlax: deep Q-learning without replay or target network (PQN), whole training runs compiled by JAX.

`__init__.pyi` names what is public: everything else is private and may change.
Each public name is imported when it is first used, so that `import qlax` is quick.
"""

import lazy_loader

from qlax._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
