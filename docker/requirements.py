"""Print what lists in this folder's pyproject.toml ask for, one requirement a line.

    python docker/requirements.py dependencies k8s     the project's own and those of an extra

An image installs them before it gets the code, so that new code does not mean a new layer of gigabytes.
"""

import sys
import tomllib
from pathlib import Path


def requirements(project: Path, names: list[str]) -> list[str]:
    """The requirements of `dependencies` or of extras, in order and without repetition."""
    table = tomllib.loads(project.read_text())["project"]
    lists = {"dependencies": table["dependencies"], **table["optional-dependencies"]}
    return list(dict.fromkeys(requirement for name in names for requirement in lists[name]))


if __name__ == "__main__":
    print(*requirements(Path("pyproject.toml"), sys.argv[1:]), sep="\n")
