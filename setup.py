"""Builds the optional compiled kernel; without a compiler the package works the same, only slower."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "modelgit.store.codec._kernel",
            sources=["modelgit/store/codec/kernel.c"],
            extra_compile_args=["-O3", "-std=c11"],
            optional=True,
        )
    ]
)
