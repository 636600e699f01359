"""Models whose rows stand for tokens, in vocabularies that differ: rows are matched by the tokens' strings."""
