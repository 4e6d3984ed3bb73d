"""Builds the two native modules; everything else stands in pyproject.toml.

CC, CFLAGS and PKG_CONFIG are honoured, so a cross build is an ordinary build with the cross tools named.
"""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    cffi_modules=["native/build_core.py:ffibuilder"],
    ext_modules=cythonize(
        [Extension("igelcert._der", ["native/der.pyx"], extra_compile_args=["-O2"])],
        build_dir="build/cython",
        compiler_directives={"language_level": "3"},
    ),
)
