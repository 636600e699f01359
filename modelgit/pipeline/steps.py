"""The steps of a pipeline in one repository: what is recorded, what is made here, where branches point."""
