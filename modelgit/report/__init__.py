"""Pictures of lineage and results, as self-contained SVG and HTML: no plotting library, no network."""
