"""Builds the optional compiled kernel; without a compiler the package works the same, only slower."""

from setuptools import Extension, setup

CODEC = "modelgit/store/codec"

setup(
    ext_modules=[
        Extension(
            "modelgit.store.codec._kernel",
            sources=[f"{CODEC}/{name}.c" for name in ("planes", "differences", "copying", "sums")],
            depends=[f"{CODEC}/kernel.h"],
            extra_compile_args=["-O3", "-std=gnu11", "-fno-trapping-math", "-ffp-contract=off"],
            optional=True,
        )
    ]
)
