"""Puts what default commands need from beside the package into a wheel; all else is declared in
pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

#: In a clone they lie beside the package; `catekv.models.embedded.shipped` finds them there too.
SHIPPED = ("ckpt/embedded", "select_headmask/embedded")


class BuildWithModel(build_py):
    """Copies the embedded model and its head masks into the package that is built."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED:
            target = Path(self.build_lib, "catekv", "shipped", name)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target)


setup(cmdclass={"build_py": BuildWithModel})
