"""Git: history, work tree, lineage. The only room that imports GitPython, and only where paths come or go."""
