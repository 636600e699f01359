"""Git's object database seen as a whole: all it holds, whether a ref leads there or not."""
