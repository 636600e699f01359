"""modelgit inside of other people's training code: a callback for each framework."""
