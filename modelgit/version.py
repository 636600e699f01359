"""The version of modelgit, in one place."""

VERSION = "0.1.0"
