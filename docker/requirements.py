"""Print what a list of pyproject.toml asks for, one requirement a line.

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
    beside, above = (folder / "pyproject.toml" for folder in (Path(__file__).parent, Path(__file__).parent.parent))
    print(*requirements(beside if beside.exists() else above, sys.argv[1:]), sep="\n")
