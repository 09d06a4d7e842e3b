"""The wheel holds a native library and no code of CPython's own: one wheel for each platform, for every Python 3."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = {"darwin": "liblethe_ffi.dylib", "win32": "lethe_ffi.dll"}.get(sys.platform, "liblethe_ffi.so")


def library() -> Path:
    """The native library: the one that LETHE_FFI_LIBRARY names, or one that is built now."""
    given = os.environ.get("LETHE_FFI_LIBRARY")
    if given:
        return Path(given)
    subprocess.run(["cargo", "build", "--release", "-p", "lethe-ffi"], cwd=ROOT, check=True)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / LIBRARY


class BuildPy(build_py):
    def run(self):
        super().run()
        target = Path(self.build_lib) / "lethe" / LIBRARY
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library(), target)
        strip = {"darwin": ["strip", "-x"], "linux": ["strip", "--strip-unneeded"]}.get(sys.platform)
        if strip and shutil.which("strip"):
            subprocess.run([*strip, target], check=True)


class BdistWheel(bdist_wheel):
    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class Native(Distribution):
    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel}, distclass=Native)
