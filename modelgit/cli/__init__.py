"""Words for people: the only room that prints, the only one that imports typer and rich."""
