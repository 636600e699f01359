"""Builds the optional compiled kernels; without a compiler the package works the same, only slower."""

from setuptools import Extension, setup

CODEC, BLOCKS = "modelgit/store/codec", "modelgit/merge/blocks"
FLAGS = ["-O3", "-std=gnu11", "-fno-trapping-math", "-ffp-contract=off"]

setup(
    ext_modules=[
        Extension(
            "modelgit.store.codec._kernel",
            sources=[f"{CODEC}/{name}.c" for name in ("planes", "differences", "copying", "sums")],
            depends=[f"{CODEC}/kernel.h", f"{CODEC}/numbers.h"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        Extension(
            "modelgit.merge.blocks._kernel",
            sources=[f"{BLOCKS}/vectors.c"],
            depends=[f"{CODEC}/kernel.h", f"{CODEC}/numbers.h"],
            include_dirs=[CODEC],
            extra_compile_args=FLAGS,
            optional=True,
        ),
    ]
)
