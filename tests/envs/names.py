"""Write the file of the names of environments anew, from the suites that are installed: `python tests/envs/names.py`.

Names of suites that are not installed stay as they are, and so do the lists of other environments with their reasons.
"""

import json
import re
import textwrap

from qlax import envs
from qlax.config import environments
from qlax.errors import UserError


def main() -> None:
    content = json.loads(environments.FILE.read_text())
    for suite in sorted(environments.SUITES, key=lambda suite: suite != "gymnasium"):  # before ale-py adds its games
        entry = content.setdefault(suite, {})
        try:
            version, names = environments.installed_version(suite), envs.suite(suite).names()
        except UserError as error:
            print(error)
            continue
        entry |= {"version": version, "names": names, "others": entry.get("others", {})}
    suites = [f'"{suite}": {json.dumps(content[suite])}' for suite in environments.SUITES]
    # Lines are broken at commas only, because the reasons contain spaces.
    whole = [re.sub(r"(?<!,) ", "\0", suite) for suite in suites]
    lines = [textwrap.fill(suite, 120, break_long_words=False, break_on_hyphens=False) for suite in whole]
    environments.FILE.write_text("{\n" + ",\n".join(lines).replace("\0", " ") + "\n}\n")


if __name__ == "__main__":
    main()
