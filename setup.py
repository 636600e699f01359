"""Builds the optional compiled kernel; without a compiler the package works the same, only slower."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "modelgit.store._kernel",
            sources=["modelgit/store/kernel.c"],
            extra_compile_args=["-O3", "-std=c11"],
            optional=True,
        )
    ]
)
