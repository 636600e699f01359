"""Where the files lie that a recipe or a pipeline names."""

import os
from pathlib import Path


def beside(folder: Path, name: str) -> str:
    """Returns the path of what is called `name` in a folder, as people would write it: a/../b is b.

    `..` behind a link stays, for it may lead elsewhere than it looks.
    """
    path = folder / name
    plain = Path(os.path.normpath(path))
    alike = plain.samefile(path) if path.exists() and plain.exists() else path.exists() == plain.exists()
    return str(plain if alike else path)
