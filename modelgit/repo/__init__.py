"""Git: history, work tree, lineage. The only room that imports GitPython."""
